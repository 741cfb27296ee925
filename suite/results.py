"""The reading side of the results store: from a folder of runs to DataFrames.

    runs/<run_id>/run.json, status.json, metrics.jsonl, train.json, eval/<evaluation>-<hash>.json
    experiments/<experiment>-<hash>.json

A store may come from a stranger: only JSON is read, nothing outside the folder is followed, and a file that is not
what it should be is skipped with a warning that names it.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Collection, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

SCHEMA = 1
RUN_COLUMNS = ["run_id", "group_id", "model", "model_label", "size", "task", "data", "seed", "backend", "status"]
ROW_COLUMNS = ["stage", "evaluation", "metric", "split", "slice", "value", "count"]
MACHINE_COLUMNS = ["python", "torch", "lm-eval", "platform", "cpu_count", "git_commit"]
CELL_COLUMNS = ["run_id", "group_id", "model", "model_label", "size", "task", "data", "seed"]
CURVE_COLUMNS = ["step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second", "seconds"]


def load_runs(root: str | Path, run_ids: Collection[str] | None = None) -> pd.DataFrame:
    """One row a run: RUN_COLUMNS, `reason`, `failed_stage` and `failed_step` of its status, every fact, MACHINE_COLUMNS.

    run_ids: only these runs; None for all. Raises ValueError when there is none.
    """
    root = Path(root)
    runs = [run | _machine(folder, root) for folder, run in _runs(root, run_ids)]
    return _frame(runs, [*RUN_COLUMNS, "reason", "failed_stage", "failed_step"])


def load_results(root: str | Path, run_ids: Collection[str] | None = None) -> pd.DataFrame:
    """Tidy rows: RUN_COLUMNS, the facts, one column a slice (`position`, `num_pairs`, `benchmark`, ...), ROW_COLUMNS.

    `slice` spells the slices out ("benchmark=recall, shots=1") and is empty for a score over the whole split;
    `evaluation` is the file's name. A slice hides a fact of the same name. Raises ValueError when there is no run.
    """
    rows = [{**run, **row} for run, row in _rows(Path(root), run_ids)]
    return _frame(rows, [*RUN_COLUMNS, *ROW_COLUMNS]).drop(columns=["examples", "groups"], errors="ignore")


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
    table = _frame(rows, [*RUN_COLUMNS, *ROW_COLUMNS, "example", "examples", "groups"]).drop(columns="value")
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
        rows += [identity | line for line in _logged_steps(folder / "metrics.jsonl", root)]
    table = _frame(rows, [*RUN_COLUMNS, *CURVE_COLUMNS])
    return table.drop_duplicates(["run_id", "step"], keep="last").sort_values(["run_id", "step"], ignore_index=True)


def load_request(root: str | Path, experiment: str) -> dict[str, Any] | None:
    """The latest request for an experiment: {"experiment", "created", "overrides", "cells"}, or None.

    Raises ValueError for a name that can't be an experiment's.
    """
    if not re.fullmatch(r"[\w-]+", experiment):
        raise ValueError(f"experiment {experiment!r} is not a name of letters, digits, _ and -")
    root, requests = Path(root), []
    for path in sorted((root / "experiments").glob(f"{experiment}-*.json")):
        request = _read(path, root)
        if request is None or request.get("experiment") != experiment:
            continue
        problem = _problem_of_request(request)
        if problem:
            _skip(path, problem)
        else:
            requests.append(request)
    return max(requests, key=_created, default=None)


def _created(request: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(request["created"]).astimezone()


def _problem_of_request(request: dict[str, Any]) -> str:
    cells, overrides = request.get("cells"), request.get("overrides")
    if not isinstance(cells, list) or not all(isinstance(c, dict) and set(CELL_COLUMNS) <= set(c) for c in cells):
        return f"its cells do not all have {', '.join(CELL_COLUMNS)}"
    if not all(isinstance(s, list) and all(isinstance(name, str) for name in s) for s in (c.get("studies", []) for c in cells)):
        return "the studies of its cells are not lists of strings"
    if not isinstance(overrides, list) or not all(isinstance(override, str) for override in overrides):
        return "its overrides are not a list of strings"
    try:
        _created(request)
    except (KeyError, TypeError, ValueError):
        return "its created is not an ISO time"
    return ""


def _skip(path: Path, problem: object) -> None:
    warnings.warn(f"skipped {path}: {problem}", stacklevel=2)


def _read(path: Path, root: Path, *, schema: int | None = SCHEMA) -> dict[str, Any] | None:
    """The JSON object in a file of the store; None, with a warning, for anything else."""
    try:
        if not path.resolve().is_relative_to(root.resolve()):
            raise ValueError("it lies outside the store")
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
        if schema is not None and content.get("schema") != schema:
            raise ValueError(f"its schema is {content.get('schema')!r}, not {schema}")
    except (OSError, ValueError, RecursionError) as error:
        _skip(path, error)
        return None
    return content


def _runs(root: Path, run_ids: Collection[str] | None) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folder of every readable run, and its identity, facts and status in one flat dictionary."""
    found = False
    for path in sorted((root / "runs").glob("*/run.json")):
        folder = path.parent
        if run_ids is not None and folder.name not in run_ids:
            continue
        content = _read(path, root)
        if content is None:
            continue
        if content.get("run_id") != folder.name or not isinstance(content.get("facts"), dict):
            _skip(path, f"it is not the run {folder.name}")
            continue
        facts = {key: value for key, value in content["facts"].items() if _is_scalar(value)}
        found = True
        if "state_counted" not in facts:
            facts["state_counted"] = "as float32" if _narrow(folder / "config.yaml", root) else "as held"
        yield folder, facts | {"run_id": folder.name, "group_id": content.get("group_id")} | _status(folder, root)
    if not found:
        raise ValueError(f"no results under {root}")


