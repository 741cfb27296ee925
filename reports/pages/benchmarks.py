"""The benchmark scores, and whether a benchmark needs more than local context, computed from sliding windows.

See `reports.kit.split`: here every comparison is settled by a 95 % interval over examples and seeds, or the benchmark is
undecided.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from reports.kit.arguments import Metric, Model
from reports.kit.benchmarks import (
    BENCHMARK,
    at_preferred_rates,
    benchmark_title,
    chance_of,
    classify,
    other_documents,
    primary_scores,
)
from reports.kit.hover import remember
from reports.kit.intervals import standard_error
from reports.kit.panels import new_figure, used
from reports.kit.parts import Drawing, Entry, Frames, NoData, Table
from reports.kit.render import counted
from reports.kit.sheet import current
from reports.kit.split import VERDICTS
from reports.kit.style import arms_in_order, line_style, plain
from suite.metrics import METRICS

PANELS_A_ROW = 5


def reading_order(column: pd.Series) -> pd.Series:
    """The key that sorts by verdict, benchmark and shots: global first, names without their shots, shots as numbers."""
    ranks = {"verdict": VERDICTS.index, "benchmark": lambda name: benchmark_title(name, np.nan)}
    return column.map(ranks[column.name]) if column.name in ranks else column


def verdicts(frames: Frames, *, metrics: Sequence[Metric], windows: Sequence[Model], full: Model) -> Table:
    """The table of the split: one row a benchmark, with what settled it or what did not."""
    examples, chosen = at_preferred_rates(frames, primary_scores(frames.examples, metrics), [*windows, full])
    found = classify(examples, windows=windows, full=full, chance=chance_of(frames))
    found = found.sort_values(["verdict", "benchmark", "shots"], key=reading_order, ignore_index=True)
    rows = []
    for row in found.itertuples():
        what = Entry(benchmark_title(row.benchmark, row.shots)), Entry(METRICS[row.metric].label)
        rows.append((*what, Entry(f"{row.examples:,}", row.examples), Entry(row.verdict), Entry(row.reason)))
    counts = ", ".join(f"{int((found['verdict'] == verdict).sum())} {verdict}" for verdict in VERDICTS)
    header = ("benchmark", "score", "examples", "verdict", "why")
    return Table(found, header, tuple(rows), (f"{counted(len(found), 'benchmark')}: {counts}.", *chosen))


def scores(frames: Frames, *, metrics: Sequence[Metric], windows: Sequence[Model], full: Model) -> Drawing:
    """Every arm's score on every benchmark with its standard error over examples, under global, local and undecided.

    metrics: a benchmark shows the first of these that it has. windows, full: what decides the split, see `classify`.
    """
    data, told = score_table(frames, metrics=metrics, windows=windows, full=full)
    titles = {verdict: list(data[data["verdict"] == verdict]["title"].unique()) for verdict in VERDICTS}
    sheet = current()
    # Beside the names of the arms.
    across = max(1, int((sheet.inches(PANELS_A_ROW) - 0.9) / 1.2)) if sheet.on_paper else PANELS_A_ROW
    rows = [(name, of[i : i + across]) for name, of in titles.items() for i in range(0, len(of), across)]
    arms = arms_in_order(data)
    height = 0.85 + 0.155 * len(arms)
    figure = new_figure(9.6, height * len(rows), columns=PANELS_A_ROW)
    top = max(0.3, min(1.03, 1.08 * np.nanmax(data[["mean", "chance"]].to_numpy())))
    for subfigure, (verdict, titles) in zip(figure.subfigures(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        subfigure.suptitle(verdict, x=0.01, ha="left", fontsize=10, fontweight="bold")
        grid = subfigure.subplots(1, across, sharey=True, sharex=True, squeeze=False)[0]
        for axes, title in zip(used(grid, len(titles)), titles, strict=True):
            _score_panel(axes, data[data["title"] == title], arms)
            axes.set_title(plain(title), fontsize=8)
        grid[0].set(yticks=range(len(arms)), yticklabels=[plain(arm) for arm, _ in arms], xlim=(-0.03 * top, top))
        grid[0].set_ylim(len(arms) - 0.4, -0.6)
    notes = ["Bars are one standard error over examples; the dotted line is chance.", *told]
    measured = frames.results[frames.results["stage"] == "lm_eval"]["benchmark"].dropna()
    without = sorted(set(measured) - set(data["benchmark"]))
    if without:
        notes.append(f"Without any of {', '.join(metrics)}, and so not drawn: {', '.join(without)}.")
    return Drawing(data, figure, tuple(notes))


def score_table(frames: Frames, *, metrics: Sequence[str], windows: Sequence[str], full: str) -> tuple[pd.DataFrame, list[str]]:
    """One row an arm and benchmark: mean, standard_error, examples, seeds, chance, and the benchmark's verdict; and notes."""
    examples = primary_scores(frames.examples, metrics)
    try:
        compared, notes = at_preferred_rates(frames, examples, [*windows, full])
        found = classify(compared, windows=windows, full=full, chance=chance_of(frames))
    except NoData as refused:
        found, notes = examples[BENCHMARK].drop_duplicates().assign(verdict="undecided"), [f"Undecided, since {refused}."]
    notes += other_documents(examples)
    # Sizes that disagree leave a benchmark undecided in a figure that shows them side by side.
    verdict = found.groupby(BENCHMARK, dropna=False)["verdict"].agg(
        lambda verdicts: verdicts.iloc[0] if verdicts.nunique() == 1 else "undecided"
    )
    per_example = examples.groupby(["arm", "model", "metric", *BENCHMARK, "example"], dropna=False)["value"].mean()
    of_arm = examples.groupby(["arm", *BENCHMARK], dropna=False)
    seeds = of_arm.agg(seeds=("seed", "nunique"), runs=("run_id", lambda ids: " ".join(dict.fromkeys(ids))))
    grouped = per_example.groupby(["arm", "model", "metric", *BENCHMARK], dropna=False)
    table = grouped.agg(mean="mean", standard_error=standard_error, examples="size").reset_index()
    table = table.merge(verdict.reset_index(), on=BENCHMARK).merge(seeds.reset_index(), on=["arm", *BENCHMARK])
    table = table.merge(chance_of(frames).rename("chance").reset_index(), on=BENCHMARK, how="left")
    table["title"] = [benchmark_title(*key) for key in table[BENCHMARK].itertuples(index=False)]
    return table.sort_values(["benchmark", "shots", "arm"], key=reading_order, ignore_index=True), notes


