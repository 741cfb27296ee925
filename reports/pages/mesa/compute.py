"""Whether stopping every token at its own number of solver steps beats giving all tokens the same, at equal cost.

Between two whole numbers of steps the loss of fixed steps is not known. It falls ever more slowly, so it lies below the
straight line between its neighbours, and above the lines through the two points on either side, drawn on: a tolerance
helps only where it is below the lower of these bounds, and hurts only where it is above the upper one. The upper bound
alone would find a gain between any two points of a convex curve. Where noise bends the measured points the other
way, the lower bound is as far below the straight line as they bend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from reports.kit.arguments import Metric, Task
from reports.kit.intervals import FEW_CLUSTERS, RESAMPLES, bootstrap_percentiles, t_interval
from reports.kit.lines import FIXED_COLOR, STOPPED_COLOR
from reports.kit.panels import grid_of_panels, ticks_at, with_legend, zero_line
from reports.kit.parts import Drawing, Entry, Frames, NoData, Table
from reports.kit.render import scientific, signed
from reports.kit.rows import check_one_arm, drawn_from, of_stage, slice_names
from reports.kit.solver import SETTING, is_fixed, is_stopped, setting_label
from suite.metrics import METRICS, axis_label

COSTS = {"solver_steps": "its own steps", "solver_chunk_steps": "the steps of its chunk's slowest"}
SAYS = {"helps": "helps", "hurts": "hurts", "undecided": "is undecided", "no interval": "can not be compared"}
BOUNDS = "A range: between whole numbers of steps the loss of fixed steps is known within bounds, from its convexity."


class Evaluated(NamedTuple):
    """What every setting made of every window, [setting, seed, window]; documents: each window's, None if not known."""

    settings: pd.DataFrame
    nll: np.ndarray
    cost: np.ndarray
    documents: np.ndarray | None = None


def evaluated(frames: Frames, *, task: str, cost: str) -> Evaluated:
    """The losses and costs of the settings from the diagonal start, of the runs that have all of them.

    Raises NoData where there are none, and for runs of several arms.
    """
    rows = of_stage(frames.examples, stage="solver", task=task, metric="nll")
    rows = rows[(rows["slice"].map(slice_names) == set(SETTING)) & (is_fixed(rows) | is_stopped(rows))]
    check_one_arm(rows, SETTING)
    costs = of_stage(frames.examples, stage="solver", task=task, metric=cost)
    key = [*SETTING, "run_id", "example"]
    both = rows[[*key, "value", "document"]].merge(costs[[*key, "value"]], on=key, suffixes=("", "_cost"))
    both = both.dropna(subset=["value", "value_cost"])
    # A run that is not yet evaluated at every setting does not count, nor a window that some run lacks.
    evaluations = both.drop_duplicates([*SETTING, "run_id"])["run_id"].value_counts()
    both = both[both["run_id"].isin(evaluations.index[evaluations == evaluations.max()])]
    both = both[both.groupby("example")["value"].transform("size") == both.groupby([*SETTING, "run_id"]).ngroups]
    settings = both[SETTING].drop_duplicates().sort_values(SETTING, ignore_index=True)
    if settings.empty or not is_fixed(settings).any() or is_fixed(settings).all():
        raise NoData(f"no run of {task} was evaluated with fixed steps and with tolerances (stage solver)")
    both = both.sort_values(key)
    shape = (len(settings), both["run_id"].nunique(), both["example"].nunique())
    document = both.groupby("example")["document"].first()
    documents = document.to_numpy() if document.notna().all() else None
    return Evaluated(settings, *(both[column].to_numpy().reshape(shape) for column in ("value", "value_cost")), documents)


