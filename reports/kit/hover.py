"""What a figure tells of a point that is pointed at: whose it is, its value with the interval, and its runs.

Whoever draws a line says which rows its vertices are (`remember`); after the layout is found, `points_of` walks the artists
and says where each lies in the SVG. A line that nobody remembered is told by its label and its numbers alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

REMEMBERED = "_rows_of_vertices"
SVG_DPI = 72
MOST_POINTS = 200
"""Points of a line that can be pointed at: more of them than pixels between them help nobody."""
VALUE = ("mean", "low", "high")
TOLD = ("arm", "family", "at", "position_low", "position_high", "without", "n", "seeds", "runs")
"""What a row says of a point, beside its value."""


@dataclass(frozen=True)
class Told:
    """The rows of a line's vertices, in their order, and what they are.

    label: whose they are where a row has no `arm` or `family`. value: the columns of the value and its interval's ends.
    interval: what the interval is. across: whether the value is to the right rather than upwards.
    """

    rows: pd.DataFrame
    label: str
    value: tuple[str, str, str]
    interval: str
    across: bool


def remember(
    line: Line2D | None,
    rows: pd.DataFrame,
    *,
    label: object = "",
    value: tuple[str, str, str] = VALUE,
    interval: str = "95 % interval",
    across: bool = False,
) -> None:
    """Says which row every vertex of a line is; see `Told`. A container of error bars may have no line, which tells nothing."""
    if line is not None:
        setattr(line, REMEMBERED, Told(rows, str(label), value, interval, across))


def of_each(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a seed of `seed_summary` rows: its value as `mean`, without interval, and its own run where that is known."""
    runs = [str(each).split() for each in rows["runs"]] if "runs" in rows else [[] for _ in range(len(rows))]
    own = [ids if len(ids) == len(each) else [" ".join(ids)] * len(each) for ids, each in zip(runs, rows["each"], strict=True)]
    single = rows.assign(runs=own).explode(["each", "runs"])
    return single.assign(mean=single["each"].astype(float), low=np.nan, high=np.nan, n=1)


def points_of(figure: Figure, runs_of: Callable[[str], Sequence[int]], number: Callable[[str], int | None]) -> dict[str, Any]:
    """The size of a drawn figure in the units of its SVG, and its lines: what is said of them, and their points.

    A point is [x, y in the SVG, what it is at, value, low, high, n, runs]. runs_of: the runs of whoever has a label, where
    rows name none. number: the number of a run on the page, by its id.
    """
    scale = SVG_DPI / figure.dpi
    width, height = figure.get_size_inches() * SVG_DPI
    lines = []
    for axes in figure.axes:
        if not axes.get_visible():
            continue
        taken: set[tuple[int, int]] = set()
        frame = axes.bbox.padded(2)
        # What was said of a vertex goes before what another line through it shows.
        drawn = sorted(axes.get_lines(), key=lambda line: not hasattr(line, REMEMBERED))
        for line in drawn:
            told = getattr(line, REMEMBERED, None)
            own = _told_points(line, told) if told else _bare_points(axes, line)
            placed = []
            for (x, y), point in own:
                spot = (round(x), round(y))
                if frame.contains(x, y) and (told or spot not in taken):
                    taken.add(spot)
                    ids = [found for each in point.pop("runs") if (found := number(each)) is not None]
                    ids = ids or list(runs_of(point["label"]))
                    placed.append((point, [round(x * scale, 1), round(height - y * scale, 1)], ids))
            lines += _by_label(placed, axes, line, told)
    return {"size": [round(width, 2), round(height, 2)], "lines": lines}


def _by_label(
    placed: list[tuple[dict[str, Any], list[float], list[int]]], axes: Axes, line: Line2D, told: Told | None
) -> list[dict[str, Any]]:
    """The points of one artist as the page has them, those of one label together."""
    panel, *names = (_unescaped(text) for text in (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()))
    said = {"panel": panel, "at": names[0], "value": names[1], "color": to_hex(line.get_color())}
    if told and told.across:
        said |= {"at": "", "value": names[0]}
    if told:
        said["interval"] = told.interval
    found: dict[str, dict[str, Any]] = {}
    for point, place, ids in placed:
        own = found.setdefault(point["label"], {"label": point["label"], **said, "points": []})
        own["points"].append([*place, point["at"], *(_plain(point[name]) for name in (*VALUE, "n")), ids])
    return list(found.values())


def _unescaped(text: str) -> str:
    """A text as it was before it was made `plain` for a figure."""
    return " ".join(text.replace(r"\$", "$").split())


def _plain(value: Any) -> float | int | str | None:
    """A text, or a number that JSON has: six digits say more than a picture does."""
    if isinstance(value, str):
        return value
    if value is None or not math.isfinite(value):
        return None
    return int(value) if float(value).is_integer() and abs(value) < 1e15 else float(f"{value:.6g}")


def _vertices(line: Line2D) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which vertices can be pointed at, as indices, their data and where they lie in pixels of the figure."""
    data: np.ndarray = np.ma.filled(np.ma.asarray(line.get_xydata(), dtype=float), np.nan)
    pixels = line.get_transform().transform(data) if len(data) else data.reshape(0, 2)
    kept = np.flatnonzero(np.isfinite(pixels).all(axis=1))
    if len(kept) > MOST_POINTS:
        kept = kept[np.linspace(0, len(kept) - 1, MOST_POINTS).round().astype(int)]
    return kept, data, pixels


def _told_points(line: Line2D, told: Told) -> list[tuple[np.ndarray, dict[str, Any]]]:
    kept, data, pixels = _vertices(line)
    names = [name for name in dict.fromkeys((*TOLD, *told.value)) if name in told.rows]
    columns = [told.rows[name].to_numpy(dtype=object)[kept] for name in names]
    points = []
    for k, *values in zip(kept, *columns, strict=True):
        row = dict(zip(names, values, strict=True))
        label = row.get("arm") or row.get("family") or told.label
        point = {name: row.get(column) for name, column in zip(VALUE, told.value, strict=True)}
        if point["mean"] is None:
            point["mean"] = data[k, 0 if told.across else 1]
        elif pd.isna(point["mean"]):
            # What became of runs without a value, such as those that diverged.
            point["mean"] = row.get("without")
        count, ids = row.get("n", row.get("seeds")), row.get("runs")
        point |= {"label": str(label), "at": _place(row, None if told.across else data[k, 0])}
        points.append((pixels[k], point | {"n": count, "runs": ids.split() if isinstance(ids, str) else []}))
    return points


def _place(row: dict[str, Any], x: float | None) -> str | float | None:
    """What a row is at: its range of positions, counted from 1, or the number on the axis."""
    if "position_low" in row and not pd.isna(row["position_low"]):
        first, last = row["position_low"] + 1, row["position_high"]
        return f"{first:,.0f} to {last:,.0f}" if last > first else f"{first:,.0f}"
    return None if x is None else _plain(row.get("at", x))


def _bare_points(axes: Axes, line: Line2D) -> list[tuple[np.ndarray, dict[str, Any]]]:
    """The vertices of a line that has a label and lies in the axes' own units; a line across all of them has no points."""
    label = str(line.get_label())
    if label.startswith("_") or not all(line.get_transform().contains_branch_seperately(axes.transData)):
        return []
    kept, data, pixels = _vertices(line)
    said = {"label": _unescaped(label), "low": None, "high": None, "n": None}
    return [(pixels[k], said | {"at": _plain(data[k, 0]), "mean": data[k, 1], "runs": []}) for k in kept]
