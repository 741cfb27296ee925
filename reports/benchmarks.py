"""The figure of the benchmark scores, ordered by the split that the sliding windows decide."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from reports.panels import new_figure
from reports.parts import Drawing, Frames
from reports.split import BENCHMARK, VERDICTS, benchmark_title, chance_of, classify, primary_scores, reading_order
from reports.statistics import standard_error
from reports.style import arms_in_order, marker_size, plain, style_of
from suite.metrics import METRICS

PANELS_A_ROW = 5


def scores(frames: Frames, *, metrics: Sequence[str], windows: Sequence[str], full: str) -> Drawing:
    """Every arm's score on every benchmark with its standard error over examples, under global, local and undecided.

    metrics: a benchmark shows the first of these that it has. windows, full: what decides the split, see `classify`.
    """
    data = score_table(frames, metrics=metrics, windows=windows, full=full)
    rows = [(verdict, titles) for verdict in VERDICTS for titles in _rows_of(data[data["verdict"] == verdict]["title"])]
    arms = arms_in_order(data)
    height = 0.85 + 0.155 * len(arms)
    figure = new_figure(9.6, height * len(rows))
    top = max(0.3, 1.08 * np.nanmax(data[["mean", "chance"]].to_numpy()))
    for subfigure, (verdict, titles) in zip(figure.subfigures(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        subfigure.suptitle(verdict, x=0.01, ha="left", fontsize=10, fontweight="bold")
        grid = subfigure.subplots(1, PANELS_A_ROW, sharey=True, sharex=True)
        for axes in grid[len(titles) :]:
            axes.set_visible(False)
        for axes, title in zip(grid, titles, strict=False):
            _score_panel(axes, data[data["title"] == title], arms)
            axes.set_title(plain(title), fontsize=8)
        grid[0].set(yticks=range(len(arms)), yticklabels=[plain(arm) for arm, _ in arms], xlim=(-0.03 * top, top))
        grid[0].set_ylim(len(arms) - 0.4, -0.6)
    notes = ["Bars are one standard error over examples; the dotted line is chance."]
    measured = frames.results[frames.results["stage"] == "lm_eval"]["benchmark"].dropna()
    without = sorted(set(measured) - set(data["benchmark"]))
    if without:
        notes.append(f"Without any of {', '.join(metrics)}, and so not drawn: {', '.join(without)}.")
    return Drawing(data, figure, tuple(notes))


def score_table(frames: Frames, *, metrics: Sequence[str], windows: Sequence[str], full: str) -> pd.DataFrame:
    """One row an arm and benchmark: mean, standard_error, examples, seeds, chance, and the benchmark's verdict."""
    examples = primary_scores(frames.examples, metrics)
    found = classify(examples, windows=windows, full=full, chance=chance_of(frames)).groupby(BENCHMARK, dropna=False)["verdict"]
    # Sizes that disagree leave a benchmark undecided in a figure that shows them side by side.
    verdict = found.agg(lambda verdicts: verdicts.iloc[0] if verdicts.nunique() == 1 else "undecided").rename("verdict")
    per_example = examples.groupby(["arm", "model", "metric", *BENCHMARK, "example"], dropna=False)["value"].mean()
    seeds = examples.groupby(["arm", *BENCHMARK], dropna=False)["seed"].nunique().rename("seeds")
    grouped = per_example.groupby(["arm", "model", "metric", *BENCHMARK], dropna=False)
    table = grouped.agg(mean="mean", standard_error=standard_error, examples="size").reset_index()
    table = table.merge(verdict.reset_index(), on=BENCHMARK).merge(seeds.reset_index(), on=["arm", *BENCHMARK])
    table = table.merge(chance_of(frames).rename("chance").reset_index(), on=BENCHMARK, how="left")
    table["title"] = [benchmark_title(*key) for key in table[BENCHMARK].itertuples(index=False)]
    return table.sort_values(["benchmark", "shots", "arm"], key=reading_order, ignore_index=True)


def _rows_of(titles: pd.Series) -> list[list[str]]:
    """The titles, each once, cut into rows of panels."""
    unique = list(titles.unique())
    return [unique[start : start + PANELS_A_ROW] for start in range(0, len(unique), PANELS_A_ROW)]


def _score_panel(axes: Axes, data: pd.DataFrame, arms: Sequence[tuple[str, str]]) -> None:
    """Models downwards, their score to the right. arms: what stands at y = 0, 1, 2, ..."""
    low, high = METRICS[data["metric"].iloc[0]].bounds
    for y, (arm, model) in enumerate(arms):
        point, style = data[data["arm"] == arm], style_of(model)
        axes.errorbar(
            point["mean"],
            [y] * len(point),
            xerr=[np.minimum(point["standard_error"], room) for room in (point["mean"] - low, high - point["mean"])],
            color=style.color,
            marker=style.marker,
            markersize=0.8 * marker_size(model),
            linewidth=1.1,
        )
    if data["chance"].notna().any():
        axes.axvline(data["chance"].mean(), color="#777777", linestyle=":", linewidth=1.2)
    axes.set_xlabel(METRICS[data["metric"].iloc[0]].label, fontsize=7.5)
    axes.tick_params(labelsize=7.5)
    axes.tick_params(axis="y", length=0)
