"""The lines of a figure: whose they are, how they look, and their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes

from reports.kit.panels import position_axis
from reports.kit.style import arms_in_order, line_style, plain

Look = Mapping[str, object]
FIXED_COLOR, STOPPED_COLOR = "#332288", "#d55e00"
"""Colours of fixed solver steps, and of a tolerance."""


def lines_of(
    data: pd.DataFrame, x: str, label: str = "arm", *, marker: float = 0.0
) -> Iterator[tuple[str, dict[str, Any], pd.DataFrame]]:
    """Every arm, or family, in the order of the models: its label, the look of its line (see `line_style`), its rows by x."""
    for name, model in arms_in_order(data, label):
        yield name, line_style(model, marker) | {"label": plain(name)}, data[data[label] == name].sort_values(x)


def shaded(data: pd.DataFrame, keys: str | list[str], color_map: str = "viridis") -> Iterator[tuple[Any, Look, pd.DataFrame]]:
    """Every value of the keys, in the order of the data: the value, a colour of the map with a marker, and its rows."""
    groups = data.groupby(keys, sort=False)
    # The end of the map is too pale for a line.
    colors = colormaps[color_map](np.linspace(0.0, 0.88, max(len(groups), 2)))
    for (value, rows), color in zip(groups, colors, strict=False):
        yield value, {"color": color, "marker": "o", "markersize": 3}, rows


def seed_points(axes: Axes, line: pd.DataFrame, x: str, *, look: Look) -> None:
    """The means of `seed_summary` rows by x with their intervals, or, where there is none, with the seeds as small marks."""
    line = line.sort_values(x)
    ends = line["mean"] - line["low"], line["high"] - line["mean"]
    axes.errorbar(line[x], line["mean"], ends, elinewidth=1.1, **look)
    bare = line[line["half_width"].isna() & (line["n"] > 1)].explode("each")
    axes.plot(bare[x], bare["each"].astype(float), ".", color=look["color"], markersize=3, alpha=0.7)


def banded_lines(axes: Axes, lines: Iterable[tuple[Look, pd.DataFrame]], *, alpha: float = 0.13) -> None:
    """The means by `position` of every (look, rows), and their intervals as a band of the same colour."""
    position_axis(axes)
    for look, line in lines:
        line = line.sort_values("position")
        axes.plot(line["position"], line["mean"], **look)
        axes.fill_between(line["position"], line["low"], line["high"], color=look["color"], alpha=alpha, linewidth=0)
