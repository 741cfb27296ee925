"""The benchmark scores, and whether a benchmark needs more than local context, computed from sliding windows.

A benchmark is global (MesaNet, arXiv 2506.05233, sec. 4.2) when (1) the score rises with the window, SWA-4 < SWA-16 <
SWA-64, and (2) no such window beats the transformer; otherwise it is local. Here every comparison has to be settled by a
95 % paired t interval over the examples, after averaging each example over seeds; one that is not makes the benchmark
undecided. So does a transformer whose own score is not settled above chance: what it did not learn does not say what a
benchmark needs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from reports.kit.arguments import Metric, Model
from reports.kit.hover import remember
from reports.kit.intervals import Interval, standard_error, t_interval
from reports.kit.panels import new_figure, used
from reports.kit.parts import Drawing, Entry, Frames, NoData, Table
from reports.kit.render import counted, signed, signed_interval
from reports.kit.rows import of_stage
from reports.kit.sheet import current
from reports.kit.style import arms_in_order, line_style, plain
from suite.metrics import METRICS

VERDICTS = ("global", "local", "undecided")
BENCHMARK = ["benchmark", "shots"]
PANELS_A_ROW = 5


Comparisons = dict[tuple[str, str], Interval]
"""How much better the second model scores than the first, in the metric's unit; positive agrees with the condition."""


def comparison_text(lower: str, upper: str, mean: float, low: float, high: float) -> str:
    if low == high == 0:
        return f"{upper} = {lower} on every example"
    return f"{upper} − {lower} = {signed(mean, 3)}{signed_interval(low, high, 3) or ' no interval'}"


