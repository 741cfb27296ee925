"""What the files of one run say, as flat mappings of numbers and inert text, which frames are made of. Imports no torch."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conf.settings import flat, text
from suite.canonical import canonical_json, digest
from suite.store.foreign import parse_line, read_lines, read_yaml
from suite.store.reading import SCHEMA, names, number, read, scalars, shown, skip
from suite.store.status import Status, read_status
from suite.store.throwaway import stamp
from suite.store.versions import measured, superseded

RUN_COLUMNS = ["run_id", "group_id", "model", "model_label", "size", "task", "data", "seed", "backend", "status"]
ROW_COLUMNS = ["stage", "evaluation", "superseded", "metric", "split", "slice", "value", "count"]
MACHINE_COLUMNS = ["python", "torch", "lm-eval", "platform", "cpu_count", "device", "runs_per_device", "git_commit"]
CURVE_COLUMNS = ["step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second", "seconds"]
NO_SLICE = {*RUN_COLUMNS, *ROW_COLUMNS, "example", "examples", "groups", "document"}
CODE = "code"
"""The key of a run's record of the code that trained it, as JSON."""


class RunFiles:
    """The files of one run, each of which is read or skipped with a warning that names it.

    is_whole: whether nothing was skipped so far. seen: of every file and folder that was looked at, by its place below the
    run's folder, the `stamp` from before it was read.
    """

    def __init__(self, root: Path, run_id: str) -> None:
        self.root, self.run_id = root, run_id
        self.folder = root / "runs" / run_id
        self.is_whole = True
        self.seen: dict[str, tuple[int, ...]] = {}

    def run(self) -> list[dict[str, Any]]:
        """The settings, facts, identity and status of the run, and the record of its CODE; nothing for what is no run."""
        self._look("run.json", "status.json")
        path = self.folder / "run.json"
        content = self._read(path, is_named=False)
        if content is None:
            return []
        facts = content.get("facts")
        if content.get("run_id") != self.run_id or not isinstance(facts, dict):
            self._skip(path, f"it is not the run {self.run_id}")
            return []
        facts = scalars(facts)
        try:
            called = names({**facts, "run_id": self.run_id, "group_id": content.get("group_id")})
        except ValueError as error:
            self._skip(path, error)
            return []
        settings = self._settings(content)
        if "state_counted" not in facts:
            facts["state_counted"] = "as float32" if settings.get("train.autocast") == "bfloat16" else "as held"
        return [settings | facts | called | {CODE: canonical_json(content.get("code"))} | self._status()]

    def machine(self) -> list[dict[str, Any]]:
        """What environment.json says of where the run was computed, MACHINE_COLUMNS, and the `command` that was typed for it.

        None where it says nothing. What only says where the run lands is no part of the command.
        """
        self._look("environment.json")
        path = self.folder / "environment.json"
        written = (self._read(path, schema=None) if os.path.lexists(path) else None) or {}
        packages = written.get("packages")
        known = scalars((packages if isinstance(packages, dict) else {}) | written)
        typed = written.get("command")
        words = [str(word) for word in typed[1:]] if isinstance(typed, list) else []
        kept = shlex.join(["python", "-m", "suite", *(word for word in words if not word.startswith("paths."))])
        command = shown(kept) if words[:1] == ["run"] else None
        return [{column: known.get(column) for column in MACHINE_COLUMNS} | {"command": command}]

    def rows(self) -> list[dict[str, Any]]:
        """The rows of every finished stage, each with its examples and groups, which may be empty."""
        self._look("train.json", "eval")
        inner = [f"eval/{name}" for name in sorted(self._listed("eval")) if name.endswith(".json")]
        self._look(*inner)
        trained = ["train.json"] if (self.folder / "train.json").exists() else []
        stages, found = [], []
        for path in (self.folder / name for name in [*trained, *inner]):
            content = self._read(path, is_named=False)
            if content is None:
                continue
            try:
                rows = [_flat_row(row, stage=content["stage"], evaluation=path.stem) for row in content["rows"]]
                own = f"{content['stage']}-{digest(canonical_json(content['settings']), 8)}"
                own = "train" if path.parent == self.folder else own
                # What was written before digests were does not say whose it is.
                if "run_id" in content and (content["run_id"], own) != (self.run_id, path.stem):
                    raise ValueError("it belongs to another run or stage")
                measured(content)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                self._skip(path, f"a row of it is malformed ({type(error).__name__}: {error})")
                continue
            stages.append(content)
            found.append(rows)
        pairs = zip(found, superseded(stages), strict=True)
        return [row | {"superseded": is_old} for rows, is_old in pairs for row in rows]

    def rows_alone(self) -> list[dict[str, Any]]:
        """`rows` without their examples and groups."""
        rows = self.rows()
        for row in rows:
            del row["examples"], row["groups"]
        return rows

    def curve(self) -> list[dict[str, float]]:
        """The logged steps of training, as often as they were logged."""
        path, log = self.folder / "train.json", self.folder / "metrics.jsonl"
        lines = list(self._logged_steps(log))
        trained = self._read(path) if os.path.lexists(path) else None
        written = (trained or {}).get("log_lines")
        if isinstance(written, int) and written > len(lines):
            self._skip(log, f"{written - len(lines)} of its lines are missing")
        return lines

    def _look(self, *found: str) -> None:
        for name in found:
            self.seen[name] = stamp(self.folder / name)
            # What a link leads to is not seen to change.
            self.is_whole &= not (self.folder / name).is_symlink()

    def _read(self, path: Path, *, schema: int | None = SCHEMA, is_named: bool = True) -> dict[str, Any] | None:
        """A JSON object; is_named: it is of this run where it says of which."""
        content = read(path, self.root, schema=schema, run=self.run_id if is_named else None)
        self.is_whole &= content is not None
        return content

    def _skip(self, path: Path, problem: object) -> None:
        self.is_whole = False
        skip(path, problem)

    def _listed(self, name: str) -> list[str]:
        try:
            return os.listdir(self.folder / name)
        except OSError:
            return []

    def _settings(self, content: dict[str, Any]) -> dict[str, Any]:
        """Every setting that decides the numbers of the run, by its dotted key; lists as text.

        A run of a version that did not write them has them in its config.yaml.
        """
        written = content.get("settings")
        if not isinstance(written, dict):
            path = self.folder / "config.yaml"
            self._look("config.yaml")
            try:
                written = _of_a_configuration(read_yaml(path, self.root))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                self._skip(path, error)
                return {}
        return {key: value for key, value in scalars(written).items() if "." in key}

    def _status(self) -> dict[str, Any]:
        """The status of the run, and why: how training ended, or the last of its evaluations that failed."""
        path, status = self.folder / "status.json", Status()
        if os.path.lexists(path):
            try:
                status = read_status(path, self.root, self.run_id)
            except (OSError, ValueError) as error:
                self._skip(path, error)
        failed = [f"{each['title']} failed: {each['reason']}" for each in status.failures.values()]
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        reason = status.reason or "".join(f"{each}{more}" for each in failed[-1:])
        return {"status": status.status, "reason": reason, "failed_stage": status.stage, "failed_step": status.step}

    def _logged_steps(self, path: Path) -> Iterator[dict[str, float]]:
        """The lines of metrics.jsonl; the last may be torn when the run was killed, any other bad one is warned about."""
        try:
            *lines, torn = read_lines(path, self.root) or [b""]
        except (OSError, ValueError) as error:
            self._skip(path, error)
            return
        for i, line in enumerate([*lines, torn]):
            try:
                logged = parse_line(line, self.run_id)
                yield {column: number(logged.get(column)) for column in CURVE_COLUMNS} | {"step": logged["step"]}
            except (TypeError, ValueError) as error:
                if i < len(lines):
                    self._skip(path, f"line {i + 1}: {error}")