def _score_panel(axes: Axes, data: pd.DataFrame, arms: Sequence[tuple[str, str]]) -> None:
    """Models downwards, their score to the right. arms: what stands at y = 0, 1, 2, ..."""
    metric = METRICS[data["metric"].iloc[0]]
    low, high = metric.bounds
    for y, (arm, model) in enumerate(arms):
        point = data[data["arm"] == arm]
        # A mean beyond the limits, of a benchmark's own metric by that name, leaves a bar no room.
        rooms = (np.maximum(room, 0.0) for room in (point["mean"] - low, high - point["mean"]))
        bars = [np.minimum(point["standard_error"], room) for room in rooms]
        look = line_style(model, 0.8) | {"linewidth": 1.1}
        drawn = axes.errorbar(point["mean"], [y] * len(point), xerr=bars, **look)
        told = point.assign(low=point["mean"] - bars[0], high=point["mean"] + bars[1], n=point["seeds"])
        remember(drawn.lines[0], told, interval="one standard error", across=True)
    if data["chance"].notna().any():
        axes.axvline(data["chance"].mean(), color="#777777", linestyle=":", linewidth=1.2)
    axes.set_xlabel(metric.label, fontsize=7.5)
    axes.tick_params(labelsize=7.5)
    axes.tick_params(axis="y", length=0)
