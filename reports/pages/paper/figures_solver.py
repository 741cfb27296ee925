"""Fewer steps of the solver and looser tolerances, beside what MesaNet (arXiv 2506.05233v2) shows in Figures 5 and 7."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import StrMethodFormatter

from reports.kit.arguments import Model, Task
from reports.kit.claims import Missing, claim
from reports.kit.lines import FIXED_COLOR, STOPPED_COLOR, banded_lines, lines_of, seed_points, shaded
from reports.kit.narrow import cells_of, having, of_runs, one_arm_a_model, validation_losses
from reports.kit.panels import row_of_panels, ticks_at, with_legend, zero_line
from reports.kit.parts import Drawing, Frames, NoData
from reports.kit.published import printed_accuracy
from reports.kit.render import scientific
from reports.kit.rows import bands_note, measured, over_runs, position_differences, seeds_note
from reports.kit.solver import (
    SETTING,
    SPENT,
    at_steps,
    is_fixed,
    is_stopped,
    less_fixed,
    setting_label,
    setting_order,
    setting_scores,
    verdict,
)
from suite.metrics import METRICS, axis_label

GROUPS = {"global": "global benchmarks", "local": "local benchmarks", "recall": "in-context recall"}
EARLY = 16
"""The first positions, whose loss few steps hurt least by the paper."""
LINES = 3
"""So many fixed steps, the fewest, and tolerances, the loosest, have a line by position: more could not be told apart."""
Tables = Mapping[str, pd.DataFrame]


def steps_and_tolerances(
    frames: Frames, *, task: Task, model: Model, steps: int, few: int, tolerance: float, bound: float, missing: Missing
) -> Drawing:
    """Above, the benchmark averages that the paper prints, by setting of the solver; below, ours at settings of the same kind.

    Ours: the largest size and number of tokens whose solver was cut short; the loss less that of `steps` fixed steps by setting
    and by position, and the mean number of steps by the length of the sequence. few: so many steps hurt late tokens most, by the
    paper. tolerance, bound: whether that reproduces `steps` steps within so many nats, more than which is drawn logarithmically.
    """
    printed = printed_accuracy(steps=steps)
    tables, said = _ours(frames, task, model, missing, steps=steps, few=few, tolerance=tolerance, bound=bound)
    figure, panels = row_of_panels(3 + len(tables), columns=3, width=3.1, beside=1.4, height=2.9)
    for axes, (dataset, title) in zip(panels, GROUPS.items(), strict=False):
        _bars(axes, printed[printed["dataset"] == dataset], steps)
        axes.set_title(f"the paper: {title}")
    panels[0].set_ylabel("accuracy [%]")
    draw = {"by setting": _settings, "by position": _positions, "by length": _lengths}
    for axes, (shows, data) in zip(panels[3:], tables.items(), strict=True):
        draw[shows](axes, data)
        axes.set_title(f"ours: {data['what'].iloc[0]}")
        if shows != "by length":
            _differences_axis(axes, data, bound)
            axes.set_ylabel(f"{axis_label('nll')}, difference to {steps} steps")
    told = [*_findings(tables, few), *said]
    whole = pd.concat([printed.rename(columns={"value": "mean"}).assign(shows="printed"), *tables.values()], ignore_index=True)
    return with_legend(whole.drop(columns="what", errors="ignore"), figure, *told)


def _ours(
    frames: Frames, task: str, model: str, missing: Missing, *, steps: int, few: int, tolerance: float, bound: float
) -> tuple[Tables, list[str]]:
    """What the store has of the panels below, by what each shows, and notes: what the tolerance does, and what is missing."""
    try:
        runs = having(frames, stage="solver", task=task, metric="nll", models=[model])
    except NoData as nothing:
        return {}, [f"Ours: {nothing}. {missing.words(frames)}."]
    cell = next(cells_of(runs))
    losses = validation_losses(frames, "nll")
    kept, notes = one_arm_a_model(runs[runs["run_id"].isin(cell.run_ids)], losses, by="NLL on validation")
    own = of_runs(frames, kept)
    tables, said = {}, [f"Ours: {cell.title}.", *notes]
    with suppress(NoData):
        said.insert(0, verdict(own, task=task, steps=steps, tolerance=tolerance, bound=bound))
    makers: dict[str, Callable[[], pd.DataFrame]] = {
        "by setting": lambda: loss_by_setting(own, task, steps),
        "by position": lambda: loss_by_position(own, task, steps, few),
        "by length": lambda: steps_by_length(own, task),
    }
    for shows, make in makers.items():
        try:
            tables[shows] = make().assign(shows=shows)
        except NoData as nothing:
            said.append(f"Ours: {nothing}. {missing.words(frames)}.")
    said += [bands_note(tables["by position"])] if "by position" in tables else []
    said += [seeds_note(tables["by setting"], "Bars")] if "by setting" in tables else []
    return tables, said


def loss_by_setting(frames: Frames, task: str, steps: int) -> pd.DataFrame:
    """`over_runs` by setting of the loss less that of `steps` fixed steps, from few steps to many and from loose to tight."""
    scores = less_fixed(setting_scores(frames, task=task, metric="nll"), steps=steps)
    scores = scores[is_fixed(scores) | is_stopped(scores)]
    return setting_order(over_runs(scores, SETTING, metric="nll")).assign(what="loss by setting")


def loss_by_position(frames: Frames, task: str, steps: int, few: int) -> pd.DataFrame:
    """`position_differences` to `steps` fixed steps of the same run, of LINES numbers of steps from `few` on, and tolerances."""
    rows = measured(frames.examples, stage="solver", task=task, metric="nll", whole=False)
    fixed, stopped = is_fixed(rows) & rows["max_steps"].between(few, steps, inclusive="left"), is_stopped(rows)
    numbers, tolerances = sorted(rows.loc[fixed, "max_steps"].unique()), sorted(rows.loc[stopped, "tolerance"].unique())
    shown = (fixed & rows["max_steps"].isin(numbers[:LINES])) | (stopped & rows["tolerance"].isin(tolerances[-LINES:]))
    rows = rows[shown | at_steps(rows, steps)]
    done = f"evaluated at {steps} fixed steps"
    found = setting_order(position_differences(rows, at_steps(rows, steps), SETTING, on=["run_id"], done=done))
    return found.assign(what="loss by position")


def steps_by_length(frames: Frames, task: str) -> pd.DataFrame:
    """`over_runs` by length of the mean number of steps of a token, with the model's own solver."""
    rows = measured(frames.results, stage="length", task=task, metric=SPENT, whole=True)
    return over_runs(rows, ["family", "model", "length"], metric=SPENT).assign(what="solver steps by length")