def _of_a_configuration(whole: dict[str, Any]) -> dict[str, Any]:
    model, task = whole["model"], dict(whole["task"])
    if "data" in task:
        # The rest says where the text lies.
        task["data"] = {"validation_fraction": task["data"]["validation_fraction"]}
    mixers = {name: model[name] for name in ("name", "version", "pattern", *model["pattern"])}
    size = {key: value for key, value in whole["size"].items() if key != "name"}
    # Other runs, which decide nothing by their names.
    train = {key: value for key, value in whole["train"].items() if key not in ("start_from", "continue_from")}
    chosen = {"model": mixers, "size": size, "task": task, "train": train}
    return {key: text(value) if isinstance(value, list) else value for key, value in flat(chosen)}


def _flat_row(row: dict[str, Any], *, stage: str, evaluation: str) -> dict[str, Any]:
    """A row as written -> flat, with one key a slice; ValueError, TypeError or KeyError when it is not a row."""
    slices, examples = scalars(row["slice"]), row.get("examples") or []
    groups = [number(group) for group in row.get("groups") or [None] * len(examples)]
    if len(groups) != len(examples):
        raise ValueError(f"{len(groups)} groups of {len(examples)} examples")
    if (taken := set(slices) & NO_SLICE) or len(slices) < len(row["slice"]):
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
