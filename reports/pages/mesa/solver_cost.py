"""What the steps of a Mesa layer's solver cost and buy: table and figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np
import pandas as pd

from conf.settings import Settings
from reports.kit.arguments import Metric, Task
from reports.kit.lines import FIXED_COLOR, STOPPED_COLOR, seed_points
from reports.kit.panels import row_of_panels, tolerance_axis, with_legend
from reports.kit.parts import Drawing, Entry, Frames, NoData, Table
from reports.kit.rows import by_metric, over_runs, seeds_note
from reports.kit.solver import (
    RUN,
    SETTING,
    SPENT,
    is_fixed,
    is_stopped,
    less_fixed,
    setting_label,
    setting_order,
    setting_scores,
    verdict,
)
from reports.kit.tables import entries_by, mean_entry
from suite.metrics import METRICS, axis_label
from suite.naming import task_label

CHUNK_COLOR = "#e69f00"
TIME = "microseconds_per_token"
COSTS = (SPENT, "solver_chunk_steps", "solver_residual", "relative_time", TIME)


class Score(Settings, kw_only=True):
    """A metric of a task."""

    task: Task
    metric: Metric


def by_setting(frames: Frames, *, scores: Sequence[Score], steps: int, tolerance: float, bound: float) -> Table:
    """One row a setting: what it scores less `steps` fixed steps, and what it costs; means with 95 % t intervals over seeds.

    scores: a column each; the costs are those of the first's task. Its notes say whether `tolerance`
    reproduces the NLL of `steps` steps within `bound` nats at no more than half of the steps.
    """
    first = scores[0].task
    asked = [(score.task, score.metric) for score in scores]
    tables, parts = {}, {}
    for task, metric in (*asked, *((first, metric) for metric in COSTS)):
        with suppress(NoData):
            table = quiet_times(frames, task) if metric == TIME else setting_scores(frames, task=task, metric=metric)
            tables[task, metric] = less_fixed(table, steps=steps) if (task, metric) in asked else table
    if not tables:
        raise NoData(f"no run of {', '.join(task for task, _ in asked)} was evaluated at other settings (stage solver)")
    for (task, metric), table in tables.items():
        about = {"task": task, "metric": metric, "less_steps": steps if (task, metric) in asked else np.nan}
        parts[task, metric] = over_runs(table, SETTING, metric=metric).assign(**about)
    data = pd.concat(parts.values(), ignore_index=True)
    settings = entries_by(setting_order(data), SETTING, ["task", "metric"], parts, _entry)
    rows = tuple((Entry(setting_label(*setting)), *entries) for setting, entries in settings)
    titles = [
        f"{task_label(key[0])} {axis_label(key[1])}, less {steps} steps" if key in asked else axis_label(key[1]) for key in parts
    ]
    said = [verdict(frames, task=first, steps=steps, tolerance=tolerance, bound=bound)] if (first, "nll") in parts else []
    return Table(data, ("setting", *titles), rows, (*said, seeds_note(data, "±")))


def quiet_times(frames: Frames, task: str) -> pd.DataFrame:
    """`setting_scores` of the time per token: the relative time, by the fastest pass with the own solver at any setting.

    The settings of a run are timed at different moments, and a machine that does other things then is slower by any factor.
    """
    times, relative = (setting_scores(frames, task=task, metric=metric) for metric in (TIME, "relative_time"))
    both = times.merge(relative, on=[*RUN, *SETTING], suffixes=("", "_relative"))
    fastest = (both["value"] / both["value_relative"]).groupby(both["run_id"]).transform("min")
    return both.assign(value=both["value_relative"] * fastest).drop(columns="value_relative")


def _entry(row: Mapping[str, object], column: tuple[str, str]) -> Entry:
    # Differences in nats matter from the fifth digit on, those of an accuracy as they are printed elsewhere.
    digits = 5 if column[1] == "nll" else None
    return mean_entry(row, column[1], digits=digits, difference=row["less_steps"] > 0)


def steps_and_time(frames: Frames, *, task: Task, steps: int) -> Drawing:
    """The steps that every tolerance takes, and the time of a forward pass by the steps taken.

    A chunk works until its slowest token is done: its steps are what stopping early costs when a chunk runs together.
    """
    metrics = ("solver_steps", "solver_chunk_steps", "relative_time")
    data = by_metric({metric: setting_scores(frames, task=task, metric=metric) for metric in metrics}, SETTING)
    data = data[is_fixed(data) | is_stopped(data)]
    figure, (left, right) = row_of_panels(2, width=4.0, beside=1.8, height=3.4)
    mean, slowest, time = (data[data["metric"] == metric] for metric in metrics)
    times = mean.merge(time, on=SETTING, suffixes=("_steps", ""))
    for axes, line, x, color, marker, label in (
        (left, slowest[is_stopped(slowest)], "tolerance", CHUNK_COLOR, "s", "slowest token of a chunk"),
        (left, mean[is_stopped(mean)], "tolerance", STOPPED_COLOR, "o", "mean over tokens"),
        (right, times[is_fixed(times)], "mean_steps", FIXED_COLOR, "D", "fixed steps"),
        (right, times[is_stopped(times)], "mean_steps", STOPPED_COLOR, "o", "tolerance"),
    ):
        look = {"color": color, "marker": marker, "label": label, "linewidth": 1.4, "markersize": 5}
        seed_points(axes, line, x, look=look)
    left.axhline(steps, color="black", linewidth=1, linestyle=":", label="most permitted")
    tolerance_axis(left, "tolerance eps")
    left.set(ylabel=METRICS["solver_steps"].label, ylim=(0, None))
    y = "time of a forward pass\n(1: the model's own settings)"
    right.set(xlabel="solver steps, mean over tokens", ylabel=y, ylim=(0, None))
    return with_legend(data, figure, seeds_note(data, "Bars"))
