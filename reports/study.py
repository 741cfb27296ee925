"""What the studies of a trained model share: the rows of their stages, means over runs, and how these are printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from reports.parts import Cell, NoData
from reports.render import signed
from reports.statistics import t_interval

BAND = ["position_low", "position_high"]


def of_stage(frame: pd.DataFrame, *, stage: str, task: str, metric: str) -> pd.DataFrame:
    """The rows of one stage, task and metric; raises NoData where there is none."""
    rows = frame[(frame["stage"] == stage) & (frame["metric"] == metric) & (frame["task"] == task)]
    if rows.empty:
        raise NoData(f"no run of {task} has {metric} (stage {stage})")
    return rows


def slice_names(text: str) -> set[str]:
    """The names in a slice as its row spells it: {"solver", "max_steps"} of "max_steps=5, solver=cg"."""
    return {part.partition("=")[0] for part in text.split(", ")} - {""}


def by_band(rows: pd.DataFrame, *, whole: bool) -> pd.DataFrame:
    """The rows over whole sequences, or those of a range of positions."""
    banded = rows["slice"].map(lambda text: BAND[0] in slice_names(text))
    return rows[~banded if whole else banded]


def band_center(table: pd.DataFrame) -> pd.Series:
    """The geometric centre of a range of positions, counted from 1."""
    first = table["position_low"] + 1
    return np.sqrt(first * table["position_high"].clip(lower=first))


def over_runs(table: pd.DataFrame, column: str, keys: Sequence[str]) -> pd.DataFrame:
    """One row a value of the keys: mean, low, high and half_width (95 % t interval over runs), worst (in size) and n."""
    rows = []
    for key, group in table.groupby(list(keys), sort=False, dropna=False):
        values = group[column].to_numpy(dtype=float)
        interval = t_interval(values)
        found = interval._asdict() | {"half_width": interval.half_width, "worst": np.abs(values).max(), "n": len(values)}
        rows.append(dict(zip(keys, key, strict=True)) | found)
    return pd.DataFrame(rows)


def mean_cell(row: Mapping[str, float], *, digits: int, difference: bool) -> Cell:
    """A row of `over_runs`: "1.234 ± 0.056", a difference with its sign."""
    text = signed(row["mean"], digits) if difference else f"{row['mean']:,.{digits}f}"
    interval = f" ±\N{NO-BREAK SPACE}{row['half_width']:,.{digits}f}" if row["half_width"] > 0 else ""
    return Cell(text + interval, row["mean"])


def seeds_note(table: pd.DataFrame, shown: str) -> str:
    """What the intervals of a figure ("Bars") or table ("±") are."""
    seeds = int(table["n"].max())
    if seeds == 1:
        return "One seed (n=1)."
    return f"{shown}{' is half the' if shown == '±' else ':'} 95 % t interval over {seeds} seeds."
