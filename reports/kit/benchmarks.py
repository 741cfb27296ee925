"""Scores of benchmarks by example, and whether a benchmark is global or local by them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from reports.kit.chosen import at_preferred
from reports.kit.narrow import validation_losses, with_diverged
from reports.kit.parts import Frames, NoData
from reports.kit.render import counted
from reports.kit.rows import of_stage
from reports.kit.split import by_examples
from suite.metrics import METRICS

BENCHMARK = ["benchmark", "shots"]
OTHERWISE = "another version, data or settings of the benchmark"


def primary_scores(examples: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """The benchmark rows of the first of these metrics that each benchmark has; columns gain `shots` where absent.

    asked: of how many documents the run was asked, those without a score too. A benchmark of which answers are read in several
    ways is one of each, by its name and the filter's.
    """
    if not set(metrics) <= set(METRICS):
        raise ValueError(f"metrics {sorted(set(metrics) - set(METRICS))} are not among {', '.join(METRICS)}")
    rows = of_stage(examples, stage="lm_eval")
    rows = rows[rows["metric"].isin(metrics)]
    if rows.empty or "benchmark" not in rows:
        raise NoData("no run has benchmark scores (stage lm_eval)")
    rows = rows.assign(shots=rows.get("shots", np.nan), rank=rows["metric"].map(list(metrics).index))
    first = rows.groupby(BENCHMARK, dropna=False)["rank"].transform("min")
    rows = rows[rows["rank"] == first].drop(columns="rank")
    if "metric_filter" in rows:
        ways = rows["metric_filter"].fillna("")
        several = ways.groupby([rows[name] for name in BENCHMARK], dropna=False).transform("nunique") > 1
        rows = rows.assign(benchmark=rows["benchmark"].mask(several, (rows["benchmark"] + " " + ways).str.rstrip()))
    asked = rows.groupby(["run_id", *BENCHMARK], dropna=False)["example"].transform("size")
    return rows.assign(asked=asked).dropna(subset="value")


def at_preferred_rates(frames: Frames, scores: pd.DataFrame, models: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """The scores, of these models those at the TUNED settings that validation prefers, and what was chosen.

    scores: `primary_scores`. Raises NoData where runs of one of the models, of one size and text, differ in anything else.
    """
    cells = frames.cells[frames.cells["model"].isin(models) & frames.cells["task"].isin(scores["task"])]
    cells = cells.assign(value=np.where(cells["run_id"].isin(scores["run_id"]), 1.0, np.nan))
    cells = cells[cells["value"].notna().groupby(cells["arm"]).transform("any")]
    if cells.empty:
        return scores, []
    losses = with_diverged(cells["run_id"].map(validation_losses(frames, "nll")), cells["status"], cells["arm"])
    kept = at_preferred(cells, ["model", "size", "data"], losses.groupby(cells["arm"]).mean().dropna().to_dict())
    said = [f"{row.family}: {row.chosen}" for row in kept[kept["chosen"] != ""].itertuples()]
    others = set(cells["run_id"]) - set(kept["run_id"])
    notes = [f"Chosen on validation: {'; '.join(dict.fromkeys(said))}."] if said else []
    return scores[~scores["run_id"].isin(others)], notes


def of_same_documents(scores: pd.DataFrame) -> pd.Series:
    """Which rows of one benchmark are of the version, data and settings of it that most runs have; of two the longer.

    A result is named after these. Where they differ, documents of one number are not the same.
    """
    ways = scores.drop_duplicates("run_id").groupby(["evaluation", "asked"]).size().reset_index(name="runs")
    most = ways.sort_values(["runs", "asked"], kind="stable").iloc[-1]
    return (scores["evaluation"] == most["evaluation"]) & (scores["asked"] == most["asked"])


def other_documents(scores: pd.DataFrame) -> Iterator[str]:
    """Whose scores of a benchmark are not `of_same_documents`."""
    for (benchmark, shots), own in scores.groupby(BENCHMARK, dropna=False):
        others = own[~of_same_documents(own)].drop_duplicates(["arm", "asked"])
        if len(others):
            told = ", ".join(f"{row.arm} ({counted(row.asked, 'document')})" for row in others.itertuples())
            yield f"{benchmark_title(benchmark, shots)}: by {OTHERWISE} than most, which can't be compared: {told}."


def chance_of(frames: Frames) -> pd.Series:
    """The score of guessing by benchmark and shots, of those for which it is known."""
    rows = frames.results[(frames.results["metric"] == "chance") & (frames.results["stage"] == "lm_eval")]
    rows = rows.reindex(columns=[*BENCHMARK, "value"]).astype({"shots": float})
    return rows.groupby(BENCHMARK, dropna=False)["value"].mean()


def classify(
    scores: pd.DataFrame,
    *,
    windows: Sequence[str],
    full: str,
    chance: pd.Series | None = None,
    apart: Sequence[str] = ("size", "data"),
    shown: Sequence[str] = (),
) -> pd.DataFrame:
    """One row a benchmark, shots and value of `apart`: `verdict`, `reason` and every comparison, see `reports.kit.split`.

    scores: `primary_scores`. windows: models with a growing window. full: the model that sees everything. chance: see
    `chance_of`; 0 where it is not known. shown: further models; all of them have their mean, as mean_MODEL.
    Runs that are not `of_same_documents` are left out, which the reason says.
    """
    rows = []
    keys = [*BENCHMARK, *apart]
    scores = scores.astype({"shots": float})
    for key, group in scores.groupby(keys, dropna=False):
        of_models = group[group["model"].isin([*windows, *shown, full])]
        others = of_models[~of_same_documents(of_models)] if len(of_models) else of_models
        of_models = of_models.drop(index=others.index)
        arms = of_models[of_models["model"].isin([*windows, full])]
        table = arms.pivot_table(index="example", columns=["model", "seed"], values="value", aggfunc="mean").dropna()
        guessing = 0.0 if chance is None else chance.to_dict().get(key[:2], 0.0)
        if METRICS[group["metric"].iloc[0]].better == "lower":
            table, guessing = -table, -np.inf
        found = by_examples(table, windows=windows, full=full, chance=guessing)
        row = dict(zip(keys, key, strict=True)) | {"metric": group["metric"].iloc[0], "examples": len(table)}
        means = of_models.groupby("model")["value"].mean()
        row |= {f"mean_{model}": mean for model, mean in means.items()}
        for (lower, upper), ((mean, low, high), _) in found.comparisons.items():
            name = f"{upper}_minus_{lower}"
            row |= {name: mean, f"{name}_low": low, f"{name}_high": high}
        left_out = others.groupby("model", sort=False)["run_id"].nunique().items()
        said = ", ".join(f"{model} ({counted(runs, 'run')})" for model, runs in left_out)
        reason = f"{found.reason}; left out, by {OTHERWISE}: {said}" if said else found.reason
        rows.append(row | {"verdict": found.verdict, "reason": reason})
    return pd.DataFrame(rows)


def benchmark_title(benchmark: str, shots: float) -> str:
    """A benchmark's name for people: words, and its shots in one form."""
    name = re.sub(r"_?\d+_?shots?$", "", benchmark.removeprefix("offline_")).replace("_", " ")
    return name if np.isnan(shots) else f"{name}, {shots:.0f}-shot"