def primary_scores(examples: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """The benchmark rows of the first of these metrics that each benchmark has; columns gain `shots` where absent."""
    if not set(metrics) <= set(METRICS):
        raise ValueError(f"metrics {sorted(set(metrics) - set(METRICS))} are not among {', '.join(METRICS)}")
    rows = of_stage(examples, stage="lm_eval")
    rows = rows[rows["metric"].isin(metrics)]
    if rows.empty or "benchmark" not in rows:
        raise NoData("no run has benchmark scores (stage lm_eval)")
    rows = rows.assign(shots=rows.get("shots", np.nan), rank=rows["metric"].map(list(metrics).index))
    first = rows.groupby(["benchmark", "shots"], dropna=False)["rank"].transform("min")
    return rows[rows["rank"] == first].drop(columns="rank").dropna(subset="value")


def chance_of(frames: Frames) -> pd.Series:
    """The score of guessing by benchmark and shots, of those for which it is known."""
    rows = frames.results[(frames.results["metric"] == "chance") & (frames.results["stage"] == "lm_eval")]
    rows = rows.reindex(columns=[*BENCHMARK, "value"]).astype({"shots": float})
    return rows.groupby(BENCHMARK, dropna=False)["value"].mean()


def classify(scores: pd.DataFrame, *, windows: Sequence[str], full: str, chance: pd.Series | None = None) -> pd.DataFrame:
    """One row a benchmark, shots and size: `verdict` ("global", "local", "undecided"), `reason` and every comparison.

    scores: `primary_scores`. windows: models with a growing window. full: the model that sees everything. chance: see
    `chance_of`; 0 where it is not known.
    """
    rows = []
    keys = ["benchmark", "shots", "size", "data"]
    scores = scores.astype({"shots": float})
    for key, group in scores.groupby(keys, dropna=False):
        arms = group[group["model"].isin([*windows, full])]
        table = arms.pivot_table(index="example", columns="model", values="value", aggfunc="mean").dropna()
        guessing = 0.0 if chance is None else chance.to_dict().get(key[:2], 0.0)
        if METRICS[group["metric"].iloc[0]].better == "lower":
            table, guessing = -table, -np.inf
        verdict, reason, comparisons = _judge(table, windows, full, guessing)
        row = dict(zip(keys, key, strict=True)) | {"metric": group["metric"].iloc[0], "examples": len(table)}
        for (lower, upper), (mean, low, high) in comparisons.items():
            name = f"{upper}_minus_{lower}"
            row |= {name: mean, f"{name}_low": low, f"{name}_high": high}
        rows.append(row | {"verdict": verdict, "reason": reason})
    return pd.DataFrame(rows)


def _judge(table: pd.DataFrame, windows: Sequence[str], full: str, chance: float) -> tuple[str, str, Comparisons]:
    """The verdict on one benchmark, its reason and its comparisons. table: examples x models, higher is better."""
    if len(windows) < 2:
        return "undecided", "a score that rises with the window takes two windows or more", {}
    missing = [model for model in (*windows, full) if model not in table.columns]
    if missing:
        return "undecided", f"no scores of {', '.join(missing)}", {}
    pairs = [*zip(windows, windows[1:], strict=False), *((window, full) for window in windows)]
    comparisons = {(lower, upper): t_interval((table[upper] - table[lower]).to_numpy()) for lower, upper in pairs}
    own = t_interval(table[full].to_numpy())
    if not own.low > chance:
        reason = f"{full} is not above chance, {chance:.3f}: {own.mean:.3f} [{own.low:.3f}, {own.high:.3f}]"
        return "undecided", reason, comparisons
    for verdict, what, sign in (("undecided", "unsettled", 0), ("local", "against", -1)):
        said = [comparison_text(*pair, *interval) for pair, interval in comparisons.items() if interval.sign == sign]
        if said:
            return verdict, f"{what}: {'; '.join(said)}", comparisons
    return "global", f"all {len(comparisons)} comparisons agree", comparisons


def benchmark_title(benchmark: str, shots: float) -> str:
    """A benchmark's name for people: words, and its shots in one form."""
    name = re.sub(r"_?\d+_?shots?$", "", benchmark.removeprefix("offline_")).replace("_", " ")
    return name if np.isnan(shots) else f"{name}, {shots:.0f}-shot"


def reading_order(column: pd.Series) -> pd.Series:
    """The key that sorts by verdict, benchmark and shots: global first, names without their shots, shots as numbers."""
    ranks = {"verdict": VERDICTS.index, "benchmark": lambda name: benchmark_title(name, np.nan)}
    return column.map(ranks[column.name]) if column.name in ranks else column


def verdicts(frames: Frames, *, metrics: Sequence[Metric], windows: Sequence[Model], full: Model) -> Table:
    """The table of the split: one row a benchmark, with what settled it or what did not."""
    found = classify(primary_scores(frames.examples, metrics), windows=windows, full=full, chance=chance_of(frames))
    found = found.sort_values(["verdict", "benchmark", "shots"], key=reading_order, ignore_index=True)
    rows = []
    for row in found.itertuples():
        what = Entry(benchmark_title(row.benchmark, row.shots)), Entry(METRICS[row.metric].label)
        rows.append((*what, Entry(f"{row.examples:,}", row.examples), Entry(row.verdict), Entry(row.reason)))
    counts = ", ".join(f"{int((found['verdict'] == verdict).sum())} {verdict}" for verdict in VERDICTS)
    header = ("benchmark", "score", "examples", "verdict", "why")
    return Table(found, header, tuple(rows), (f"{counted(len(found), 'benchmark')}: {counts}.",))


def scores(frames: Frames, *, metrics: Sequence[Metric], windows: Sequence[Model], full: Model) -> Drawing:
    """Every arm's score on every benchmark with its standard error over examples, under global, local and undecided.

    metrics: a benchmark shows the first of these that it has. windows, full: what decides the split, see `classify`.
    """
    data = score_table(frames, metrics=metrics, windows=windows, full=full)
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
    of_arm = examples.groupby(["arm", *BENCHMARK], dropna=False)
    seeds = of_arm.agg(seeds=("seed", "nunique"), runs=("run_id", lambda ids: " ".join(dict.fromkeys(ids))))
    grouped = per_example.groupby(["arm", "model", "metric", *BENCHMARK], dropna=False)
    table = grouped.agg(mean="mean", standard_error=standard_error, examples="size").reset_index()
    table = table.merge(verdict.reset_index(), on=BENCHMARK).merge(seeds.reset_index(), on=["arm", *BENCHMARK])
    table = table.merge(chance_of(frames).rename("chance").reset_index(), on=BENCHMARK, how="left")
    table["title"] = [benchmark_title(*key) for key in table[BENCHMARK].itertuples(index=False)]
    return table.sort_values(["benchmark", "shots", "arm"], key=reading_order, ignore_index=True)


def _score_panel(axes: Axes, data: pd.DataFrame, arms: Sequence[tuple[str, str]]) -> None:
    """Models downwards, their score to the right. arms: what stands at y = 0, 1, 2, ..."""
    metric = METRICS[data["metric"].iloc[0]]
    low, high = metric.bounds
    for y, (arm, model) in enumerate(arms):
        point = data[data["arm"] == arm]
        bars = [np.minimum(point["standard_error"], room) for room in (point["mean"] - low, high - point["mean"])]
        look = line_style(model, 0.8) | {"linewidth": 1.1}
        drawn = axes.errorbar(point["mean"], [y] * len(point), xerr=bars, **look)
        told = point.assign(low=point["mean"] - bars[0], high=point["mean"] + bars[1], n=point["seeds"])
        remember(drawn.lines[0], told, interval="one standard error", across=True)
    if data["chance"].notna().any():
        axes.axvline(data["chance"].mean(), color="#777777", linestyle=":", linewidth=1.2)
    axes.set_xlabel(metric.label, fontsize=7.5)
    axes.tick_params(labelsize=7.5)
    axes.tick_params(axis="y", length=0)