def _narrow(path: Path, root: Path) -> bool:
    """Whether a configuration trains under autocast, which runs did not say in their facts when state was counted as float32."""
    if not path.is_file() or not path.resolve().is_relative_to(root.resolve()):
        return False
    return re.search(r"^ +autocast: bfloat16$", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE) is not None


def _machine(folder: Path, root: Path) -> dict[str, Any]:
    """What environment.json says of where a run was computed: its MACHINE_COLUMNS, None where it says nothing."""
    path = folder / "environment.json"
    written = (_read(path, root, schema=None) if path.exists() else None) or {}
    packages = written.get("packages")
    known = (packages if isinstance(packages, dict) else {}) | written
    return {column: known.get(column) if _is_scalar(known.get(column)) else None for column in MACHINE_COLUMNS}


def _status(folder: Path, root: Path) -> dict[str, Any]:
    path = folder / "status.json"
    status = (_read(path, root, schema=None) if path.exists() else None) or {"status": "pending"}
    return {
        "status": str(status.get("status")),
        "reason": str(status.get("reason") or ""),
        "failed_stage": status.get("stage"),
        "failed_step": status.get("step"),
    }


def _rows(root: Path, run_ids: Collection[str] | None) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every result row of every finished stage, with the run that it belongs to."""
    for folder, run in _runs(root, run_ids):
        for path in [*folder.glob("train.json"), *sorted(folder.glob("eval/*.json"))]:
            content = _read(path, root)
            if content is None:
                continue
            try:
                rows = [_flat_row(row, stage=content["stage"], evaluation=path.stem) for row in content["rows"]]
            except (KeyError, TypeError, ValueError) as error:
                _skip(path, f"a row of it is malformed ({type(error).__name__}: {error})")
                continue
            yield from ((run, row) for row in rows)


def _flat_row(row: dict[str, Any], *, stage: str, evaluation: str) -> dict[str, Any]:
    """A row as written -> flat, with one key a slice; ValueError, TypeError or KeyError when it is not a row."""
    slices, examples = dict(row["slice"]), row.get("examples") or []
    groups = row.get("groups") or [math.nan] * len(examples)
    if len(groups) != len(examples):
        raise ValueError(f"{len(groups)} groups of {len(examples)} examples")
    taken = set(slices) & {*RUN_COLUMNS, *ROW_COLUMNS, "example", "examples", "groups", "document"}
    if taken or not all(_is_scalar(value) for value in slices.values()):
        raise ValueError(f"slices {sorted(taken) or slices}")
    return slices | {
        "stage": str(stage),
        "evaluation": evaluation,
        "metric": str(row["metric"]),
        "split": str(row["split"]),
        "slice": ", ".join(f"{name}={value}" for name, value in sorted(slices.items())),
        "value": _number(row["value"]),
        "count": int(row["count"]),
        "examples": [_number(value) for value in examples],
        "groups": [float(group) for group in groups],
    }


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)


def _logged_steps(path: Path, root: Path) -> Iterator[dict[str, float]]:
    """The lines of metrics.jsonl; the last may be torn when the run was killed, any other bad one is warned about."""
    if not path.exists():
        return
    if not path.resolve().is_relative_to(root.resolve()):
        _skip(path, "it lies outside the store")
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for i, line in enumerate(lines):
        try:
            logged = json.loads(line)
            yield {column: _number(logged.get(column)) for column in CURVE_COLUMNS} | {"step": int(logged["step"])}
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            if i + 1 < len(lines):
                _skip(path, f"line {i + 1}: {error}")


def _frame(rows: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    """The rows with these columns first, whether or not any row has them."""
    table = pd.DataFrame(rows)
    return table.reindex(columns=[*columns, *(name for name in table.columns if name not in columns)])
