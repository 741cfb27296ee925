"""What the frames of suite.results are made of: files of a store that are read or skipped with a warning, and inert values.

Imports no torch.
"""

from __future__ import annotations

import math
import warnings
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
