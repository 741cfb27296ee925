"""How loss, solver steps and conditioning go on beyond the length of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes

from reports.lines import banded_line, lines_of, marked_line, seed_points, shades
from reports.panels import metric_panels, position_axis, row_of_panels, scale_of_metric, ticks_at, with_legend, zero_line
from reports.parts import Cell, Drawing, Frames, NoData, Table
from reports.render import signed, signed_interval
from reports.study import BAND, by_metric, cells_by, less, mean_cell, measured, over_runs, seeds_note
from reports.style import plain
from suite.metrics import axis_label

FACTOR = ["length_factor", "length"]


def summary(frames: Frames, *, task: str, metrics: Sequence[str]) -> pd.DataFrame:
    """One row an arm, length and metric: mean and interval over seeds, and of the NLL also less that at one times the length."""
    keys = ["arm", "model", *FACTOR]
    parts = []
    for metric in metrics:
        rows = measured(frames, stage="length", task=task, metric=metric, whole=True)
        parts.append(by_metric({metric: rows}, keys))
        trained = rows[rows["length_factor"] == 1]
        if metric == "nll" and len(trained):
            paired = less(rows, trained, on=["run_id"], done="evaluated at the training length")
            parts.append(over_runs(paired, "difference", keys, metric="nll", difference=True).assign(metric="nll_difference"))
    return pd.concat(parts, ignore_index=True)


def by_length(frames: Frames, *, task: str, metrics: Sequence[str]) -> Drawing:
    """One panel a metric against the length in multiples of that of training; the loss less that at the training length."""
    data = summary(frames, task=task, metrics=metrics)
    if "nll" in metrics and "nll_difference" not in set(data["metric"]):
        raise NoData("no run was evaluated at the training length, with which the others are compared")
    figure, panels = row_of_panels(len(metrics), width=2.9, beside=1.6, height=3.3)
    for axes, metric in zip(panels, metrics, strict=True):
        shown = data[data["metric"] == ("nll_difference" if metric == "nll" else metric)]
        for arm, model, line in lines_of(shown, "length_factor"):
            seed_points(axes, line, "length_factor", look=marked_line(model, 0.8) | {"label": plain(arm)})
        scale_of_metric(axes, metric)
        axes.set_xscale("log", base=2)
        ticks_at(axes, shown["length_factor"], "{:g}×")
        axes.set(xlabel="length, in training lengths", ylabel=axis_label(metric))
        if metric == "nll":
            zero_line(axes)
            axes.set_ylabel(f"{axis_label(metric)},\ndifference to 1×")
    return with_legend(data, figure, seeds_note(data, "Bars"))


def by_position(frames: Frames, *, task: str, metrics: Sequence[str], model: str) -> Drawing:
    """One panel a metric by position, one line a length, of one model; the training length is marked."""
    tables = {metric: measured(frames, stage="length", task=task, metric=metric, whole=False) for metric in metrics}
    data = by_metric({metric: rows[rows["model"] == model] for metric, rows in tables.items()}, [*FACTOR, *BAND])
    if data.empty:
        raise NoData(f"no run of {model} was evaluated at other lengths (stage length)")
    figure = metric_panels(data, metrics, _lines, width=2.9, beside=1.6, height=3.3)
    return with_legend(data, figure, "The dotted line is the length of training.", seeds_note(data, "Bands"))


def _lines(axes: Axes, data: pd.DataFrame) -> None:
    factors = sorted(data["length_factor"].unique())
    # Shorter sequences above longer ones, which go on where they end.
    for i, (factor, color) in enumerate(zip(factors, shades(len(factors)), strict=True)):
        look = {"color": color, "marker": "o", "markersize": 3, "zorder": 3 - i / len(factors)}
        label = f"{factor:g}× training length"
        banded_line(axes, data[data["length_factor"] == factor], look=look | {"label": label})
    axes.axvline((data["length"] / data["length_factor"]).iloc[0], color="#666666", linestyle=":", linewidth=1.2)
    position_axis(axes)


def table(frames: Frames, *, task: str, metrics: Sequence[str]) -> Table:
    """One row an arm and length, means with intervals over seeds, and what changes up to the longest."""
    data = summary(frames, task=task, metrics=metrics)
    columns = [name for metric in metrics for name in ((metric, "nll_difference") if metric == "nll" else (metric,))]
    columns = [name for name in columns if name in set(data["metric"])]
    rows, notes = [], []
    for arm, _, own in lines_of(data, "length"):
        lengths = cells_by(own, "length", "metric", columns, _cell)
        rows += [(Cell(arm), Cell(f"{length:,.0f}", length), *cells) for length, cells in lengths]
        notes.append(finding(own, arm))
    titles = ["NLL, less 1×" if name == "nll_difference" else axis_label(name) for name in columns]
    return Table(data, ("model", "length", *titles), tuple(rows), (*notes, seeds_note(data, "±")))


def _cell(row: Mapping[str, object], name: str) -> Cell:
    return mean_cell(row, "nll", difference=True, digits=4) if name == "nll_difference" else mean_cell(row, name)


def finding(own: pd.DataFrame, arm: str) -> str:
    """One sentence: what the longest sequences change."""
    longest = own["length_factor"].max()
    ends = own.pivot_table(index="metric", columns="length_factor", values="mean")
    said = []
    if "nll_difference" in ends.index:
        row = own[(own["metric"] == "nll_difference") & (own["length_factor"] == longest)].iloc[0]
        interval = signed_interval(row["low"], row["high"], 4) if row["half_width"] > 0 else ""
        said.append(f"the NLL changes by {signed(row['mean'], 4)} nats{interval}")
    for metric, name in (("solver_steps", "solver steps"), ("condition", "the median condition number")):
        if metric in ends.index and 1 in ends.columns:
            said.append(f"{name} from {ends.loc[metric, 1]:.1f} to {ends.loc[metric, longest]:.1f}")
    if not said:
        return f"{arm}: not evaluated at the training length, with which the others would be compared."
    return f"{arm}, from the training length to {longest:g} times of it: {', '.join(said)}."
