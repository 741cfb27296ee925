"""Figures of all models: by position, by the size of the state, and in training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter
from matplotlib.transforms import offset_copy

from conf.settings import RequestError
from reports.kit.arguments import Metric, Model, Split, Stage, Task
from reports.kit.chosen import at_best
from reports.kit.hover import of_each, remember
from reports.kit.lines import banded_lines, enlarged_range, lines_of
from reports.kit.medians import bytes_axis
from reports.kit.narrow import task_setting
from reports.kit.panels import row_of_panels, with_legend, zero_line
from reports.kit.parts import Drawing, Frames, NoData
from reports.kit.rows import (
    BAND,
    bands_note,
    by_band,
    by_metric,
    ids_of,
    measured,
    of_stage,
    over_runs,
    position_differences,
    seeds_note,
    slice_names,
    unpaired_note,
)
from reports.kit.sheet import current
from reports.kit.style import arms_in_order
from reports.kit.tables import state_notes
from suite.metrics import METRICS, axis_label
from suite.naming import task_label


def nll_difference_by_position(
    frames: Frames, *, metric: Metric, split: Split, baseline: Model, zoom_without: Sequence[Model]
) -> Drawing:
    """NLL of every arm minus the baseline's, by position, with paired bootstrap bands over documents.

    A second panel enlarges what is left without the models in zoom_without, where there are any.
    """
    rows = measured(frames.examples, stage="position", metric=metric, split=split, whole=False)
    is_baseline = rows["model"] == baseline
    # Windows of another length begin elsewhere in the text.
    rows = rows.assign(set_as=rows["run_id"].map(dict(zip(frames.cells["run_id"], task_setting(frames.cells), strict=True))))
    on, done = ["size", "data", "set_as"], f"the baseline {baseline}, by position"
    if rows[is_baseline].groupby(on, dropna=False)["arm"].nunique().max() > 1:
        raise NoData(f"more than one {baseline} of the same size: which is the baseline?")
    data = position_differences(rows, is_baseline, ["arm", "model"], on=on, done=done)
    near = data[~data["model"].isin(zoom_without)]
    low, high = enlarged_range(near) if len(near) else (0.0, 0.0)
    everything = [0.0, *data[["mean", "low", "high"]].to_numpy().ravel()]
    enlarges = len(near) < len(data) and 0 < high - low < 0.75 * (np.nanmax(everything) - np.nanmin(everything))
    shown = [data, near] if enlarges else [data]
    figure, panels = row_of_panels(len(shown), width=3.7, beside=1.8, height=3.5)
    for axes, part in zip(panels, shown, strict=True):
        zero_line(axes)
        banded_lines(axes, (line[1:] for line in lines_of(part, "position", marker=0.75)))
    panels[0].set_ylabel(f"{axis_label(metric)}, difference to {baseline}")
    if len(panels) > 1:
        panels[0].set_title("all models")
        panels[1].set_title("enlarged, without the sliding windows")
        # What is drawn already decides the first panel, not the mark of what the second one shows.
        panels[0].set_ylim(panels[0].get_ylim())
        panels[0].axhspan(low, high, facecolor="#f0f0f0", edgecolor="#9a9a9a", linewidth=0.6, linestyle="--", zorder=0.4)
        panels[1].set_ylim(low, high)
    notes = (
        f"Below zero: better than {baseline}. {bands_note(data)}",
        *(["The grey strip is what is enlarged."] * (len(panels) - 1)),
        *unpaired_note(rows, data, baseline),
    )
    return with_legend(data, figure, *notes, better=METRICS[metric].better)


def by_position(frames: Frames, *, task: Task, metric: Metric, split: Split) -> Drawing:
    """A metric of the stage `position` by position, one line an arm: the mean over runs, with the interval over seeds."""
    rows = of_stage(frames.results, stage="position", task=task, metric=metric, split=split).dropna(subset="value")
    # A band of positions averages over noise; a task that has none is scored at every position.
    banded = by_band(rows, whole=False)
    if len(banded):
        data = by_metric({metric: banded}, ["arm", "model", *BAND])
    else:
        rows = rows[rows["slice"].map(lambda text: slice_names(text) == {"position"})]
        if rows.empty:
            raise NoData(f"no run of {task} has {metric} by position")
        data = over_runs(rows, ["arm", "model", "position"], metric=metric).assign(metric=metric)
        data["position"] += 1
    figure, (axes,) = row_of_panels(1, width=5.2, beside=1.8, height=3.5)
    banded_lines(axes, (line[1:] for line in lines_of(data, "position", marker=0.75 if len(banded) else 0.0)))
    axes.set_ylabel(axis_label(metric))
    return with_legend(data, figure, seeds_note(data, "Bands"))


def accuracy_against_state(frames: Frames, *, task: Task, stage: Stage, split: Split, panels: str) -> Drawing:
    """Accuracy against the state that a model carries: the mean over seeds and, where there are several, each of them.

    A line joins the arms of one model, from the smallest state to the largest (as in Arora et al., arXiv 2402.18668).
    One panel a value of the slice `panels`, or one of the whole split where the scores are not sliced by it. A dash at a
    model is the most that its window could answer; chance is a line.
    """
    data = accuracy_by_state(frames.results, task=task, stage=stage, split=split, panels=panels)
    parts = list(dict.fromkeys(data["slice"]))
    width = max(6.0 / len(parts), 3.4)
    figure, drawn = row_of_panels(len(parts), width=width, beside=2.2, height=3.5, sharey=True)
    for axes, part in zip(drawn, parts, strict=True):
        _state_points(axes, data[data["slice"] == part])
        axes.set_title(part.replace("_", " ").replace("=", ": "))
    drawn[0].set_ylabel(f"{task_label(task)} {axis_label('accuracy')}")
    shown = frames.runs[frames.runs["arm"].isin(data["arm"]) & (frames.runs["task"] == task)]
    notes = ["Models that would hide one another are drawn side by side. Small marks are the seeds.", *state_notes(shown)]
    by_family = data.groupby("family", sort=False)[["arm", "state_bytes"]].nunique()
    constant = by_family.index[(by_family["arm"] > 1) & (by_family["state_bytes"] == 1)]
    if len(constant):
        notes.append(f"Of one state whatever varies: {', '.join(constant)}.")
    return with_legend(data, figure, *notes, better=METRICS["accuracy"].better)


def accuracy_by_state(results: pd.DataFrame, *, task: str, stage: str, split: str, panels: str) -> pd.DataFrame:
    """One row an arm and slice: state_bytes, the `seed_summary`, reachable (the most it can), chance."""
    rows = of_stage(results, stage=stage, task=task, split=split).dropna(subset="value")
    rows = rows[rows["state_bytes"] > 0] if "state_bytes" in rows else rows.iloc[:0]
    scores = rows[rows["metric"] == "accuracy"]
    sliced = scores[scores[panels].notna()].sort_values(panels, kind="stable") if panels in scores else scores.iloc[:0]
    scores = sliced if len(sliced) else scores[scores["slice"] == ""]
    if scores.empty:
        raise NoData(f"no run has the accuracy of {task} (stage {stage})")
    known = rows.pivot_table(index=["arm", "slice"], columns="metric", values="value")
    known = known.reindex(columns=["reachable_accuracy", "chance"]).set_axis(["reachable", "chance"], axis=1)
    table = over_runs(scores, ["arm", "model", "slice", "state_bytes", "family"], metric="accuracy").drop(columns="worst")
    return table.assign(seeds=table["n"]).join(known, on=["arm", "slice"])


def _state_points(axes: Axes, data: pd.DataFrame) -> None:
    shifts = _side_by_side(data)
    for family, look, line in lines_of(data, "state_bytes", "family", marker=1.35):
        color, label, marker = look["color"], look.pop("label"), {name: look.pop(name) for name in ("marker", "markersize")}
        moved = {"transform": offset_copy(axes.transData, fig=axes.figure, x=shifts[family], units="points"), "color": color}
        each = of_each(line[line["seeds"] > 1])
        (seeds,) = axes.plot(each["state_bytes"], each["mean"], ".", markersize=4, alpha=0.6, **moved)
        remember(seeds, each)
        bounded = line[line["reachable"] < 1]
        axes.plot(bounded["state_bytes"], bounded["reachable"], "_", markersize=15, markeredgewidth=1.6, **moved)
        axes.plot(line["state_bytes"], line["mean"], **look | moved)
        (points,) = axes.plot(line["state_bytes"], line["mean"], linestyle="none", label=label, **marker | moved)
        remember(points, line)
    if (data["reachable"] < 1).any():
        axes.plot([], [], "_", color="#666666", markersize=12, label=axis_label("reachable_accuracy"))
    if data["chance"].notna().any():
        axes.axhline(data["chance"].mean(), color="#666666", linestyle=":", linewidth=1.2, label="chance")
    bytes_axis(axes, data["state_bytes"])
    # Shifted markers do not count in autoscaling.
    axes.set_xlim(data["state_bytes"].min() / 1.6, data["state_bytes"].max() * 1.6)
    axes.set(xlabel=axis_label("state_bytes"), ylim=(-0.03, 1.03))


def _side_by_side(data: pd.DataFrame) -> dict[str, float]:
    """How far, in points, each family moves to the right so that markers that would hide one another are all seen."""
    heaps: dict[str, list[str]] = {}
    points = {family: group[["state_bytes", "mean"]].to_numpy() for family, group in data.groupby("family")}
    for family, _ in arms_in_order(data, "family"):
        first = next((first for first in heaps if _overlap(points[family], points[first])), family)
        heaps.setdefault(first, []).append(family)
    return {family: 7.0 * current().ink * (i - (len(heap) - 1) / 2) for heap in heaps.values() for i, family in enumerate(heap)}


def _overlap(points: np.ndarray, others: np.ndarray) -> bool:
    """Whether any marker of the one hides one of the other. points, others: (state_bytes, accuracy) [N, 2]."""
    octaves, heights = np.abs(np.log2(points[:, None, 0] / others[:, 0])), np.abs(points[:, None, 1] - others[:, 1])
    # A third of an octave and a twentieth of the frame's height are about the size of a marker.
    return bool(((octaves < 1 / 3) & (heights < 0.05)).any())


CURVES = {"train_loss": "loss", "gradient_norm": "grad_norm"}
"""What training logs, by the metric that it is."""


def mean_of_runs(curves: pd.DataFrame, logged: str = "loss") -> pd.DataFrame:
    """The mean over runs of what is `logged`, at all `tokens` that one of them logged, from where all began to the first's end.

    Runs log by the clock, each at steps of its own, so every one is interpolated: a mean over whichever run has logged a step
    would jump from run to run.
    """
    known = curves.dropna(subset=logged).sort_values("tokens")
    runs = [(run["tokens"].to_numpy(), run[logged].to_numpy()) for _, run in known.groupby("run_id")]
    tokens = known["tokens"].unique()
    shared = tokens[(tokens >= max(x[0] for x, _ in runs)) & (tokens <= min(x[-1] for x, _ in runs))] if runs else tokens
    return pd.DataFrame({"tokens": shared, logged: sum(np.interp(shared, x, y) for x, y in runs) / max(1, len(runs))})


def training_curves(
    frames: Frames, *, tasks: Sequence[Task], smoothing: float, chosen: str = "", metric: Metric = "train_loss"
) -> Drawing:
    """Training loss by tokens seen, mean over seeds as far as each of them went, as a centred running mean.

    smoothing: the share of a curve's logged steps that the running mean covers, 0 for none. chosen: a setting of whose values
    each model keeps the one that validation prefers, see `at_best`. metric: of CURVES.
    """
    if metric not in CURVES:
        raise RequestError(f"metric={metric} is not logged in training, permitted are {', '.join(CURVES)}")
    logged = CURVES[metric]
    frames = at_best(frames, chosen)[0] if chosen else frames
    present = [task for task in tasks if task in set(frames.curves.dropna(subset=logged)["task"])]
    if not present:
        raise NoData(f"no run of {', '.join(tasks)} has logged its training")
    curves = frames.curves[frames.curves["task"].isin(present)]
    keys = ["task", "arm", "model"]
    data = curves.groupby(keys).apply(mean_of_runs, logged, include_groups=False).reset_index(keys)
    own = pd.Series({key: ids_of(rows) for key, rows in curves.groupby(["task", "arm"])}, name="runs").rename_axis(
        ["task", "arm"]
    )
    data = data.join(own, on=["task", "arm"])
    data["smoothed"] = data.groupby(["task", "arm"])[logged].transform(
        lambda each: each.rolling(max(1, round(smoothing * len(each))), center=True, min_periods=1).mean()
    )
    figure, panels = row_of_panels(len(present), width=3.7, beside=1.8, height=3.5)
    for axes, task in zip(panels, present, strict=True):
        of_task = data[data["task"] == task]
        for _, look, line in lines_of(of_task, "tokens"):
            (drawn,) = axes.plot(line["tokens"], line["smoothed"], **look)
            remember(drawn, line, value=("smoothed", "", ""))
        axes.set(title=task_label(task), xlabel="tokens seen", ylabel=axis_label(metric))
        # The first steps are the same fall for everybody and would press the rest of the curves together.
        axes.set_ylim(top=1.03 * of_task.loc[of_task["tokens"] >= 0.1 * of_task["tokens"].max(), "smoothed"].max())
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    return with_legend(data, figure, better=METRICS[metric].better)
