"""The lines of a figure: whose they are, how they look, and their intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes

from reports.style import arms_in_order, line_style, marker_size, style_of

Look = Mapping[str, object]
FIXED_COLOR, STOPPED_COLOR = "#332288", "#d55e00"
"""Colours of fixed solver steps, and of a tolerance."""


def lines_of(data: pd.DataFrame, x: str, label: str = "arm") -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Every arm, or family, with its model and its rows by x, in the order of the models."""
    for name, model in arms_in_order(data, label):
        yield name, model, data[data[label] == name].sort_values(x)


def marked_line(model: str, size: float) -> dict[str, object]:
    """The look of a model's line with its marker, `size` times as large as usual."""
    return line_style(model) | {"marker": style_of(model).marker, "markersize": size * marker_size(model)}


def shades(count: int, name: str = "viridis") -> np.ndarray:
    """So many colours of a colour map, without the end that is too pale for a line."""
    return colormaps[name](np.linspace(0.0, 0.88, max(count, 2)))[:count]


def seed_points(axes: Axes, line: pd.DataFrame, x: str, *, look: Look, scale: float = 1.0) -> None:
    """The means of `seed_summary` rows by x with their intervals, or, where there is none, with the seeds as small marks."""
    line = line.sort_values(x)
    ends = line["mean"] - line["low"], line["high"] - line["mean"]
    axes.errorbar(line[x], scale * line["mean"], [scale * end for end in ends], elinewidth=1.1, **look)
    bare = line[line["half_width"].isna() & (line["n"] > 1)].explode("each")
    axes.plot(bare[x], scale * bare["each"].astype(float), ".", color=look["color"], markersize=3, alpha=0.7)


def banded_line(axes: Axes, line: pd.DataFrame, *, look: Look, alpha: float = 0.13) -> None:
    """The means by `position`, and their intervals as a band of the same colour."""
    line = line.sort_values("position")
    axes.plot(line["position"], line["mean"], **look)
    axes.fill_between(line["position"], line["low"], line["high"], color=look["color"], alpha=alpha, linewidth=0)