def _bars(axes: Axes, printed: pd.DataFrame, steps: int) -> None:
    """What is printed by setting, and a line at `steps` fixed steps; a setting without a number has no bar."""
    settings = printed_accuracy(steps=steps)[["max_steps", "tolerance"]].drop_duplicates().to_numpy()
    order = sorted(map(tuple, settings), key=lambda setting: (setting[1] > 0, -setting[1], setting[0]))
    heights = printed.set_index(["max_steps", "tolerance"])["value"]
    for color, label, stopped in ((FIXED_COLOR, "fixed steps", False), (STOPPED_COLOR, "tolerance", True)):
        places = [i for i, (_, tolerance) in enumerate(order) if (tolerance > 0) == stopped]
        axes.bar(places, [heights.get(order[i], np.nan) for i in places], 0.75, color=color, alpha=0.75, label=label)
    axes.axhline(heights[steps, 0.0], color="black", linewidth=1, linestyle=":", label=f"printed at {steps} steps")
    # On paper the name of the panel stands within the frame.
    axes.set_ylim(0, 1.2 * heights.max())
    _setting_ticks(axes, [setting_label("cg", "diagonal", *setting) for setting in order])


def _differences_axis(axes: Axes, data: pd.DataFrame, bound: float) -> None:
    """Differences that are nearly all above zero: linear up to the bound, logarithmic beyond."""
    axes.set_yscale("symlog", linthresh=bound, linscale=0.6)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_ylim(min(-bound, 1.5 * data["mean"].min()), max(bound, 1.8 * data["mean"].max()))


