"""What a trained Mesa layer loses with fewer solver steps (Figure 5 of MesaNet, arXiv 2506.05233): the figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import StrMethodFormatter

from reports.kit.arguments import Metric, Task
from reports.kit.lines import banded_lines, lines_of, seed_points, shaded
from reports.kit.panels import row_of_panels, steps_axis, tolerance_axis, with_legend, zero_line
from reports.kit.parts import Drawing, Frames
from reports.kit.published import printed_accuracy
from reports.kit.rows import bands_note, measured, over_runs, position_differences, seeds_note
from reports.kit.solver import SETTING, at_steps, is_fixed, is_stopped, less_fixed, setting_label, setting_order, setting_scores
from suite.metrics import axis_label
from suite.naming import task_label

OTHER_STARTS = {"query": ("s", "start at the query"), "zero": ("v", "start at zero")}
PRINTED = {"global": ("o", "#4a4a4a"), "local": ("s", "#838383"), "recall": ("^", "#222222")}


def by_setting(frames: Frames, *, task: Task, metric: Metric, steps: int, bound: float, printed: bool) -> Drawing:
    """A score less that of the same model at `steps` fixed steps, by the number of steps and by the tolerance.

    bound: a difference below it counts as none, and is shaded. printed: whether the score is an accuracy, which is shown in
    points of 100 beside what the paper prints.
    """
    unit, scale = ("of 100 points", 100) if printed else ("nats", 1)
    scores = less_fixed(setting_scores(frames, task=task, metric=metric), steps=steps)
    scores["difference"] *= scale
    data = over_runs(scores, ["arm", "model", *SETTING], metric=metric)
    figure, panels = row_of_panels(2, width=4.3, height=3.6, sharey=True)
    for axes in panels:
        _differences_axis(axes, bound, unit)
    _settings(panels, data)
    note = seeds_note(data, "Bars")
    if printed:
        figure.suptitle(f"filled: {task_label(task)} here; dotted: benchmark averages in the paper", fontsize=9)
        data = pd.concat([data.assign(source="measured", dataset=task), _printed(panels, steps)])
    panels[0].set_ylabel(f"{axis_label(metric)}, difference to {steps} steps{' [points]' if printed else ''}")
    return with_legend(data, figure, note)


def _differences_axis(axes: Axes, bound: float, unit: str) -> None:
    """Differences to both sides of zero: linear in the shaded range, where they count as none, logarithmic beyond."""
    axes.set_yscale("symlog", linthresh=bound, linscale=0.6)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.axhspan(-bound, bound, color="#eeeeee", zorder=0.5, label=f"within {bound:g} {unit}")
    zero_line(axes)


def _printed(panels: Sequence[Axes], steps: int) -> pd.DataFrame:
    """Draws what the paper prints, and returns it."""
    printed = printed_accuracy(steps=steps)
    for dataset, rows in printed.groupby("dataset"):
        marker, color = PRINTED[dataset]
        look = {"marker": marker, "color": color, "markerfacecolor": "none", "linewidth": 0.7, "linestyle": ":", "markersize": 5}
        for axes, line, x in _by_steps_and_tolerance(panels, rows, rows["tolerance"] == 0, rows["tolerance"] > 0):
            axes.plot(line[x], line["difference"], label=f"paper, {dataset}", **look)
    return printed.rename(columns={"difference": "mean"}).drop(columns="value").assign(source="printed")


def _by_steps_and_tolerance(panels: Sequence[Axes], rows: pd.DataFrame, fixed: pd.Series, stopped: pd.Series) -> Iterator:
    """(panel, its rows in order, their x): fixed steps on the left, tolerances on the right."""
    for axes, x, shown in zip(panels, ("max_steps", "tolerance"), (fixed, stopped), strict=True):
        yield axes, rows[shown].sort_values(x), x


def _settings(panels: Sequence[Axes], data: pd.DataFrame) -> None:
    """The settings with fixed steps on the left, those with a tolerance on the right."""
    for _, look, own in lines_of(data, "max_steps", marker=0.8):
        for axes, line, x in _by_steps_and_tolerance(panels, own, is_fixed(own), is_stopped(own)):
            seed_points(axes, line, x, look=look)
        for initial, (marker, label) in OTHER_STARTS.items():
            start = own[(own["tolerance"] == 0) & (own["initial"] == initial) & (own["solver"] == "cg")]
            if len(start):
                hollow = {"marker": marker, "color": look["color"], "markerfacecolor": "white", "linestyle": "none"}
                panels[0].plot(start["max_steps"], start["mean"], label=label, markersize=5, **hollow)
    steps_axis(panels[0], data.loc[is_fixed(data), "max_steps"], "solver steps, the same for all tokens")
    tolerance_axis(panels[1], "tolerance eps, each token until its residual is below it")


def nll_by_position(frames: Frames, *, task: Task, steps: int, bound: float) -> Drawing:
    """NLL less that at `steps` fixed steps, by position, paired by document and seed: where fewer steps hurt.

    bound: as in `by_setting`.
    """
    rows = measured(frames.examples, stage="solver", task=task, metric="nll", whole=False)
    done = f"evaluated at {steps} fixed steps"
    data = setting_order(position_differences(rows, at_steps(rows, steps), SETTING, on=["run_id"], done=done))
    figure, panels = row_of_panels(2, width=4.8, height=3.6, sharey=True)
    parts = {"fixed steps": (is_fixed(data), "viridis"), "tolerance": (is_stopped(data), "plasma")}
    for axes, (title, (shown, colors)) in zip(panels, parts.items(), strict=True):
        _differences_axis(axes, bound, "nats")
        lines = shaded(data[shown], SETTING, colors)
        banded_lines(axes, ((look | {"label": setting_label(*setting)}, line) for setting, look, line in lines))
        axes.set_title(title)
    panels[0].set_ylabel(f"{axis_label('nll')}, difference to {steps} steps")
    return with_legend(data, figure, bands_note(data))
