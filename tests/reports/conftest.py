"""A store of invented runs with known numbers, written as the harness writes it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from reports.kit import save


class Store:
    """Writes runs and, at the end, the request that asked for them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cells: list[dict[str, Any]] = []

    def ask(
        self,
        model: str,
        task: str,
        *,
        seed: int = 0,
        label: str | None = None,
        size: str = "tiny",
        group: str = "",
        varied: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> str:
        """Asks for a run without making it: a missing cell. Returns its run_id.

        varied: settings by dotted name that are part of the run's name. settings: the others that it has.
        """
        varied = dict(varied or {})
        group_id = "-".join([f"{model}-{size}-{task}{group}", *map(str, varied.values())])
        cell = {"run_id": f"{group_id}-{seed}", "group_id": group_id, "model": model, "model_label": label or model.upper()}
        cell |= {"size": size, "task": task, "data": "stdlib" if task == "language" else None, "seed": seed}
        self.cells.append(cell | varied | dict(settings or {}))
        return cell["run_id"]

    def run(
        self,
        model: str,
        task: str,
        *,
        stages: Mapping[str, Iterable[Mapping[str, Any]]],
        status: str = "done",
        reason: str = "",
        facts: Mapping[str, Any] | None = None,
        curve: Iterable[tuple[int, float]] = (),
        **cell: Any,
    ) -> Path:
        """A run with these result rows per stage and this (step, loss) curve. Returns its folder."""
        run_id = self.ask(model, task, **cell)
        folder = self.root / "runs" / run_id
        (folder / "eval").mkdir(parents=True)
        own = {key: value for key, value in self.cells[-1].items() if key not in ("run_id", "group_id")}
        known = {"backend": "torch", "parameters": 1000, "state_bytes": 4096, "flops_per_token": 5000}
        names = {"run_id": run_id, "group_id": self.cells[-1]["group_id"], "facts": known | own | (facts or {})}
        write(folder / "run.json", schema=1, **names, settings={key: value for key, value in own.items() if "." in key})
        write(folder / "environment.json", python="3.11.7", packages={"torch": "2.13"})
        write(folder / "status.json", status=status, reason=reason, stage="train", step=None)
        for stage, rows in stages.items():
            path = folder / ("train.json" if stage == "train" else f"eval/{stage}-00000000.json")
            write(path, schema=1, stage=stage, settings={}, rows=list(rows))
        logged = ({"step": step, "tokens": 64 * step, "loss": loss, "lr": 1e-3, "grad_norm": loss / 10} for step, loss in curve)
        lines = list(map(json.dumps, logged))
        (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
        return folder

    def request(self, experiment: str = "quick", *, created: str = "2026-11-22T12:00:00+00:00") -> None:
        """Writes what was asked so far as the request of an experiment."""
        path = self.root / "experiments" / f"{experiment}-{created[:10].replace('-', '')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, schema=1, experiment=experiment, created=created, overrides=["seed=0,1"], cells=self.cells)

    @staticmethod
    def row(
        metric: str, value: float | None, split: str, *, examples: list[float] | None = None, **slices: Any
    ) -> dict[str, Any]:
        """One result row as the harness writes it."""
        written = {"metric": metric, "value": value, "split": split, "slice": slices, "count": len(examples or "x" * 10)}
        return written | ({} if examples is None else {"examples": examples})


def write(path: Path, **content: Any) -> None:
    path.write_text(json.dumps(content))


@pytest.fixture(scope="session")
def store_at() -> type[Store]:
    """What makes a store at a folder, for a page that several tests look at."""
    return Store


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test of a page's words: its figures are made, but not drawn into files."""

    def written(figure: Figure, target: Path | BytesIO, **options: object) -> None:
        target.write_bytes(b"") if isinstance(target, Path) else target.write(b"<svg/>")

    monkeypatch.setattr(save, "finish", lambda figure: None)
    monkeypatch.setattr(Figure, "savefig", written)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")
