"""Which value of a setting, as a learning rate, validation chose for every model, and whether the grid was wide enough."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from reports.kit.chosen import along
from reports.kit.parts import Entry, Frames, NoData, Table
from reports.kit.style import arms_in_order
from reports.kit.tables import Column, notes_on, number, opened, rows_of
from suite.metrics import axis_label
from suite.naming import fact_label

INSIDE, LOW, HIGH, ALONE, NONE = "inside the grid", "at its lower end", "at its upper end", "one value", "no score"


def chosen(frames: Frames, *, column: Column, fact: str) -> Table:
    """A row a line: the value that validation prefers, its score, the values tried, and where in the grid it lies.

    fact: a setting that is a number, "train.lr". Raises NoData where it has no values.
    """
    summary = along(frames, column, fact)
    if summary.empty or not pd.api.types.is_numeric_dtype(summary[fact]):
        raise NoData(f"no run of {column.runs} has a number for {fact}")
    data = pd.DataFrame([_chosen(summary[summary["line"] == line], fact) for line, _ in arms_in_order(summary, "line")])
    rows = tuple(_row(row, column) for row in data.to_dict("records"))
    header = ("model", fact_label(fact), axis_label(column.metric), "tried", "where")
    return Table(data, header, rows, (*_said(data, fact_label(fact)), *notes_on(rows_of(frames.cells, column))))


def _chosen(own: pd.DataFrame, fact: str) -> dict[str, Any]:
    """What was chosen of a line; a value whose runs diverged bounds the grid as one that was worse."""
    values, best = sorted(own[fact].unique()), own[own["best"]]
    about = {"line": own["line"].iloc[0], "tried": values}
    if best.empty:
        return {**about, "value": np.nan, "mean": np.nan, "where": NONE, "runs": ""}
    value = best[fact].iloc[0]
    where = ALONE if len(values) == 1 else LOW if value == values[0] else HIGH if value == values[-1] else INSIDE
    return {**about, "value": value, "mean": best["mean"].iloc[0], "where": where, "runs": best["runs"].iloc[0]}


def _row(row: Mapping[str, Any], column: Column) -> tuple[Entry, ...]:
    known = row["where"] != NONE
    return (
        Entry(row["line"]),
        Entry(f"{row['value']:g}" if known else "–", row["value"] if known else None),
        Entry(number(row["mean"], column.metric) if known else "–", row["mean"] if known else None, runs=opened(row)),
        Entry(", ".join(f"{value:g}" for value in row["tried"])),
        Entry(row["where"]),
    )


def _said(data: pd.DataFrame, label: str) -> list[str]:
    """A sentence about the lines whose best is at an end of the grid: beyond it may be a better one."""
    ends = data[data["where"].isin([LOW, HIGH])]
    if ends.empty:
        return [f"Every best {label} that was found lies inside its grid."] if (data["where"] == INSIDE).any() else []
    named = "; ".join(f"{row['line']} {row['where']} ({row['value']:g})" for row in ends.to_dict("records"))
    return [f"The best {label} is at the edge of the grid, and a better one may lie beyond: {named}."]
