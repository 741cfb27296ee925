"""The results of a store in the columns and units of a published study: a value a run and column."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from reports.kit.benchmarks import BENCHMARK, other_documents
from reports.kit.narrow import amount, one_arm_a_model, size_title, validation_losses
from reports.kit.parts import Frames
from reports.kit.rows import by_band
from reports.kit.study import CELL, COLUMN, Study, read_study, single_columns

SCALES = {"accuracy_percent": 100.0, "bleu": 1.0, "perplexity": 1.0}
"""What a value of the suite is multiplied by, per metric of a published table."""
READINGS = ("carried", "reset", "sliding")
"""Which reading of a text counts as the printed perplexity: the first that a run has."""
NUMBERS = {"context": float, "shots": float, "value": float}


@dataclass(frozen=True)
class Stored:
    """values: CELL, `seed`, `run_id`, COLUMN and `value`, in the units of the study. runs: CELL and `run_id` of those that count.

    tried: the same of all runs, before one setting of a model was chosen. notes: on models of which several settings were
    trained, and on what stands in the place of something else.
    """

    values: pd.DataFrame
    runs: pd.DataFrame
    tried: pd.DataFrame
    notes: tuple[str, ...]


@functools.lru_cache(maxsize=2)
def stored(frames: Frames, name: str) -> Stored:
    """What a store has for a study: of every model, size and number of tokens the setting that validation prefers."""
    study = read_study(name)
    tried = _trained(frames, study)
    kept, notes = one_arm_a_model(tried, validation_losses(frames, "nll"), by="validation loss", apart=["size", "train_tokens"])
    runs = tried[tried["run_id"].isin(kept)].drop(columns=["group_id", "status"])
    if runs.empty:
        return Stored(pd.DataFrame(columns=[*runs.columns, *COLUMN, "value"]).astype(NUMBERS), runs, tried, ())
    rows = frames.results[frames.results["run_id"].isin(runs["run_id"])].dropna(subset="value")
    parts = [_benchmarks(rows, name), _perplexities(rows, name), _validated(frames, runs, study)]
    found = pd.concat(parts, ignore_index=True).drop_duplicates(["run_id", *COLUMN])
    asked = rows[rows["stage"] == "lm_eval"].reindex(columns=["run_id", "arm", "evaluation", "metric", *BENCHMARK, "count"])
    asked = asked[asked["benchmark"].isin(_names(name))].rename(columns={"count": "asked"})
    others = other_documents(asked[~asked["metric"].isin(["truncated", "left_out"])])
    return Stored(found.merge(runs, on="run_id"), runs, tried, (*notes, *_substitutes(found), *others))


def _trained(frames: Frames, study: Study) -> pd.DataFrame:
    """The language models that were trained, with CELL as the study calls them."""
    tokens = pd.to_numeric(frames.runs["train_tokens"] if "train_tokens" in frames.runs else pd.Series(dtype=float))
    runs = frames.runs.assign(tokens=tokens)
    runs = runs[(runs["task"] == "language") & (runs["tokens"] > 0)]
    titles = {size: study.size_of(str(size)) or size_title(str(size)) for size in runs["size"].unique()}
    amounts = {each: study.tokens_of(each) or amount(each) for each in runs["tokens"].unique()}
    runs = runs.assign(size=runs["size"].map(titles), train_tokens=runs["tokens"].map(amounts))
    return runs[[*CELL, "model_label", "group_id", "seed", "run_id", "status"]]


def _benchmarks(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """The scores of the stage `lm_eval` by COLUMN."""
    own = rows[rows["stage"] == "lm_eval"].reindex(columns=["run_id", "benchmark", "shots", "metric", "value"])
    wanted = pd.DataFrame(list(_wanted(name)))
    found = own.rename(columns={"metric": "scored_by", "shots": "given"}).merge(wanted, on=["benchmark", "scored_by"])
    # A name without its shots is of 0 where nothing else is said.
    shots = pd.to_numeric(found["given"]).fillna(0.0)
    found = found[found["names_shots"] | found["shots"].isna() | (shots == found["shots"])]
    found = found.assign(value=found["value"] * found["metric"].map(SCALES).astype(float)).sort_values("rank", kind="stable")
    return found[["run_id", *COLUMN, "value", "scored_by", "rank"]]


def _names(name: str) -> set[str]:
    """The benchmarks of a study, by their names in lm-eval."""
    return {str(row["benchmark"]) for row in _wanted(name)}


def _wanted(name: str) -> Iterator[dict[str, object]]:
    """A row a column and metric that may stand in it, in the order in which they count."""
    study = read_study(name)
    for column in single_columns(name).to_dict("records"):
        benchmark = study.benchmarks.get(column["dataset"])
        if column["metric"] == "perplexity" or benchmark is None:
            continue
        told = {key: f"{column[key]:.0f}" for key in ("shots", "context")}
        for rank, metric in enumerate(benchmark.metrics):
            about = {"benchmark": benchmark.name.format(**told), "scored_by": metric, "rank": rank}
            yield {**column, **about, "names_shots": "{shots}" in benchmark.name}


def _perplexities(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """The perplexities of the stage of that name by COLUMN."""
    study = read_study(name)
    own = rows[(rows["stage"] == "perplexity") & (rows["metric"] == "perplexity")]
    own = by_band(own, whole=True).reindex(columns=["run_id", "text", "context", "reading", "value"])
    order = {text: (title, rank) for title, texts in study.texts.items() for rank, text in enumerate(texts)}
    own = own[own["text"].isin(order)]
    columns = single_columns(name)
    found = own.assign(
        metric="perplexity",
        dataset=[order[text][0] for text in own["text"]],
        rank=[order[text][1] for text in own["text"]],
        read=own["reading"].map(dict(zip(READINGS, range(len(READINGS)), strict=True))),
        context=pd.to_numeric(own["context"]),
        shots=np.nan,
    )
    trained = columns.loc[columns["dataset"].isin(study.read_whole) & columns["context"].notna(), "context"].min()
    is_whole = found["dataset"].isin(study.read_whole) & (found["context"] == 0)
    found = found.assign(context=found["context"].mask(is_whole, trained))
    return found.sort_values(["rank", "read"], kind="stable")[["run_id", *COLUMN, "value", "reading"]]


def _validated(frames: Frames, runs: pd.DataFrame, study: Study) -> pd.DataFrame:
    """The perplexity on the held-out part of the text that was trained on, where that is a text of the study, at its length."""
    facts = frames.runs[frames.runs["run_id"].isin(runs["run_id"])].reindex(columns=["run_id", "data", "seq_len"])
    order = {text: title for title, texts in study.texts.items() for text in texts}
    # Behind the name stands a digest where a store has several texts of it.
    facts = facts.assign(data=facts["data"].str.partition(" ")[0])
    facts = facts[facts["data"].isin(order)]
    losses = facts["run_id"].map(validation_losses(frames, "nll"))
    found = facts.assign(metric="perplexity", dataset=facts["data"].map(order), shots=np.nan, value=np.exp(losses))
    found = found.assign(context=pd.to_numeric(found["seq_len"]), reading="validation").dropna(subset="value")
    return found[["run_id", *COLUMN, "value", "reading"]]


def _substitutes(found: pd.DataFrame) -> Iterator[str]:
    """What stands in the place of something else."""
    other = found[found["rank"] > 0] if "rank" in found else found.iloc[:0]
    for metric, own in other.groupby("scored_by"):
        yield f"Scored by {metric}, since no run has the paper's scoring: {', '.join(dict.fromkeys(own['dataset']))}."
    validated = found[found["reading"] == "validation"] if "reading" in found else found.iloc[:0]
    if len(validated):
        yield f"On the validation split of the training: {', '.join(dict.fromkeys(validated['dataset']))}."


def averaged(values: pd.DataFrame, averages: Mapping[str, tuple[str, ...]], columns: pd.DataFrame) -> pd.DataFrame:
    """The columns of averages among these, by run: the mean of their members, for runs that have all of them.

    values: of `Stored`. averages: the members of each. columns: COLUMN of the columns asked for.
    """
    parts = []
    for metric, dataset, context, shots in columns[COLUMN].itertuples(index=False):
        members = averages.get(dataset, ())
        own = values[values["dataset"].isin(members) & (values["metric"] == metric)]
        own = own[_alike(own["context"], context) & _alike(own["shots"], shots)]
        of_run = own.groupby(["run_id", "seed", *CELL, "model_label"], as_index=False)
        found = of_run.agg(value=("value", "mean"), members=("value", "count"))
        found = found[found["members"] == len(members)].drop(columns="members")
        parts.append(found.assign(metric=metric, dataset=dataset, context=context, shots=shots))
    return pd.concat(parts, ignore_index=True) if parts else values.iloc[:0]


def _alike(values: pd.Series, value: float) -> pd.Series:
    """Which are this number; all where none is asked."""
    return pd.Series(True, values.index) if np.isnan(value) else values == value
