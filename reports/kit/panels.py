"""The panels of a figure, their legend and their axes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from reports.kit.parts import Drawing
from suite.metrics import axis_label

WIDE_RANGE = ("readout_error", "readout_error_worst", "largest_readout")
"""Metrics that span so many decades that powers of ten label their axis."""


def position_axis(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("position [tokens]")
    axes.margins(x=0.02)


def row_of_panels(
    count: int, *, width: float, height: float, beside: float = 0, columns: int = 0, sharey: bool = False
) -> tuple[Figure, Sequence[Axes]]:
    """So many panels of this size in inches, side by side or in rows of `columns`; what is left over of the last stays empty.

    beside: inches for what stands right of them.
    """
    columns = columns or count
    rows = -(-count // columns)
    figure = new_figure(beside + width * columns, height * rows)
    return figure, used(figure.subplots(rows, columns, sharey=sharey, squeeze=False).flatten(), count)


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches that no global state of pyplot knows about."""
    return Figure(figsize=(width, height), layout="constrained")


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
        axes.set_ylabel(draw(axes, data[data["metric"] == metric]) or axis_label(metric))
    return figure


def with_legend(data: pd.DataFrame, figure: Figure, *notes: str) -> Drawing:
    """The drawing with one legend right of all panels, each label once, in the order in which they were drawn."""
    handles = {}
    for axes in figure.axes:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper")
    return Drawing(data, figure, notes)


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
