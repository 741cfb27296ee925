"""Models trained with different numbers of solver steps, and evaluated with others (Fig. 13 of MesaNet, arXiv 2506.05233)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial

import numpy as np
import pandas as pd

from reports.kit.arguments import Metric, Task
from reports.kit.intervals import seed_interval
from reports.kit.lines import seed_points, shaded
from reports.kit.panels import row_of_panels, steps_axis, with_legend, within_limits, zero_line
from reports.kit.parts import Drawing, Entry, Frames, NoData, Table
from reports.kit.render import scientific, signed_interval
from reports.kit.rows import less, over_runs, seeds_note
from reports.kit.solver import at_steps, is_fixed, setting_label, setting_scores
from reports.kit.style import arms_in_order, plain
from reports.kit.tables import Column, entries_by, mean_entry, notes_on, rows_of, scored_cells
from suite.metrics import METRICS, axis_label
from suite.naming import natural

TRAINED, MOST = "#d55e00", "#332288"
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">")
WAY = ["solver_tolerance", "solver_max_steps"]
"""How a run's solver was stopped in training."""
label_of = partial(setting_label, "cg", "diagonal")


def with_way(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells with WAY, random_steps and gradient, NaN in a model without a solver."""
    names = {"solver_max_steps": "solver.max_steps", "solver_tolerance": "solver.tolerance", "gradient": "solver.gradient"}
    names["random_steps"] = "random_steps"
    return cells.assign(**{name: cells.get(f"model.mixer.{setting}", np.nan) for name, setting in names.items()})


def by_trained_steps(frames: Frames, *, column: Column, steps: int) -> Drawing:
    """The score by the steps in training, less that of `steps` fixed steps in training, paired by seed.

    Two lines: evaluated as trained, and evaluated at `steps` fixed steps (stage solver). The horizontal line is a model
    trained with a tolerance.
    """
    data = by_evaluation(frames, column, steps)
    figure, (axes,) = row_of_panels(1, width=6.6, height=3.6)
    zero_line(axes)
    fixed = data[data["solver_tolerance"] == 0]
    for name, color, marker, face in (("as trained", TRAINED, "o", TRAINED), (f"with {steps} steps", MOST, "s", "white")):
        look = {"color": color, "marker": marker, "markerfacecolor": face, "markersize": 5, "label": f"evaluated {name}"}
        seed_points(axes, fixed[fixed["evaluated"] == name], "solver_max_steps", look=look)
    for row in data[(data["solver_tolerance"] > 0) & (data["evaluated"] == "as trained")].itertuples():
        label = f"trained with eps {scientific(row.solver_tolerance)}"
        axes.axhline(row.mean, color="#44aa99", linestyle="--", linewidth=1.3, label=label)
        axes.axhspan(row.low, row.high, color="#44aa99", alpha=0.12, linewidth=0)
    steps_axis(axes, fixed["solver_max_steps"], "solver steps in training")
    axes.set_ylabel(f"{axis_label(column.metric)},\ndifference to {steps} steps in training")
    return with_legend(data, figure, seeds_note(data, "Bars and band"), "Differences are paired by seed.")


def by_evaluation(frames: Frames, column: Column, steps: int) -> pd.DataFrame:
    """Mean and interval over seeds of each way's value less that of the run of its seed trained at `steps` fixed steps.

    evaluated: as trained and, where the stage `solver` has the scores, at `steps` fixed steps.
    """
    trained = with_way(scored_cells(frames, column))[["run_id", "arm", "seed", *WAY, "value"]]
    trained = trained.dropna(subset=["value", "solver_max_steps"])
    if trained.empty:
        raise NoData(f"no run of {column.task} whose solver takes a known number of steps has {column.metric}")
    tables = {"as trained": trained}
    with suppress(NoData):
        scores = setting_scores(frames, task=column.task, metric=column.metric)
        at = scores.loc[at_steps(scores, steps), ["run_id", "value"]]
        tables[f"with {steps} steps"] = trained.drop(columns="value").merge(at, on="run_id")
    parts = []
    for name, table in tables.items():
        if len(table):
            reference = table[(table["solver_max_steps"] == steps) & (table["solver_tolerance"] == 0)]
            paired = less(table, reference, on=["seed"], done=f"trained at {steps} fixed steps")
            found = over_runs(paired, ["arm", *WAY[::-1]], metric=column.metric)
            parts.append(found.assign(evaluated=name))
    return pd.concat(parts, ignore_index=True)


def trained_table(frames: Frames, *, column: Column, steps: int) -> Table:
    """One row a way of training: its score less that of `steps` fixed steps, by the steps in evaluation; what is worse below."""
    data = by_evaluation(frames, column, steps).sort_values(WAY, ignore_index=True)
    evaluated = data["evaluated"].unique()
    ways = entries_by(data, WAY, "evaluated", evaluated, partial(mean_entry, difference=True, digits=4))
    rows = [(Entry(label_of(trained, tolerance), trained), *entries) for (tolerance, trained), entries in ways]
    title = f"{axis_label(column.metric)} less {steps} steps in training"
    header = ("trained with", *(f"{title}, evaluated {name}" for name in evaluated))
    said = []
    for name, own in data.groupby("evaluated", sort=False):
        worse = [label_of(trained, tolerance) for tolerance, trained in own.loc[own["low"] > 0, WAY].itertuples(index=False)]
        said.append(f"Evaluated {name}, worse by a whole interval: {', '.join(worse) or 'none'}.")
    return Table(data, header, tuple(rows), (*said, *notes_on(rows_of(frames.cells, column))))


def robustness(frames: Frames, *, task: str, metric: str) -> pd.DataFrame:
    """One row an arm and number of fixed steps in evaluation: mean, low, high, half_width and n over seeds."""
    scores = setting_scores(frames, task=task, metric=metric)
    return over_runs(scores[is_fixed(scores)], ["arm", "model", "max_steps"], metric=metric)


def by_evaluated_steps(frames: Frames, *, task: Task, metric: Metric) -> Drawing:
    """The score by the steps in evaluation, one line a way of training."""
    data = robustness(frames, task=task, metric=metric)
    names = training_names(frames, task)
    figure, (axes,) = row_of_panels(1, width=7.6, height=3.8)
    named = data.sort_values("arm", key=lambda arms: arms.map(lambda arm: natural(names[arm])), kind="stable")
    for (arm, look, line), marker in zip(shaded(named, "arm"), MARKERS * 3, strict=False):
        look = {**look, "marker": marker, "markersize": 4.5, "linewidth": 1.4, "label": plain(names[arm])}
        seed_points(axes, line, "max_steps", look=look)
    steps_axis(axes, data["max_steps"], "solver steps in evaluation")
    axes.set_ylabel(axis_label(metric))
    within_limits(axes, metric)
    return with_legend(data, figure, seeds_note(data, "Bars"))


def training_names(frames: Frames, task: str) -> dict[str, str]:
    """Every arm of the task in few words: "0 to 30 steps, unrolled gradient"; its label where two would be named alike."""
    arms = with_way(frames.cells[frames.cells["task"] == task]).drop_duplicates("arm").set_index("arm")
    names = {}
    for arm, cell in arms.dropna(subset="solver_max_steps").iterrows():
        drawn, gradient = cell["random_steps"], cell["gradient"]
        steps = label_of(cell["solver_max_steps"], cell["solver_tolerance"]) if pd.isna(drawn) else f"0 to {drawn:g} steps"
        names[arm] = steps if pd.isna(gradient) else f"{steps}, {gradient} gradient"
    told = pd.Series(names, dtype=object)
    return dict(zip(arms.index, arms.index, strict=True)) | told[~told.duplicated(keep=False)].to_dict()


def by_training(frames: Frames, *, task: Task, metric: Metric, few: int, steps: int) -> Table:
    """Way of training x steps in evaluation; which way is best at `few` and at `steps`, and loses least between them."""
    data = robustness(frames, task=task, metric=metric)
    names, evaluated = training_names(frames, task), sorted(data["max_steps"].unique())
    entries = dict(entries_by(data, "arm", "max_steps", evaluated, lambda row, _: mean_entry(row, metric)))
    rows = tuple((Entry(names[arm]), *entries[arm]) for arm, _ in arms_in_order(data))
    scores = setting_scores(frames, task=task, metric=metric)
    scores = scores[is_fixed(scores)].pivot_table(index="seed", columns=["max_steps", "arm"], values="value")
    asked = frames.cells[frames.cells["task"] == task]
    notes = (*_first_and_second(scores, names, metric, few=few, steps=steps), *notes_on(asked))
    return Table(data, ("trained with", *(label_of(value, 0.0) for value in evaluated)), rows, notes)


def _first_and_second(scores: pd.DataFrame, names: Mapping[str, str], metric: str, *, few: int, steps: int) -> Iterator[str]:
    """Which way of training is best at `few` steps, at `steps`, and loses least between them, each beside the second.

    scores: [seed, (steps in evaluation, arm)].
    """
    label, sign = METRICS[metric].label, 1.0 if METRICS[metric].better == "lower" else -1.0
    if not {few, steps} <= set(scores.columns.get_level_values(0)):
        yield f"Nothing to compare: not every run was evaluated at {few} and {steps} steps."
        return
    for at in (few, steps):
        yield _ahead(scores[at], names, sign, f"Best at {label_of(at, 0.0)} in evaluation", label, metric)
    lost = sign * (scores[few] - scores[steps])
    yield _ahead(lost, names, 1.0, f"Loses least from {steps} to {few} in evaluation", f"{label} lost", metric)


def _ahead(values: pd.DataFrame, names: Mapping[str, str], sign: float, what: str, label: str, metric: str) -> str:
    """The arm with the least sign * value and the next one, and their difference with its 95 % t interval, paired by seed."""
    values = values.dropna(axis="columns")
    if values.shape[1] < 2:
        return f"{what}: nothing to compare."
    first, second = (sign * values).mean().sort_values().index[:2]
    gap = seed_interval((sign * (values[second] - values[first])).to_numpy(), metric, difference=True)
    interval = signed_interval(gap.low, gap.high, 4)
    told = "" if gap.low > 0 else ", which does not tell them apart"
    return (
        f"{what}: trained with {names[first]}, {label} {values[first].mean():.4f}; second, {gap.mean:.4f} away{interval}{told}: "
        f"{names[second]}."
    )