def equal_cost(found: Evaluated) -> pd.DataFrame:
    """One row a tolerance: its cost, its loss, and by how much that differs from fixed steps of the same cost.

    least, most: the difference to the upper and the lower bound of the fixed steps' loss, the true one lies between.
    least_low, least_high, most_low, most_high: their 95 % intervals, NaN for a single seed and for few documents. Their half
    widths are those of the t interval over seeds and of the bootstrap over documents, added as independent errors are: the
    first knows nothing of the text that all seeds share, the second nothing of other seeds. verdict: "helps", "hurts",
    "undecided", "no interval".
    """
    _, seeds, windows = found.nll.shape
    names, document = np.unique(np.arange(windows) if found.documents is None else found.documents, return_inverse=True)
    times = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)[:, document]
    # One for all runs together, one a seed, and one a draw of documents.
    nll, cost = (
        [values.mean((1, 2)), *values.mean(2).T, *(times @ values.mean(1).T / times.sum(1, keepdims=True))]
        for values in (found.nll, found.cost)
    )
    fixed = np.flatnonzero(is_fixed(found.settings))
    rows = []
    for k in np.flatnonzero(~is_fixed(found.settings)):
        row = found.settings.iloc[k].to_dict() | {"cost": cost[0][k], "nll": nll[0][k]}
        differences = np.array([_less_fixed(*pair, k, fixed) for pair in zip(nll, cost, strict=True)])
        for name, values in zip(("least", "most"), differences.T, strict=True):
            row[name], by_seed = values[0], t_interval(values[1 : 1 + seeds]).half_width
            drawn, (low, high) = values[1 + seeds :], (np.nan, np.nan)
            # Fewer documents drawn again are too like one another, see FEW_CLUSTERS.
            if len(names) >= FEW_CLUSTERS and np.isnan(drawn).mean() <= 0.025:
                low, high = np.nanpercentile(drawn, bootstrap_percentiles(len(names)))
            row[f"{name}_low"] = row[name] - np.hypot(by_seed, row[name] - low)
            row[f"{name}_high"] = row[name] + np.hypot(by_seed, high - row[name])
        counts = {"seeds": seeds, "windows": windows, "documents": np.nan if found.documents is None else len(names)}
        rows.append(row | {"verdict": _verdict(row)} | counts)
    return pd.DataFrame(rows).sort_values("cost", ignore_index=True)


def _less_fixed(nll: np.ndarray, cost: np.ndarray, k: int, fixed: np.ndarray) -> tuple[float, float]:
    """Setting k's loss less the upper and the lower bound of that of fixed steps at its cost; NaN beyond them.

    nll, cost: [setting].
    """
    known = fixed[np.argsort(cost[fixed])]
    x, y, at = cost[known], nll[known], cost[k]
    j = int(np.searchsorted(x, at))
    if len(x) < 3 or not x[0] <= at <= x[-1]:
        return np.nan, np.nan
    if x[j] == at:
        return nll[k] - y[j], nll[k] - y[j]

    def line(i: int) -> float:
        return y[i] + (y[i + 1] - y[i]) * (at - x[i]) / (x[i + 1] - x[i])

    upper = line(j - 1)
    # How far the points bend, to whichever side: the wrong one says how large the noise is.
    bend = abs(upper - max(line(i) for i in (j - 2, j) if 0 <= i < len(x) - 1))
    return nll[k] - upper, nll[k] - (upper - bend)


def _verdict(row: Mapping[str, float]) -> str:
    if np.isnan(row["least_low"]) or np.isnan(row["most_high"]):
        return "no interval"
    # least is below most: the upper bound is taken off for it.
    return "helps" if row["most_high"] < 0 else "hurts" if row["least_low"] > 0 else "undecided"


def answer(comparison: pd.DataFrame, cost: str) -> str:
    """The sentence: what every tolerance gains over fixed steps of the same cost."""
    verdicts = list(comparison["verdict"])
    counts = ", ".join(f"{SAYS[word]} at {verdicts.count(word)}" for word in dict.fromkeys(verdicts))
    said = []
    for row in comparison.itertuples():
        gain = f", {scientific(row.least)} to {scientific(row.most)} nats to fixed steps"
        known = "" if np.isnan(row.least) else gain
        said.append(f"eps {scientific(row.tolerance)} ({row.cost:.1f} steps) {SAYS[row.verdict]}{known}")
    text = f"Does adaptivity itself help, where a token costs {COSTS[cost]}? Of {len(said)} tolerances, it {counts}"
    return f"{text}: {'; '.join(said)}."


