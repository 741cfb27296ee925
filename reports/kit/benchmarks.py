"""Scores of benchmarks by example, and whether a benchmark is global or local by them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from reports.kit.parts import Frames, NoData
from reports.kit.rows import of_stage
from reports.kit.split import by_examples
from suite.metrics import METRICS

BENCHMARK = ["benchmark", "shots"]


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
    """
    rows = []
    keys = [*BENCHMARK, *apart]
    scores = scores.astype({"shots": float})
    for key, group in scores.groupby(keys, dropna=False):
        arms = group[group["model"].isin([*windows, full])]
        table = arms.pivot_table(index="example", columns=["model", "seed"], values="value", aggfunc="mean").dropna()
        guessing = 0.0 if chance is None else chance.to_dict().get(key[:2], 0.0)
        if METRICS[group["metric"].iloc[0]].better == "lower":
            table, guessing = -table, -np.inf
        found = by_examples(table, windows=windows, full=full, chance=guessing)
        row = dict(zip(keys, key, strict=True)) | {"metric": group["metric"].iloc[0], "examples": len(table)}
        means = group[group["model"].isin([*windows, *shown, full])].groupby("model")["value"].mean()
        row |= {f"mean_{model}": mean for model, mean in means.items()}
        for (lower, upper), ((mean, low, high), _) in found.comparisons.items():
            name = f"{upper}_minus_{lower}"
            row |= {name: mean, f"{name}_low": low, f"{name}_high": high}
        rows.append(row | {"verdict": found.verdict, "reason": found.reason})
    return pd.DataFrame(rows)


def benchmark_title(benchmark: str, shots: float) -> str:
    """A benchmark's name for people: words, and its shots in one form."""
    name = re.sub(r"_?\d+_?shots?$", "", benchmark.removeprefix("offline_")).replace("_", " ")
    return name if np.isnan(shots) else f"{name}, {shots:.0f}-shot"
