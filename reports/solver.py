"""What a trained Mesa layer loses with fewer solver steps (Figure 5 of MesaNet, arXiv 2506.05233): the figures."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import StrMethodFormatter

from reports.paper import MAPPING, printed_accuracy
from reports.parts import Drawing, Frames, NoData
from reports.solver_settings import SETTING, is_fixed, is_stopped, less_fixed, setting_label, setting_order, setting_scores
from reports.study import BAND, band_center, bootstrapped, drawn_from, of_stage, over_runs, seed_points, seeds_note
from reports.style import arms_in_order, line_style, marker_size, new_figure, plain, shared_legend, style_of, task_label
from suite.metrics import axis_label

ARM = ["arm", "model"]
LINEAR = "The scale is linear within the shaded range and logarithmic beyond it."
OTHER_STARTS = {"query": ("s", "start at the query"), "zero": ("v", "start at zero")}
PRINTED = {"global": ("o", "#4a4a4a"), "local": ("s", "#838383"), "recall": ("^", "#222222")}


def nll_by_setting(frames: Frames, *, task: str, steps: int, bound: float) -> Drawing:
    """NLL less that of the same model at `steps` fixed steps, by the number of steps and by the tolerance.

    bound: nats; a difference below it counts as none, and is shaded.
    """
    differences = less_fixed(setting_scores(frames, task=task, metric="nll"), steps=steps, per=())
    data = over_runs(differences, "difference", [*ARM, *SETTING], metric="nll", difference=True)
    figure = new_figure(8.6, 3.5)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes in (left, right):
        _differences_axis(axes, bound)
    _panels(left, right, data, scale=1.0)
    left.set_ylabel(f"{axis_label('nll')}, difference to {steps} steps")
    shared_legend(figure)
    return Drawing(data, figure, (LINEAR, seeds_note(data, "Bars")))


def _differences_axis(axes: Axes, bound: float) -> None:
    """Differences in nats to both sides of zero: linear in the shaded range, where they count as none, logarithmic beyond."""
    axes.set_yscale("symlog", linthresh=bound, linscale=0.6)
    axes.axhspan(-bound, bound, color="#eeeeee", zorder=0.5, label=f"within {bound:g} nats")
    axes.axhline(0, color="black", linewidth=1)


def accuracy_by_setting(frames: Frames, *, task: str, steps: int) -> Drawing:
    """Accuracy less that of the same model at `steps` fixed steps, in points of 100, beside what the paper prints."""
    differences = less_fixed(setting_scores(frames, task=task, metric="accuracy"), steps=steps, per=())
    data = over_runs(differences, "difference", [*ARM, *SETTING], metric="accuracy", difference=True)
    printed = printed_accuracy(steps=steps)
    figure = new_figure(8.6, 3.7)
    left, right = figure.subplots(1, 2, sharey=True)
    left.set_yscale("symlog", linthresh=1, linscale=1)
    for axes in (left, right):
        axes.axhline(0, color="black", linewidth=1)
    _panels(left, right, data, scale=100.0)
    for dataset, rows in printed.groupby("dataset"):
        marker, color = PRINTED[dataset]
        look = {"marker": marker, "color": color, "markerfacecolor": "none", "linewidth": 0.7, "linestyle": ":", "markersize": 5}
        fixed = rows[rows["tolerance"] == 0].sort_values("max_steps")
        left.plot(fixed["max_steps"], fixed["difference"], label=f"paper, {dataset}", **look)
        stopped = rows[rows["tolerance"] > 0].sort_values("tolerance")
        right.plot(stopped["tolerance"], stopped["difference"], label=f"paper, {dataset}", **look)
    left.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    left.set_ylabel(f"accuracy, difference to {steps} steps [points]")
    figure.suptitle(f"filled: {task_label(task)} here; dotted: benchmark averages in the paper", fontsize=9)
    shared_legend(figure)
    tidy = pd.concat([data.assign(source="measured", dataset=task, mean=100 * data["mean"]), _as_rows(printed)])
    for column in ("low", "high", "half_width", "worst"):
        tidy[column] = tidy[column] * 100
    tidy["each"] = [tuple(100 * value for value in each) if isinstance(each, tuple) else None for each in tidy["each"]]
    return Drawing(tidy, figure, ("The scale is linear within one point.", seeds_note(data, "Bars"), MAPPING))


def _as_rows(printed: pd.DataFrame) -> pd.DataFrame:
    return printed.rename(columns={"difference": "mean"}).drop(columns="value").assign(source="printed")


def _panels(left: Axes, right: Axes, data: pd.DataFrame, *, scale: float) -> None:
    """The settings with fixed steps on the left, those with a tolerance on the right."""
    for arm, model in arms_in_order(data):
        own, style = data[data["arm"] == arm], style_of(model)
        fixed = own[is_fixed(own)].sort_values("max_steps")
        stopped = own[is_stopped(own)].sort_values("tolerance")
        look = line_style(model) | {"marker": style.marker, "markersize": 0.8 * marker_size(model), "elinewidth": 1.1}
        for axes, line, x in ((left, fixed, "max_steps"), (right, stopped, "tolerance")):
            seed_points(axes, line[x], line, scale=scale, look=look | {"label": plain(arm)})
        for initial, (marker, label) in OTHER_STARTS.items():
            start = own[(own["tolerance"] == 0) & (own["initial"] == initial) & (own["solver"] == "cg")]
            if len(start):
                hollow = {"marker": marker, "color": style.color, "markerfacecolor": "white", "linestyle": "none"}
                left.plot(start["max_steps"], scale * start["mean"], label=label, markersize=5, **hollow)
    steps_axis(left, data.loc[is_fixed(data), "max_steps"])
    tolerance_axis(right)


def steps_axis(axes: Axes, steps: pd.Series) -> None:
    """Steps to the right, logarithmic from 1 on, so that 0 has a place."""
    axes.set_xscale("symlog", linthresh=1, linscale=0.5)
    values: list[float] = []
    for value in sorted(steps.unique()):
        # The labels of nearer ones would overlap.
        if not values or value >= 1.5 * values[-1]:
            values.append(value)
    axes.set_xticks(values, labels=[f"{value:g}" for value in values])
    axes.minorticks_off()
    axes.set(xlabel="solver steps, the same for all tokens")


def tolerance_axis(axes: Axes) -> None:
    """The tolerance, logarithmic, from loose to tight."""
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.minorticks_off()
    axes.set(xlabel="tolerance eps, each token until its residual is below it")


def nll_by_position(frames: Frames, *, task: str, steps: int, bound: float) -> Drawing:
    """NLL less that at `steps` fixed steps, by position, paired by document and seed: where fewer steps hurt.

    bound: as in `nll_by_setting`.
    """
    data = position_differences(frames, task=task, steps=steps)
    figure = new_figure(9.6, 3.6)
    panels = figure.subplots(1, 2, sharey=True)
    parts = (data[is_fixed(data)], data[is_stopped(data)])
    for axes, part, name, colors in zip(panels, parts, ("fixed steps", "tolerance"), ("viridis", "plasma"), strict=True):
        _differences_axis(axes, bound)
        _position_lines(axes, part, colors)
        axes.set_title(name)
    panels[0].set_ylabel(f"{axis_label('nll')}, difference to {steps} steps")
    shared_legend(figure)
    drawn = drawn_from(*data[["windows", "documents"]].max(skipna=False))
    return Drawing(data, figure, (LINEAR, f"Bands: 95 % paired bootstrap over {drawn}, seeds averaged per window."))


def position_differences(frames: Frames, *, task: str, steps: int) -> pd.DataFrame:
    """One row a setting and band of positions: SETTING, position (its centre, from 1), mean, low, high, windows, documents."""
    rows = of_stage(frames.examples, stage="solver", task=task, metric="nll")
    if "position_low" not in rows or rows["position_low"].isna().all():
        raise NoData(f"no run of {task} has the nll by position (stage solver)")
    paired = less_fixed(rows.dropna(subset=BAND), steps=steps, per=[*BAND, "example"])
    paired = paired.groupby([*SETTING, *BAND, "example"]).agg(difference=("difference", "mean"), document=("document", "first"))
    settings = paired.reset_index().groupby(SETTING)
    parts = [bootstrapped(group).assign(**dict(zip(SETTING, setting, strict=True))) for setting, group in settings]
    table = setting_order(pd.concat(parts, ignore_index=True))
    table["position"] = band_center(table)
    # The setting that the others are compared with is the line at zero.
    return table[~(is_fixed(table) & (table["max_steps"] == steps))].reset_index(drop=True)


def _position_lines(axes: Axes, data: pd.DataFrame, color_map: str) -> None:
    settings = data[SETTING].drop_duplicates()
    colors = colormaps[color_map](np.linspace(0.0, 0.88, max(len(settings), 2)))
    for setting, color in zip(settings.itertuples(index=False, name=None), colors, strict=False):
        line = data.merge(pd.DataFrame([setting], columns=SETTING), on=SETTING).sort_values("position")
        axes.plot(line["position"], line["mean"], color=color, marker="o", markersize=3, label=setting_label(*setting))
        axes.fill_between(line["position"], line["low"], line["high"], color=color, alpha=0.15, linewidth=0)
    position_axis(axes)


def position_axis(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("position [tokens]")
    axes.margins(x=0.02)
