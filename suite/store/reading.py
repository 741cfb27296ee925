"""What the frames of suite.results are made of: files of a store that are read or skipped with a warning, and inert values.

And what experiments asked for, experiments/<experiment>-<hash>.json, a file a request. Imports no torch.
"""

from __future__ import annotations

import math
import re
import warnings
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from suite.store.foreign import inert, read_json, reason_of

SCHEMA = 1
CELL_COLUMNS = ["run_id", "group_id", "model", "model_label", "size", "task", "data", "seed"]


def skip(path: Path, problem: object) -> None:
    said = reason_of(problem) if isinstance(problem, Exception) else problem
    warnings.warn(f"skipped {inert(path)}: {inert(said)}", stacklevel=2)


def read(path: Path, root: Path, *, schema: int | None = SCHEMA, run: str | None = None) -> dict[str, Any] | None:
    """The JSON object in a file of the store, and of a run where one is given; None, with a warning, for anything else."""
    try:
        content = read_json(path, root, run)
        if schema is not None and content.get("schema") != schema:
            raise ValueError(f"its schema is {content.get('schema')!r}, not {schema}")
    except (OSError, ValueError) as error:
        skip(path, error)
        return None
    return content


def names(named: dict[str, Any]) -> dict[str, Any]:
    """The identity of a run as text, and its seed. Raises ValueError where they are not that."""
    names = {column: named.get(column) for column in CELL_COLUMNS if column != "seed"}
    if not all(name is None or isinstance(name, str) for name in names.values()) or type(named.get("seed")) is not int:
        raise ValueError(f"{', '.join(names)} and seed are not all text and a whole number")
    return {column: shown(name) for column, name in names.items()} | {"seed": named["seed"]}


def number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def scalars(values: dict[str, Any]) -> dict[str, Any]:
    """What a frame can hold of a mapping: numbers, and inert text."""
    return {shown(key): shown(value) for key, value in values.items() if value is None or isinstance(value, str | int | float)}


def shown(value: Any) -> Any:
    return inert(value) if isinstance(value, str) else value


def frame(rows: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    """The rows with these columns first, whether or not any row has them. A column of text and numbers is one of text."""
    table = pd.DataFrame(rows)
    for name in table.columns.difference(["examples", "example", "document", "groups"]):
        if pd.api.types.infer_dtype(table[name], skipna=True) in ("mixed", "mixed-integer"):
            table[name] = table[name].map(str, na_action="ignore")
    return table.reindex(columns=[*columns, *(name for name in table.columns if name not in columns)])


def load_request(root: str | Path, experiment: str) -> dict[str, Any] | None:
    """The latest request for an experiment: {"experiment", "created", "overrides", "cells"}, or None.

    Raises ValueError for a name that can't be an experiment's.
    """
    if not re.fullmatch(r"[\w-]+", experiment):
        raise ValueError(f"experiment {experiment!r} is not a name of letters, digits, _ and -")
    root, requests = Path(root), []
    for path in sorted((root / "experiments").glob(f"{experiment}-*.json")):
        request = read(path, root)
        if request is None or request.get("experiment") != experiment:
            continue
        try:
            requests.append(_checked_request(request))
        except (KeyError, TypeError, ValueError, OverflowError, OSError) as error:
            skip(path, error)
    return max(requests, key=lambda request: request["when"], default=None)


def _checked_request(request: dict[str, Any]) -> dict[str, Any]:
    """The request with its time, `when`, and with cells whose text is inert. Raises ValueError and others for what is none."""
    cells, overrides = request.get("cells"), request.get("overrides")
    if not isinstance(cells, list) or not cells or not all(isinstance(c, dict) and set(CELL_COLUMNS) <= set(c) for c in cells):
        raise ValueError(f"its cells do not all have {', '.join(CELL_COLUMNS)}")
    if not all(isinstance(s, list) and all(isinstance(name, str) for name in s) for s in (c.get("studies", []) for c in cells)):
        raise ValueError("the studies of its cells are not lists of strings")
    if not isinstance(overrides, list) or not all(isinstance(override, str) for override in overrides):
        raise ValueError("its overrides are not a list of strings")
    when = datetime.fromisoformat(request["created"]).astimezone()
    table = frame([scalars(cell) | names(cell) for cell in cells], []).astype(object)
    told = table.where(table.notna(), None).to_dict("records")
    return {
        **request,
        "when": when,
        "overrides": [inert(override) for override in overrides],
        "cells": [{**shown, "studies": [*map(inert, cell.get("studies", []))]} for shown, cell in zip(told, cells, strict=True)],
    }