def _setting_ticks(axes: Axes, labels: list[str]) -> None:
    axes.set_xticks(
        range(len(labels)), labels=[label.replace(" steps", "").replace(" step", "") for label in labels], rotation=90
    )
    axes.set(xlabel="solver steps, or tolerance eps", xlim=(-0.6, len(labels) - 0.4))
    axes.grid(axis="x", visible=False)


def _settings(axes: Axes, data: pd.DataFrame) -> None:
    zero_line(axes)
    placed = data.assign(place=range(len(data)), arm=[setting_label(*row) for row in data[SETTING].itertuples(index=False)])
    for shown, color in ((is_fixed(placed), FIXED_COLOR), (is_stopped(placed), STOPPED_COLOR)):
        look = {"color": color, "marker": "o", "markersize": 5, "linestyle": "none"}
        seed_points(axes, placed[shown], "place", look=look)
    _setting_ticks(axes, list(placed["arm"]))


def _positions(axes: Axes, data: pd.DataFrame) -> None:
    zero_line(axes)
    settings = data[SETTING].drop_duplicates()
    for shown, colors in ((is_fixed(settings), "viridis"), (is_stopped(settings), "plasma")):
        lines = shaded(data.merge(settings[shown], on=SETTING), SETTING, colors)
        banded_lines(axes, (({**look, "label": f"ours, {setting_label(*setting)}"}, line) for setting, look, line in lines))
    last = data["position_high"].max()
    ticks_at(axes, 8.0 ** np.arange(0, np.log2(last) / 3 + 0.01), "{:,.0f}")


def _lengths(axes: Axes, data: pd.DataFrame) -> None:
    for _, look, line in lines_of(data, "length", "family", marker=0.9):
        seed_points(axes, line, "length", look=look | {"label": f"ours, {look['label']}"})
    axes.set_xscale("log", base=2)
    ticks_at(axes, data["length"], "{:,.0f}")
    axes.set(
        xlabel="length of the sequence [tokens]",
        ylabel=f"{METRICS[SPENT].label}, mean",
        ylim=(0, 1.1 * data["high"].fillna(data["mean"]).max()),
    )


def _findings(tables: Tables, few: int) -> list[str]:
    """Whether few steps hurt late tokens most, and how the number of steps grows with the length."""
    said = []
    if "by position" in tables:
        data = tables["by position"]
        own = data[is_fixed(data) & (data["max_steps"] == few)].sort_values("position_high")
        if len(own) > 1:
            early, last = own[own["position_high"] <= EARLY].iloc[-1:], own.iloc[-1]
            said += [_late(early.iloc[0], last, few)] if len(early) else []
    if "by length" in tables:
        ends = tables["by length"].sort_values("length").iloc[[0, -1]]
        numbers = " to ".join(f"{row.mean:.1f} at {row.length:,.0f} tokens" for row in ends.itertuples())
        said.append(f"Mean number of steps by length, which the paper finds to grow slowly: {numbers}.")
    return said


def _late(early: pd.Series, last: pd.Series, few: int) -> str:
    apart = last["low"] > early["high"], last["high"] < early["low"]
    holds = True if apart[0] else False if apart[1] else None
    where = [f"{scientific(row['mean'])} nats to position {row['position_high']:,.0f}" for row in (early, last)]
    return f"Few steps hurt late tokens most. {claim(holds, f'{few} steps lose {where[0]} and {where[1]}')}"
