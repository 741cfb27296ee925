"""How loss, solver steps and conditioning go on beyond the length of training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes

from reports.parts import Cell, Drawing, Frames, NoData, Table
from reports.render import signed
from reports.solver import position_axis
from reports.study import BAND, band_center, by_band, mean_cell, of_stage, over_runs, seed_points, seeds_note
from reports.style import arms_in_order, line_style, logarithmic, marker_size, new_figure, plain, shared_legend, style_of
from suite.metrics import METRICS, axis_label

FACTOR = ["length_factor", "length"]


def length_rows(frames: Frames, *, task: str, metric: str, whole: bool) -> pd.DataFrame:
    """The rows of the stage `length`, over whole sequences or by range of positions."""
    rows = of_stage(frames.results, stage="length", task=task, metric=metric)
    rows = by_band(rows, whole=whole).dropna(subset="value")
    if rows.empty:
        raise NoData(f"no run of {task} has {metric} {'by length' if whole else 'by length and position'} (stage length)")
    return rows


def summary(frames: Frames, *, task: str, metrics: Sequence[str]) -> pd.DataFrame:
    """One row an arm, length and metric: mean and interval over seeds, and of the NLL also less that at one times the length."""
    parts = []
    for metric in metrics:
        rows = length_rows(frames, task=task, metric=metric, whole=True)
        parts.append(over_runs(rows, "value", ["arm", "model", *FACTOR], metric=metric).assign(metric=metric))
        if metric == "nll":
            trained = rows[rows["length_factor"] == 1][["run_id", "value"]]
            paired = rows.merge(trained, on="run_id", suffixes=("", "_trained"))
            paired["difference"] = paired["value"] - paired["value_trained"]
            if len(paired):
                difference = over_runs(paired, "difference", ["arm", "model", *FACTOR], metric="nll", difference=True)
                parts.append(difference.assign(metric="nll_difference"))
    return pd.concat(parts, ignore_index=True)


def by_length(frames: Frames, *, task: str, metrics: Sequence[str]) -> Drawing:
    """One panel a metric against the length in multiples of that of training; the loss less that at the training length."""
    data = summary(frames, task=task, metrics=metrics)
    if "nll" in metrics and "nll_difference" not in set(data["metric"]):
        raise NoData("no run was evaluated at the training length, with which the others are compared")
    figure = new_figure(1.6 + 2.9 * len(metrics), 3.3)
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        shown = data[data["metric"] == ("nll_difference" if metric == "nll" else metric)]
        for arm, model in arms_in_order(shown):
            line, style = shown[shown["arm"] == arm].sort_values("length_factor"), style_of(model)
            look = line_style(model) | {"marker": style.marker, "markersize": 0.8 * marker_size(model), "elinewidth": 1.1}
            seed_points(axes, line["length_factor"], line, look=look | {"label": plain(arm)})
        if metric == "nll":
            axes.axhline(0, color="black", linewidth=1)
        elif metric == "condition":
            logarithmic(axes)
        axes.set_xscale("log", base=2)
        factors = sorted(shown["length_factor"].unique())
        axes.set_xticks(factors, labels=[f"{factor:g}×" for factor in factors])
        axes.minorticks_off()
        label = axis_label(metric)
        axes.set(xlabel="length, in training lengths", ylabel=f"{label},\ndifference to 1×" if metric == "nll" else label)
    shared_legend(figure)
    return Drawing(data, figure, (seeds_note(data, "Bars"),))


def by_position(frames: Frames, *, task: str, metrics: Sequence[str], model: str) -> Drawing:
    """One panel a metric by position, one line a length, of one model; the training length is marked."""
    parts = []
    for metric in metrics:
        rows = length_rows(frames, task=task, metric=metric, whole=False)
        parts.append(over_runs(rows[rows["model"] == model], "value", [*FACTOR, *BAND], metric=metric).assign(metric=metric))
    data = pd.concat(parts, ignore_index=True)
    if data.empty:
        raise NoData(f"no run of {model} was evaluated at other lengths (stage length)")
    data["position"] = band_center(data)
    figure = new_figure(1.6 + 2.9 * len(metrics), 3.3)
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        _lines(axes, data[data["metric"] == metric])
        axes.set_ylabel(axis_label(metric))
        if metric == "condition":
            logarithmic(axes)
    shared_legend(figure)
    return Drawing(data, figure, ("The dotted line is the length of training.", seeds_note(data, "Bands")))


def _lines(axes: Axes, data: pd.DataFrame) -> None:
    factors = sorted(data["length_factor"].unique())
    colors = colormaps["viridis"](np.linspace(0.0, 0.88, max(len(factors), 2)))
    # Shorter sequences above longer ones, which go on where they end.
    for i, (factor, color) in enumerate(zip(factors, colors, strict=False)):
        line = data[data["length_factor"] == factor].sort_values("position")
        look = {"color": color, "marker": "o", "markersize": 3, "zorder": 3 - i / len(factors)}
        axes.plot(line["position"], line["mean"], label=f"{factor:g}× training length", **look)
        axes.fill_between(line["position"], line["low"], line["high"], color=color, alpha=0.13, linewidth=0)
    axes.axvline((data["length"] / data["length_factor"]).iloc[0], color="#666666", linestyle=":", linewidth=1.2)
    position_axis(axes)


def table(frames: Frames, *, task: str, metrics: Sequence[str]) -> Table:
    """One row an arm and length, means with intervals over seeds, and what changes up to the longest."""
    data = summary(frames, task=task, metrics=metrics)
    columns = [name for metric in metrics for name in ((metric, "nll_difference") if metric == "nll" else (metric,))]
    columns = [name for name in columns if name in set(data["metric"])]
    rows = []
    for arm, _ in arms_in_order(data):
        own = data[data["arm"] == arm]
        for (_, length), group in own.groupby(FACTOR):
            found = group.set_index("metric")
            cells = (_cell(found.loc[name], name) if name in found.index else Cell("–") for name in columns)
            rows.append((Cell(arm), Cell(f"{length:,.0f}", length), *cells))
    titles = ["NLL, less 1×" if name == "nll_difference" else axis_label(name) for name in columns]
    notes = [finding(data[data["arm"] == arm], arm) for arm, _ in arms_in_order(data)]
    return Table(data, ("model", "length", *titles), tuple(rows), (*notes, seeds_note(data, "±")))


def _cell(row: pd.Series, name: str) -> Cell:
    difference = name == "nll_difference"
    return mean_cell(row, digits=4 if difference else METRICS[name].digits, difference=difference)


def finding(own: pd.DataFrame, arm: str) -> str:
    """One sentence: what the longest sequences change."""
    longest = own["length_factor"].max()
    ends = own.pivot_table(index="metric", columns="length_factor", values="mean")
    said = []
    if "nll_difference" in ends.index:
        row = own[(own["metric"] == "nll_difference") & (own["length_factor"] == longest)].iloc[0]
        interval = f" [{signed(row['low'], 4)}, {signed(row['high'], 4)}]" if row["half_width"] > 0 else ""
        said.append(f"the NLL changes by {signed(row['mean'], 4)} nats{interval}")
    for metric, name in (("solver_steps", "solver steps"), ("condition", "the median condition number")):
        if metric in ends.index and 1 in ends.columns:
            said.append(f"{name} from {ends.loc[metric, 1]:.1f} to {ends.loc[metric, longest]:.1f}")
    if not said:
        return f"{arm}: not evaluated at the training length, with which the others would be compared."
    return f"{arm}, from the training length to {longest:g} times of it: {', '.join(said)}."
