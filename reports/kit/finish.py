"""The last touches to a figure before it is saved: text that fits its panel, and what paper has in place of titles."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backend_bases import RendererBase
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import Formatter, LogFormatterSciNotation
from matplotlib.transforms import Bbox

from reports.kit.panels import renderer_of
from reports.kit.render import scientific
from reports.kit.sheet import LEAST, MOST, current

CORNERS = (("left", "top"), ("right", "top"), ("left", "bottom"), ("right", "bottom"))
"""Where the name of a panel may stand: top left before all others."""
EDGE = 3.0
"""Points from the frame to the name of a panel."""
FITS = 2
"""A label in more lines makes its panel smaller, which may be too small for another one then."""
ROOM = 1.0
"""So many times as long as a panel its labels may be."""
LINE_SPACING = 0.85
"""STIX asks for more space between lines than text of this size needs."""
APART = 2.0
"""Points between the labels of two ticks, at the least."""


def finish(figure: Figure) -> None:
    """Fits the texts of a figure to their panels, on paper also to its sizes, and lays it out for good."""
    sheet, panels, titles = current(), [axes for axes in figure.axes if axes.get_visible()], {}
    if sheet.on_paper:
        titles = {axes: axes.get_title() for axes in panels if axes.get_title()}
        _for_paper(figure, panels, sheet.ink)
    _label_rows(panels)
    renderer = renderer_of(figure)
    for axes in panels:
        _spare_measures(axes)
    _lay_out(figure)
    for _ in range(FITS):
        if not any([_fit_labels(axes, renderer) for axes in panels]):
            break
        _lay_out(figure)
    if len(set(titles.values())) > 1 and _name_panels(titles, renderer):
        _lay_out(figure)
    if any([_free_title(axes, renderer) for axes in panels]):
        _lay_out(figure)
    # The layout is found once: with an engine, even the one called "none", matplotlib draws every format twice.
    figure.set_layout_engine(None)
    for axis in (axis for axes in panels for axis in (axes.xaxis, axes.yaxis)):
        _thin_ticks(axis, renderer)


def _lay_out(figure: Figure) -> None:
    engine = figure.get_layout_engine()
    assert engine is not None, "a figure is finished once"
    # The margins of figures within a figure are found in two steps.
    for _ in range(2 if figure.subfigs else 1):
        engine.execute(figure)


def _spare_measures(axes: Axes) -> None:
    """Keeps a layout and every drawing from finding all ticks once more for what these do not move.

    That is a title, which nothing on the upper side of a panel pushes up, and lines beyond whose ticks the labels stand.
    """
    if axes.get_title() and axes.xaxis.get_ticks_position() == "bottom":
        _place_title(axes, 1.0)
    for axis, sides in ((axes.xaxis, ("bottom", "top")), (axes.yaxis, ("left", "right"))):
        told = axis.get_tick_params()
        if all(told[f"label{side}"] or not told[side] for side in sides):
            for side in sides:
                axes.spines[side].set_in_layout(False)


def _free_title(axes: Axes, renderer: RendererBase) -> bool:
    """Lifts a title that would stand on the power of ten above the y axis; returns whether it would."""
    power = axes.yaxis.get_offset_text()
    if not (axes.get_title() and power.get_visible() and power.get_text()):
        return False
    title, covered = axes.title.get_window_extent(renderer), power.get_window_extent(renderer)
    if title.overlaps(covered):
        # The panel is smaller once there is room for it.
        _place_title(axes, 1.0 + 1.1 * (covered.y1 - title.y0) / axes.bbox.height)
        return True
    return False


def _place_title(axes: Axes, y: float) -> None:
    """y: in heights of the panel."""
    axes.set_title(axes.get_title(), y=y, fontproperties=axes.title.get_fontproperties().copy())


class PlainPowers(Formatter):
    """1e-4 where another formatter would print 10 with an exponent, which is smaller than the least size of a paper."""

    def __init__(self, other: Formatter) -> None:
        self.other = other

    def set_locs(self, locs: list[float]) -> None:
        self.other.set_locs(locs)

    def __call__(self, x: float, pos: int | None = None) -> str:
        if not self.other(x, pos):
            return ""
        return f"{x:g}" if x == 0 or 1e-3 <= abs(x) < 1e4 else scientific(x)


def _for_paper(figure: Figure, panels: Sequence[Axes], ink: float) -> None:
    """No titles, sizes of text within those of a paper, thinner lines and smaller markers."""
    for axes in panels:
        axes.set_title("")
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(axis.get_major_formatter(), LogFormatterSciNotation):
                axis.set_major_formatter(PlainPowers(axis.get_major_formatter()))
            if isinstance(axis.get_minor_formatter(), LogFormatterSciNotation):
                axis.set_minor_formatter(PlainPowers(axis.get_minor_formatter()))
    if figure.get_suptitle():
        figure.suptitle("")
    for text in figure.findobj(Text):
        text.set_fontsize(float(np.clip(text.get_fontsize(), LEAST, MOST)))
        text.set_linespacing(LINE_SPACING)
    legends = [legend for each in (figure, *panels) for legend in getattr(each, "legends", [])]
    lines = [line for axes in panels for line in axes.lines]
    for line in (*lines, *(line for legend in legends for line in legend.findobj(Line2D))):
        line.set_linewidth(ink * line.get_linewidth())
        line.set_markersize(ink * line.get_markersize())
        line.set_markeredgewidth(ink * line.get_markeredgewidth())
    for each in (*panels, *legends):
        for bars in each.findobj(LineCollection):
            bars.set_linewidth(ink * np.asarray(bars.get_linewidth()))


def _label_rows(panels: Sequence[Axes]) -> None:
    """A row that begins with a panel whose scale an upper row shares has that row's label too."""
    labelled: list[Axes] = []
    for axes in panels:
        place = axes.get_subplotspec()
        if place is None or not place.is_first_col():
            continue
        if axes.get_ylabel():
            labelled.append(axes)
        for other in labelled:
            if not axes.get_ylabel() and axes.get_shared_y_axes().joined(axes, other):
                axes.set_ylabel(other.get_ylabel())


