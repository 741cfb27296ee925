"""The reading side of the results store: from a folder of runs to DataFrames.

    runs/<run_id>/run.json, status.json, metrics.jsonl, train.json, eval/<evaluation>-<hash>.json
    experiments/<experiment>-<hash>.json

A store may come from a stranger, or be damaged: only JSON is read, no link is followed, a file that is not what was
written is skipped with a warning that names it, and what the frames hold as text is inert where it is shown.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from conf.settings import flat, text
from suite.canonical import canonical_json, digest
from suite.store.code_state import age
from suite.store.foreign import parse_line, read_lines, read_yaml
from suite.store.reading import frame, load_request, names, number, read, scalars, shown, skip
from suite.store.status import Status, read_status
from suite.store.versions import measured, superseded

__all__ = ["load_curves", "load_examples", "load_request", "load_results", "load_runs"]

RUN_COLUMNS = ["run_id", "group_id", "model", "model_label", "size", "task", "data", "seed", "backend", "status"]
ROW_COLUMNS = ["stage", "evaluation", "superseded", "metric", "split", "slice", "value", "count"]
MACHINE_COLUMNS = ["python", "torch", "lm-eval", "platform", "cpu_count", "git_commit"]
CURVE_COLUMNS = ["step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second", "seconds"]


def load_runs(root: str | Path, run_ids: Collection[str] | None = None) -> pd.DataFrame:
    """One row a run: RUN_COLUMNS, `reason`, `failed_stage` and `failed_step` of its status, every fact, MACHINE_COLUMNS, and
    every setting that decides its numbers by its dotted key, such as "train.lr" and "model.mixer.key_dim".

    code: whether "today"'s code trained the run, "another" state of it, or one that is "unknown" (see suite.store.code_state).

    run_ids: only these runs; None for all. Raises ValueError when there is none.
    """
    root = Path(root)
    runs = [run | _machine(folder, root) for folder, run in _runs(root, run_ids)]
    return frame(runs, [*RUN_COLUMNS, "reason", "failed_stage", "failed_step"])


def load_results(root: str | Path, run_ids: Collection[str] | None = None) -> pd.DataFrame:
    """Tidy rows: RUN_COLUMNS, facts and settings as in `load_runs`, one column a slice (`position`, ...), ROW_COLUMNS.

    `superseded` says that a newer result measured the same by another version of its benchmark, or of the data behind it.
    `slice` spells the slices out ("benchmark=recall, shots=1") and is empty for a score over the whole split;
    `evaluation` is the file's name. A slice hides a fact of the same name. Raises ValueError when there is no run.
    """
    rows = [{**run, **row} for run, row in _rows(Path(root), run_ids)]
    return frame(rows, [*RUN_COLUMNS, *ROW_COLUMNS]).drop(columns=["examples", "groups"], errors="ignore")


def load_examples(root: str | Path, run_ids: Collection[str] | None = None) -> pd.DataFrame:
    """One row an example of every result that keeps its examples: the columns of `load_results` less the facts, and
    `example` (its index within the split), `value` (NaN where the example has none) and `document`, the number of what it
    is a part of (NaN where that is not known, or it stands by itself).
    """
    kept = set(RUN_COLUMNS)
    rows = [
        {key: value for key, value in run.items() if key in kept} | row | {"example": range(len(row["examples"]))}
        for run, row in _rows(Path(root), run_ids)
        if row["examples"]
    ]
    table = frame(rows, [*RUN_COLUMNS, *ROW_COLUMNS, "example", "examples", "groups"]).drop(columns="value")
    table = table.explode(["example", "examples", "groups"], ignore_index=True)
    table = table.rename(columns={"examples": "value", "groups": "document"})
    return table.astype({"example": "int64", "value": "float64", "document": "float64"})


def load_curves(root: str | Path, run_ids: Collection[str] | None = None) -> pd.DataFrame:
    """One row a logged step of training: RUN_COLUMNS and CURVE_COLUMNS, by run and step.

    A run that was killed and continued logs some steps twice: the last of them counts.
    """
    root, rows = Path(root), []
    for folder, run in _runs(root, run_ids):
        identity = {column: run.get(column) for column in RUN_COLUMNS}
        lines = list(_logged_steps(folder / "metrics.jsonl", root))
        trained = read(folder / "train.json", root, run=folder.name) if os.path.lexists(folder / "train.json") else None
        written = (trained or {}).get("log_lines")
        if isinstance(written, int) and written > len(lines):
            skip(folder / "metrics.jsonl", f"{written - len(lines)} of its lines are missing")
        rows += [identity | line for line in lines]
    table = frame(rows, [*RUN_COLUMNS, *CURVE_COLUMNS])
    return table.drop_duplicates(["run_id", "step"], keep="last").sort_values(["run_id", "step"], ignore_index=True)


def _runs(root: Path, run_ids: Collection[str] | None) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folder of every readable run, and its identity, facts and status in one flat dictionary."""
    found = False
    for path in sorted((root / "runs").glob("*/run.json")):
        folder = path.parent
        if run_ids is not None and folder.name not in run_ids:
            continue
        content = read(path, root)
        if content is None:
            continue
        if content.get("run_id") != folder.name or not isinstance(content.get("facts"), dict):
            skip(path, f"it is not the run {folder.name}")
            continue
        facts = scalars(content["facts"])
        try:
            called = names({**facts, "run_id": folder.name, "group_id": content.get("group_id")})
        except ValueError as error:
            skip(path, error)
            continue
        found = True
        settings = _settings(content, folder, root)
        if "state_counted" not in facts:
            facts["state_counted"] = "as float32" if settings.get("train.autocast") == "bfloat16" else "as held"
        yield folder, settings | facts | called | {"code": age(content.get("code"))} | _status(folder, root)
    if not found:
        raise ValueError(f"no results under {root}")


