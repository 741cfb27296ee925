"""The lines of a figure: whose they are, how they look, and their intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection

from reports.kit.hover import of_each, remember
from reports.kit.panels import position_axis
from reports.kit.style import arms_in_order, line_style, plain

Look = Mapping[str, object]
_Band = tuple[np.ndarray, Any]
"""The outline of a band [N, 2], and its colour."""
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
    rows = dict(tuple(data.sort_values(x, kind="stable").groupby(label, sort=False)))
    for name, model in arms_in_order(data, label):
        look = line_style(model, marker) | {"label": plain(name)}
        if drawn[model]:
            look["linestyle"] = FURTHER[(drawn[model] - 1) % len(FURTHER)]
        drawn[model] += 1
        yield name, look, rows[name]


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
    bare = line[line["half_width"].isna() & (line["n"] > 1)]
    if len(bare):
        bare = of_each(bare)
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
    filled, edges = list[_Band](), list[_Band]()
    for (look, line), width in zip(drawn, widths, strict=True):
        position, low, high = (line[name].to_numpy(dtype=float) for name in ("position", "low", "high"))
        (mean,) = axes.plot(position, line["mean"].to_numpy(dtype=float), **look)
        remember(mean, line, label=look.get("label", ""))
        is_filled = len(drawn) <= MANY_BANDS or width == max(widths) > min(widths)
        (filled if is_filled else edges).extend((each, look["color"]) for each in _outlines(position, low, high))
    # One artist for all bands of a kind: every artist costs time in the layout and in each of the formats.
    for bands, line_width, opacity in ((filled, 0.0, alpha), (edges, 0.4, 0.35)):
        if bands:
            outlines, colors = zip(*bands, strict=True)
            # A list, since a pair of words would be a colour and how opaque it is.
            own = list(colors)
            faces, lines_of_bands = (own, "none") if bands is filled else ("none", own)
            shared: dict[str, Any] = {"alpha": opacity, "linewidths": line_width, "zorder": 1.5}
            axes.add_collection(PolyCollection(outlines, facecolors=faces, edgecolors=lines_of_bands, **shared))
    axes.autoscale_view()


def _outlines(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> Iterator[np.ndarray]:
    """The closed outlines [N, 2] of a band, one a stretch of places at which both of its ends are known."""
    known = np.isfinite(low) & np.isfinite(high)
    for places in np.split(np.arange(len(x)), np.flatnonzero(np.diff(known)) + 1):
        if len(places) > 1 and known[places[0]]:
            there, back = (np.column_stack([x[places], ends[places]]) for ends in (low, high))
            yield np.concatenate([there, back[::-1]])


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