def _fit_labels(axes: Axes, renderer: RendererBase) -> bool:
    """Breaks the labels of axes that are longer than the panel; returns whether any was."""
    broken = False
    for axis, length in ((axes.xaxis, axes.bbox.width), (axes.yaxis, axes.bbox.height)):
        label = axis.get_label()
        text = " ".join(label.get_text().split())
        box = label.get_window_extent(renderer)
        taken = box.width if axis is axes.xaxis else box.height
        if label.get_visible() and text and taken > ROOM * length:
            longest = max(map(len, label.get_text().split("\n")))
            label.set_text(_broken(text, ROOM * longest * length / taken))
            broken = True
    return broken


def _broken(text: str, letters: float) -> str:
    """The text in lines of so many letters at the most, as even as can be."""
    wrap = partial(textwrap.wrap, text, break_long_words=False)
    lines = len(wrap(max(8, int(letters))))
    return "\n".join(next(found for width in range(8, len(text) + 9) if len(found := wrap(width)) <= lines))


def _name_panels(titles: Mapping[Axes, str], renderer: RendererBase) -> bool:
    """Writes what a panel shows into its first free corner, or above it where none is free; returns whether any is above."""
    outside = False
    for axes, title in titles.items():
        drawn = _drawn_points(axes)
        text = axes.text(0, 0, title, transform=axes.transAxes, fontsize=8.0, linespacing=LINE_SPACING)
        share = axes.bbox.width / text.get_window_extent(renderer).width
        title = title if share > 1.05 else _broken(title, 0.95 * share * len(title))
        text.set_text(title)
        edges = {side: EDGE * axes.figure.dpi / 72 / size for side, size in zip("xy", axes.bbox.size, strict=True)}
        for horizontal, vertical in CORNERS:
            x = edges["x"] if horizontal == "left" else 1 - edges["x"]
            text.set(x=x, y=1 - edges["y"] if vertical == "top" else edges["y"], ha=horizontal, va=vertical)
            if _is_free(text.get_window_extent(renderer), axes.bbox, drawn):
                break
        else:
            text.remove()
            above: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "linespacing": LINE_SPACING}
            axes.annotate(title, (0, 1), xytext=(0, EDGE), fontsize=8.0, **above)
            outside = True
    return outside


def _is_free(box: Bbox, panel: Bbox, drawn: np.ndarray) -> bool:
    """Whether a text lies within the panel and on nothing that is drawn. drawn: [N, 2] in pixels."""
    x, y = drawn.T
    near = box.padded(EDGE)
    covered = (near.x0 <= x) & (x <= near.x1) & (near.y0 <= y) & (y <= near.y1)
    return bool(box.x0 >= panel.x0 and box.x1 <= panel.x1 and not covered.any())


def _drawn_points(axes: Axes) -> np.ndarray:
    """Points along everything that lines draw in a panel [N, 2], in pixels."""
    found = [np.empty((0, 2))]
    for line in axes.lines:
        points = line.get_transform().transform(np.asarray(line.get_xydata(), dtype=float))
        points = points[np.isfinite(points).all(axis=1)]
        if len(points) > 1 and line.get_linestyle() != "None":
            # Within a segment too: it may cross a corner without a point in it.
            shares = np.linspace(0, 1, 17)[:, None, None]
            points = (points[:-1] + shares * (points[1:] - points[:-1])).reshape(-1, 2)
        found.append(points)
    for bars in (each for each in axes.collections if isinstance(each, LineCollection)):
        found += [bars.get_transform().transform(segment) for segment in bars.get_segments() if len(segment)]
    return np.concatenate(found)


def _thin_ticks(axis: Axis, renderer: RendererBase) -> None:
    """Hides the labels of ticks that would touch others, those of minor ticks first."""
    kept: list[Bbox] = []
    gap = APART * axis.axes.figure.dpi / 72
    # The ticks are where they are drawn once their labels are asked for.
    axis.get_ticklabels(which="both")
    for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
        label = tick.label1
        low, high = sorted(axis.get_view_interval())
        if not (label.get_visible() and label.get_text() and low <= tick.get_loc() <= high) or label.get_rotation() % 90:
            continue
        box = label.get_window_extent(renderer)
        padded = Bbox.from_extents(box.x0 - gap, box.y0, box.x1 + gap, box.y1)
        if any(padded.overlaps(other) for other in kept):
            label.set_visible(False)
        else:
            kept.append(box)
