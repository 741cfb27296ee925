"""The panels of a figure, their legend and their axes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from reports.kit.parts import Drawing
from reports.kit.sheet import PAGE_WIDTH, current
from reports.kit.style import plain
from suite.metrics import METRICS, axis_label

WIDE_RANGE = ("readout_error", "readout_error_worst", "largest_readout")
"""Metrics that span so many decades that powers of ten label their axis."""
NARROWER = 0.85
"""The share of its width that a panel may be drawn in before a row is broken."""
LEGEND_LINE = 0.175
"""Inches of a line of a legend on a page."""
ROOM = 0.03
"""The share of an axis that is left beyond a metric's limits, so that no marker is cut."""


def position_axis(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("position [tokens]")
    axes.margins(x=0.02)


def row_of_panels(
    count: int, *, width: float, height: float, beside: float = 0, columns: int = 0, sharey: bool = False
) -> tuple[Figure, Sequence[Axes]]:
    """So many panels of this size in inches, side by side or in rows of `columns`; what is left over of the last stays empty.

    beside: inches for what stands right of them. A row that is wider than the sheet is broken into several.
    """
    sheet, columns = current(), columns or count
    fitting = sheet.columns(columns) if sheet.on_paper else max(1, min(columns, int((PAGE_WIDTH - beside) / (NARROWER * width))))
    rows = -(-count // fitting)
    columns = min(fitting, columns if columns < count else -(-count // rows))
    figure = new_figure(min(PAGE_WIDTH, beside + width * columns), height * rows, rows=rows, columns=columns)
    return figure, used(figure.subplots(rows, columns, sharey=sharey, squeeze=False).flatten().tolist(), count)


def grid_of_panels(
    rows: int, columns: int, *, width: float, height: float, beside: float, height_ratios: Sequence[float] | None = None
) -> tuple[Figure, np.ndarray]:
    """Panels [row, column] that share their y axis along a row; what is too wide for paper goes on in a block below.

    Only the lowest of a block's panels label their x axis, and only its first ones their y axis.
    """
    sheet = current()
    fitting = sheet.columns(columns) if sheet.on_paper else columns
    blocks = -(-columns // fitting)
    figure = new_figure(beside + width * columns, height * rows, rows=rows * blocks, columns=fitting)
    ratios = [*(height_ratios or [1.0] * rows)] * blocks
    drawn = figure.subplots(rows * blocks, fitting, squeeze=False, height_ratios=ratios)
    panels = np.empty((rows, columns), dtype=object)
    for (row, column), _ in np.ndenumerate(panels):
        panels[row, column] = axes = drawn[column // fitting * rows + row, column % fitting]
        if column:
            axes.sharey(panels[row, 0])
        if row:
            axes.sharex(panels[0, column])
        axes.tick_params(labelleft=column % fitting == 0, labelbottom=row == rows - 1)
    for axes in set(drawn.flat) - set(panels.flat):
        axes.set_visible(False)
    return figure, panels


def new_figure(width: float, height: float, *, rows: int = 0, columns: int = 1) -> Figure:
    """A figure of this size in inches that no global state of pyplot knows about.

    On paper it is as wide as the column, and as high as so many rows of panels take; as high as it was where rows is 0.
    """
    sheet = current()
    if sheet.on_paper:
        width = sheet.inches(columns)
        height = rows * (0.9 + 0.42 * width / columns) if rows else height
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def renderer_of(figure: Figure) -> RendererBase:
    """What measures the texts of a figure that `new_figure` made."""
    assert isinstance(figure.canvas, FigureCanvasAgg)
    return figure.canvas.get_renderer()


def used(panels: Sequence[Axes], count: int) -> Sequence[Axes]:
    """The first panels, so many; the others are not shown."""
    for axes in panels[count:]:
        axes.set_visible(False)
    return panels[:count]


def metric_panels(
    data: pd.DataFrame, metrics: Sequence[str], draw: Callable[[Axes, pd.DataFrame], str | None], *, width: float, height: float
) -> Figure:
    """One panel a metric on its scale: draw(axes, the rows of the metric) returns the label of its axis, None for the usual."""
    figure, panels = row_of_panels(len(metrics), width=width, beside=2.0, height=height)
    for axes, metric in zip(panels, metrics, strict=True):
        scale_of_metric(axes, metric)
        label = draw(axes, data[data["metric"] == metric])
        axes.set_ylabel(label or axis_label(metric))
        if label is None:
            within_limits(axes, metric)
    return figure


def within_limits(axes: Axes, metric: str) -> None:
    """Ends the y axis, once everything is drawn, at the limits of the metric, with room for a marker."""
    (low, high), (bottom, top) = METRICS[metric].bounds, axes.get_ylim()
    if axes.get_yscale() == "log":
        room = (top / bottom) ** ROOM
        axes.set_ylim(max(bottom, low / room), min(top, high * room))
    else:
        room = ROOM * (min(top, high) - max(bottom, low))
        axes.set_ylim(max(bottom, low - room), min(top, high + room))


def with_legend(data: pd.DataFrame, figure: Figure, *notes: str, better: str | Sequence[str] = ()) -> Drawing:
    """The drawing with one legend for all panels, each label once: right of them on a page, below them on paper.

    Labels stand in the order in which they were drawn. better: "higher" or "lower", one for all panels or one a panel; then the
    arms stand by the values at which their lines end, best first, before everything else.
    """
    handles: dict[str, Artist] = {}
    for axes in figure.axes:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if better:
        arms = {plain(str(arm)) for name in ("arm", "family") if name in data for arm in data[name].unique()}
        rank = {label: i for i, label in enumerate(by_value(figure, arms, [better] if isinstance(better, str) else better))}
        handles = dict(sorted(handles.items(), key=lambda item: rank.get(item[0], len(rank))))
    if handles:
        (_below if current().on_paper else _beside)(figure, handles)
    return Drawing(data, figure, notes)


def by_value(figure: Figure, labels: set[str], better: Sequence[str]) -> list[str]:
    """Those of the labels that are drawn, by the mean over panels of their place among the values at which lines end."""
    places: dict[str, list[float]] = {}
    panels = [axes for axes in figure.axes if axes.get_visible()]
    for axes, direction in zip(panels, cycle(better), strict=False):
        handles = zip(*axes.get_legend_handles_labels(), strict=True)
        ends = {label: end for handle, label in handles if label in labels for end in _end(handle)}
        for place, label in enumerate(sorted(ends, key=lambda label: ends[label], reverse=direction == "higher")):
            places.setdefault(label, []).append(place / max(1, len(ends) - 1))
    return sorted(places, key=lambda label: float(np.mean(places[label])))


def _end(handle: Any) -> Iterator[float]:
    """The value at which a line, or one with error bars, ends on the right; nothing where it has none."""
    line = handle[0] if isinstance(handle, tuple) else handle
    x, y = (np.asarray(values, dtype=float) for values in line.get_data())
    finite = np.isfinite(y)
    if finite.any():
        yield float(y[finite][np.argmax(x[finite])])


def _beside(figure: Figure, handles: dict[str, Artist]) -> None:
    columns = -(-len(handles) * LEGEND_LINE // figure.get_figheight())
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", ncols=max(1, int(columns)))


def _below(figure: Figure, handles: dict[str, Artist]) -> None:
    """In as many columns as fit; the figure grows by its height."""
    for columns in range(min(len(handles), 6), 0, -1):
        legend = figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)
        box = legend.get_window_extent(renderer_of(figure)).transformed(figure.dpi_scale_trans.inverted())
        if box.width <= figure.get_figwidth() or columns == 1:
            break
        legend.remove()
    figure.set_figheight(figure.get_figheight() + box.height)


def zero_line(axes: Axes) -> None:
    axes.axhline(0, color="black", linewidth=1)


def scale_of_metric(axes: Axes, metric: str) -> None:
    """A logarithmic y axis for what spans decades: an error, or a condition number, with whole numbers at its ticks."""
    if metric in ("condition", *WIDE_RANGE):
        axes.set_yscale("log")
    if metric == "condition":
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def ticks_at(axes: Axes, values: Iterable[float], form: str = "{:g}") -> None:
    """Ticks on the x axis at these values alone, from the least to the greatest."""
    values = sorted(set(values))
    axes.set_xticks(values, labels=[form.format(value) for value in values])
    axes.minorticks_off()


def steps_axis(axes: Axes, steps: pd.Series, label: str) -> None:
    """Solver steps to the right, logarithmic from 1 on, so that 0 is shown."""
    axes.set_xscale("symlog", linthresh=1, linscale=0.5)
    values: list[float] = []
    for value in sorted(steps.unique()):
        # The labels of nearer ones would overlap.
        if not values or value >= 1.5 * values[-1]:
            values.append(value)
    ticks_at(axes, values)
    axes.set_xlabel(label)


def tolerance_axis(axes: Axes, label: str) -> None:
    """The tolerance, logarithmic, from loose to tight."""
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.minorticks_off()
    axes.set_xlabel(label)