def _settings(content: dict[str, Any], folder: Path, root: Path) -> dict[str, Any]:
    """Every setting that decides the numbers of a run, by its dotted key; lists as text.

    A run of a version that did not write them has them in its config.yaml.
    """
    written = content.get("settings")
    if not isinstance(written, dict):
        try:
            written = _of_a_configuration(read_yaml(folder / "config.yaml", root))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            skip(folder / "config.yaml", error)
            return {}
    return {key: value for key, value in scalars(written).items() if "." in key}


def _of_a_configuration(whole: dict[str, Any]) -> dict[str, Any]:
    model, task = whole["model"], dict(whole["task"])
    if "data" in task:
        # The rest says where the text lies.
        task["data"] = {"validation_fraction": task["data"]["validation_fraction"]}
    mixers = {name: model[name] for name in ("name", "version", "pattern", *model["pattern"])}
    size = {key: value for key, value in whole["size"].items() if key != "name"}
    chosen = {"model": mixers, "size": size, "task": task, "train": whole["train"]}
    return {key: text(value) if isinstance(value, list) else value for key, value in flat(chosen)}


def _machine(folder: Path, root: Path) -> dict[str, Any]:
    """What environment.json says of where a run was computed: its MACHINE_COLUMNS, None where it says nothing."""
    path = folder / "environment.json"
    written = (read(path, root, schema=None, run=folder.name) if os.path.lexists(path) else None) or {}
    packages = written.get("packages")
    known = scalars((packages if isinstance(packages, dict) else {}) | written)
    return {column: known.get(column) for column in MACHINE_COLUMNS}


def _status(folder: Path, root: Path) -> dict[str, Any]:
    """The status of a run, and why: how training ended, or the last of its evaluations that failed."""
    path, status = folder / "status.json", Status()
    if os.path.lexists(path):
        try:
            status = read_status(path, root, folder.name)
        except (OSError, ValueError) as error:
            skip(path, error)
    failed = [f"{each['title']} failed: {each['reason']}" for each in status.failures.values()]
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    reason = status.reason or "".join(f"{each}{more}" for each in failed[-1:])
    return {"status": status.status, "reason": reason, "failed_stage": status.stage, "failed_step": status.step}


def _rows(root: Path, run_ids: Collection[str] | None) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every result row of every finished stage, with the run that it belongs to."""
    for folder, run in _runs(root, run_ids):
        stages, found = [], []
        for path in [*folder.glob("train.json"), *sorted(folder.glob("eval/*.json"))]:
            content = read(path, root)
            if content is None:
                continue
            try:
                rows = [_flat_row(row, stage=content["stage"], evaluation=path.stem) for row in content["rows"]]
                own = "train" if path.parent == folder else f"{content['stage']}-{digest(canonical_json(content['settings']), 8)}"
                # What was written before digests were does not say whose it is.
                if "run_id" in content and (content["run_id"], own) != (folder.name, path.stem):
                    raise ValueError("it belongs to another run or stage")
                measured(content)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                skip(path, f"a row of it is malformed ({type(error).__name__}: {error})")
                continue
            stages.append(content)
            found.append(rows)
        for rows, is_old in zip(found, superseded(stages), strict=True):
            yield from ((run, row | {"superseded": is_old}) for row in rows)


def _flat_row(row: dict[str, Any], *, stage: str, evaluation: str) -> dict[str, Any]:
    """A row as written -> flat, with one key a slice; ValueError, TypeError or KeyError when it is not a row."""
    slices, examples = scalars(row["slice"]), row.get("examples") or []
    groups = [number(group) for group in row.get("groups") or [None] * len(examples)]
    if len(groups) != len(examples):
        raise ValueError(f"{len(groups)} groups of {len(examples)} examples")
    if (taken := set(slices) & {*RUN_COLUMNS, *ROW_COLUMNS, "example", "examples", "groups", "document"}) or len(slices) < len(
        row["slice"]
    ):
        raise ValueError(f"slices {sorted(taken) or slices}")
    return slices | {
        "stage": shown(str(stage)),
        "evaluation": shown(str(evaluation)),
        "metric": shown(str(row["metric"])),
        "split": shown(str(row["split"])),
        "slice": ", ".join(f"{name}={value}" for name, value in sorted(slices.items())),
        "value": number(row["value"]),
        "count": int(row["count"]),
        "examples": [number(value) for value in examples],
        "groups": [float(group) for group in groups],
    }


def _logged_steps(path: Path, root: Path) -> Iterator[dict[str, float]]:
    """The lines of metrics.jsonl; the last may be torn when the run was killed, any other bad one is warned about."""
    try:
        *lines, torn = read_lines(path, root) or [b""]
    except (OSError, ValueError) as error:
        skip(path, error)
        return
    for i, line in enumerate([*lines, torn]):
        try:
            logged = parse_line(line, path.parent.name)
            yield {column: number(logged.get(column)) for column in CURVE_COLUMNS} | {"step": logged["step"]}
        except (TypeError, ValueError) as error:
            if i < len(lines):
                skip(path, f"line {i + 1}: {error}")
