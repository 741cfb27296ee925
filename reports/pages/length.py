"""How loss, solver steps and conditioning go on beyond the length of training."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from reports.kit.arguments import Metric, Model, Task
from reports.kit.lines import banded_lines, lines_of, seed_points, shaded
from reports.kit.panels import metric_panels, ticks_at, with_legend, zero_line
from reports.kit.parts import Drawing, Entry, Frames, NoData, Table
from reports.kit.render import signed, signed_interval
from reports.kit.rows import BAND, by_metric, less, measured, seeds_note
from reports.kit.tables import entries_by, mean_entry
from suite.metrics import METRICS, axis_label

FACTOR = ["length_factor", "length"]


def summary(frames: Frames, *, task: str, metrics: Sequence[str]) -> pd.DataFrame:
    """One row an arm, length and metric: mean and interval over seeds, and of the NLL also less that at one times the length."""
    tables = {}
    for metric in metrics:
        tables[metric] = rows = measured(frames.results, stage="length", task=task, metric=metric, whole=True)
        trained = rows[rows["length_factor"] == 1]
        if metric == "nll" and len(trained):
            # Lengths that another command asked for are of other windows, and so of other tokens.
            tables["nll_difference"] = less(rows, trained, on=["run_id", "count"], done="evaluated at the training length")
    return by_metric(tables, ["arm", "model", *FACTOR])


def by_length(frames: Frames, *, task: Task, metrics: Sequence[Metric]) -> Drawing:
    """One panel a metric against the length in multiples of that of training; the loss less that at the training length."""
    data = summary(frames, task=task, metrics=metrics)
    if "nll" in metrics and "nll_difference" not in set(data["metric"]):
        raise NoData("no run was evaluated at the training length, with which the others are compared")
    shown = data[data["metric"] != "nll"].replace({"metric": {"nll_difference": "nll"}})
    figure = metric_panels(shown, metrics, _points, width=2.9, height=3.3)
    return with_legend(data, figure, seeds_note(data, "Bars"), better=[METRICS[metric].better for metric in metrics])


def _points(axes: Axes, data: pd.DataFrame) -> str | None:
    for _, look, line in lines_of(data, "length_factor", marker=0.8):
        seed_points(axes, line, "length_factor", look=look)
    axes.set_xscale("log", base=2)
    ticks_at(axes, data["length_factor"], "{:g}×")
    axes.set_xlabel("length, in training lengths")
    if "nll" in set(data["metric"]):
        zero_line(axes)
        return f"{axis_label('nll')},\ndifference to 1×"
    return None


def by_position(frames: Frames, *, task: Task, metrics: Sequence[Metric], model: Model) -> Drawing:
    """One panel a metric by position, one line a length, of one model; the training length is marked."""
    tables = {m: measured(frames.results, stage="length", task=task, metric=m, whole=False) for m in metrics}
    data = by_metric({metric: rows[rows["model"] == model] for metric, rows in tables.items()}, [*FACTOR, *BAND])
    if data.empty:
        raise NoData(f"no run of {model} was evaluated at other lengths (stage length)")
    figure = metric_panels(data.sort_values("length_factor"), metrics, _lines, width=2.9, height=3.3)
    return with_legend(data, figure, "The dotted line is the length of training.", seeds_note(data, "Bands"))


def _lines(axes: Axes, data: pd.DataFrame) -> None:
    # Shorter sequences above longer ones, which go on where they end.
    lines = enumerate(shaded(data, "length_factor"))
    own = ((look | {"label": f"{factor:g}× training length", "zorder": 3 - i / 100}, line) for i, (factor, look, line) in lines)
    banded_lines(axes, own)
    axes.axvline((data["length"] / data["length_factor"]).iloc[0], color="#666666", linestyle=":", linewidth=1.2)


def table(frames: Frames, *, task: Task, metrics: Sequence[Metric]) -> Table:
    """One row an arm and length, means with intervals over seeds, and what changes up to the longest."""
    data = summary(frames, task=task, metrics=metrics)
    # The difference of the NLL stands behind the NLL.
    columns = list(dict.fromkeys(data["metric"]))
    rows, notes = [], []
    for arm, _, own in lines_of(data, "length"):
        lengths = entries_by(own, "length", "metric", columns, _entry)
        rows += [(Entry(arm), Entry(f"{length:,.0f}", length), *entries) for length, entries in lengths]
        notes.append(finding(own, arm))
    titles = ["NLL, less 1×" if name == "nll_difference" else axis_label(name) for name in columns]
    return Table(data, ("model", "length", *titles), tuple(rows), (*notes, seeds_note(data, "±")))


def _entry(row: dict, name: str) -> Entry:
    return mean_entry(row, "nll", difference=True, digits=4) if name == "nll_difference" else mean_entry(row, name)


def finding(own: pd.DataFrame, arm: str) -> str:
    """One sentence: what the longest sequences change."""
    longest = own["length_factor"].max()
    ends = own.pivot_table(index="metric", columns="length_factor", values="mean")
    said = []
    for row in own[(own["metric"] == "nll_difference") & (own["length_factor"] == longest)].to_dict("records"):
        interval = signed_interval(row["low"], row["high"], 4) if row["half_width"] > 0 else ""
        said.append(f"the NLL changes by {signed(row['mean'], 4)} nats{interval}")
    for metric, name in (("solver_steps", "solver steps"), ("condition", "the median condition number")):
        if metric in ends.index and 1 in ends.columns:
            said.append(f"{name} from {ends.loc[metric, 1]:.1f} to {ends.loc[metric, longest]:.1f}")
    if not said:
        return f"{arm}: not evaluated at the training length, with which the others would be compared."
    return f"{arm}, from the training length to {longest:g} times of it: {', '.join(said)}."