def fixed_or_stopped(frames: Frames, *, task: Task, steps: int, costs: Sequence[Metric]) -> Drawing:
    """Loss less that of `steps` fixed steps by what is spent, and what stopping early gains at equal cost.

    costs: one panel a unit of cost, of solver_steps and solver_chunk_steps.
    """
    figure, panels = grid_of_panels(2, len(costs), width=3.7, beside=1.8, height=2.8, height_ratios=(3, 2))
    parts = []
    for column, cost in zip(panels.T, costs, strict=True):
        found = evaluated(frames, task=task, cost=cost)
        comparison = equal_cost(found)
        parts += [_curves(column[0], found, cost, steps), comparison.assign(unit=cost, kind="comparison")]
        _gains(column[1], comparison)
        column[0].set_title(f"a token costs {COSTS[cost]}")
        column[1].set_xlabel(f"{METRICS[cost].label}, mean over tokens")
    panels[0, 0].set_ylabel(f"{axis_label('nll')},\ndifference to {steps} steps")
    panels[1, 0].set_ylabel("tolerance less fixed steps\nof the same cost [nats/token]")
    intervals = f"Thin: {_intervals(comparison)} Below zero, stopping early helps."
    return with_legend(pd.concat(parts, ignore_index=True), figure, BOUNDS, intervals)


def _intervals(comparison: pd.DataFrame) -> str:
    seeds, windows, documents = comparison[["seeds", "windows", "documents"]].iloc[0]
    if seeds == 1:
        return "one seed, and so no intervals and no verdicts."
    return f"95 % intervals, t over {seeds:.0f} seeds and bootstrap over {drawn_from(windows, documents)}, added in quadrature."


def _curves(axes: Axes, found: Evaluated, cost: str, steps: int) -> pd.DataFrame:
    spent, nll = found.cost.mean(axis=(1, 2)), found.nll.mean(axis=(1, 2))
    fixed = is_fixed(found.settings).to_numpy()
    reference = nll[fixed & (found.settings["max_steps"] == steps)]
    if len(reference) == 0:
        raise NoData(f"no run was evaluated at {steps} fixed steps, against which the others are compared")
    table = found.settings.assign(unit=cost, kind="curve", cost=spent, nll=nll, less_reference=nll - reference[0])
    looks = (fixed, FIXED_COLOR, "D", "fixed steps"), (~fixed, STOPPED_COLOR, "o", "tolerance")
    for shown, color, marker, label in looks:
        part = table[shown & (table["cost"] > 0)].sort_values("cost")
        axes.plot(part["cost"], part["less_reference"], color=color, marker=marker, markersize=4.5, label=label)
    zero_line(axes)
    axes.set_yscale("symlog", linthresh=1e-4, linscale=0.5)
    axes.set_xscale("log")
    ticks_at(axes, [value for value in (1, 2, 3, 5, 10, 20, 30) if value <= spent.max()])
    return table


def _gains(axes: Axes, comparison: pd.DataFrame) -> None:
    """A bar from the least to the most that stopping early makes of the loss, whiskers to the ends of the intervals."""
    look = {"color": STOPPED_COLOR}
    axes.vlines(comparison["cost"], comparison["least_low"], comparison["most_high"], linewidth=1.1, **look)
    axes.vlines(comparison["cost"], comparison["least"], comparison["most"], linewidth=5, **look)
    axes.plot(comparison["cost"], (comparison["least"] + comparison["most"]) / 2, "o", markersize=4.5, **look)
    zero_line(axes)
    axes.set_yscale("symlog", linthresh=1e-4, linscale=0.5)


def at_equal_cost(frames: Frames, *, task: Task, costs: Sequence[Metric]) -> Table:
    """One row a tolerance and unit of cost, with the answer to whether stopping early helps below."""
    comparisons = {cost: equal_cost(evaluated(frames, task=task, cost=cost)) for cost in costs}
    data = pd.concat([comparison.assign(unit=cost) for cost, comparison in comparisons.items()], ignore_index=True)
    header = ("tolerance", "a token costs", "steps", "NLL less fixed steps of the same cost", "95 % interval", "stopping early")
    notes = [answer(comparison, cost) for cost, comparison in comparisons.items()]
    interval = f"Interval: {_intervals(data)} Each row is a test of its own."
    return Table(data, header, tuple(map(_row, data.to_dict("records"))), (*notes, BOUNDS, interval))


def _row(row: Mapping[str, Any]) -> tuple[Entry, ...]:
    entries = [Entry(setting_label(*(row[name] for name in SETTING))), Entry(COSTS[row["unit"]])]
    entries.append(Entry(f"{row['cost']:.2f}", row["cost"]))
    for low, high in (("least", "most"), ("least_low", "most_high")):
        text = "–" if np.isnan(row["least"]) else f"{signed(row[low], 5)} to {signed(row[high], 5)}"
        entries.append(Entry(text, row[low]))
    return (*entries, Entry(row["verdict"]))
