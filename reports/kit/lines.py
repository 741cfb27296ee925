"""The lines of a figure: whose they are, how they look, and their intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes

from reports.kit.hover import of_each, remember
from reports.kit.panels import position_axis
from reports.kit.style import arms_in_order, line_style, plain

Look = Mapping[str, object]
FURTHER = ("--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
"""Dashes of the second line of a model, of the third and of others."""
BAND = 0.18
"""How opaque a band is where there are few."""
MANY_BANDS = 8
"""More bands that are filled hide one another."""
FIXED_COLOR, STOPPED_COLOR = "#332288", "#d55e00"
"""Colours of fixed solver steps, and of a tolerance."""
FIRST_POSITIONS = 0.25
"""The share of the positions, on a logarithmic axis, whose spikes may run out of an enlarged panel."""


def lines_of(
    data: pd.DataFrame, x: str, label: str = "arm", *, marker: float = 0.0
) -> Iterator[tuple[str, dict[str, Any], pd.DataFrame]]:
    """Every arm, or family, in the order of the models: its label, the look of its line (see `line_style`), its rows by x.

    A second line of a model is dashed, and further ones in other ways.
    """
    drawn: Counter[str] = Counter()
    for name, model in arms_in_order(data, label):
        look = line_style(model, marker) | {"label": plain(name)}
        if drawn[model]:
            look["linestyle"] = FURTHER[(drawn[model] - 1) % len(FURTHER)]
        drawn[model] += 1
        yield name, look, data[data[label] == name].sort_values(x)


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
    drawn = axes.errorbar(line[x], line["mean"], ends, elinewidth=1.1, **look)
    remember(drawn.lines[0], line, label=look.get("label", ""))
    bare = of_each(line[line["half_width"].isna() & (line["n"] > 1)])
    (seeds,) = axes.plot(bare[x], bare["mean"], ".", color=look["color"], markersize=3, alpha=0.7)
    remember(seeds, bare, label=look.get("label", ""))


def banded_lines(axes: Axes, lines: Iterable[tuple[Look, pd.DataFrame]]) -> None:
    """The means by `position` of every (look, rows), and their intervals as a band of the same colour.

    The more bands, the paler each; of more than MANY_BANDS those of the widest lines alone are filled, the others are edges.
    """
    position_axis(axes)
    drawn: list[tuple[Mapping[str, Any], pd.DataFrame]] = [(look, line.sort_values("position")) for look, line in lines]
    widths = [float(look.get("linewidth", 0.0)) for look, _ in drawn]
    alpha = BAND / max(1.0, len(drawn) / 4) ** 0.5
    for (look, line), width in zip(drawn, widths, strict=True):
        (mean,) = axes.plot(line["position"], line["mean"], **look)
        remember(mean, line, label=look.get("label", ""))
        ends = line["position"], line["low"], line["high"]
        if len(drawn) <= MANY_BANDS or width == max(widths) > min(widths):
            axes.fill_between(*ends, color=look["color"], alpha=alpha, linewidth=0, zorder=1.5)
        else:
            axes.fill_between(*ends, facecolor="none", edgecolor=look["color"], alpha=0.35, linewidth=0.4, zorder=1.5)


def enlarged_range(data: pd.DataFrame) -> tuple[float, float]:
    """From where to where the means of these lines go, and most of their bands; zero is in it.

    Where the first positions alone make it more than twice as wide, these run out of the frame.
    """
    late = data[data["position"] > np.exp(np.log(data["position"]).quantile(FIRST_POSITIONS))]
    whole, later = (np.ptp([0.0, *part["mean"]]) for part in (data, late))
    inner = late if len(late) and whole > 2 * later > 0 else data
    ends = inner[["low", "high"]].dropna()
    most = [ends["low"].quantile(0.1), ends["high"].quantile(0.9)] if len(ends) else []
    low, high = min(0.0, *inner["mean"], *most), max(0.0, *inner["mean"], *most)
    room = 0.06 * (high - low or 1.0)
    return low - room, high + room
