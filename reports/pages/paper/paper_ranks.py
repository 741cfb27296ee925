"""The models of a study by rank, how often each order holds, and which printed differences are within noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from conf.settings import unknown
from reports.kit.benchmarks import of_same_documents, primary_scores
from reports.kit.beside import amount_of
from reports.kit.intervals import student_t, t_interval
from reports.kit.narrow import validation_losses
from reports.kit.orders import ahead_of_next, of_examples, of_seeds
from reports.kit.parts import Entry, Frames, NoData, Table
from reports.kit.published import model_label
from reports.kit.render import counted
from reports.kit.stored import NUMBERS, averaged, stored
from reports.kit.study import COLUMN, Study, printed_rows, read_study
from reports.kit.verdicts import HOW as HOW_VERDICTS
from reports.kit.verdicts import verdict
from suite.metrics import METRICS

CELLS = ["size", "train_tokens"]
OURS = ["measure", *CELLS, "model", "mean", "low", "high", "n", "rank", "ahead", "held"]
LOSS = "loss"
SCORED_BY = ("accuracy_per_token", "accuracy", "contains", "exact_match")
HOW = (
    "Ahead of the next: in so many draws of the means, by the covariance of seeds that the models have in common and of the "
    "examples of benchmarks, as far as they are known; held: in so many it has its rank. A single seed tells of no chance. "
    "The loss is that on SlimPajama, and of sizes where no run has it that on the validation split of the training."
)


def ranks(frames: Frames, *, study: str, measures: Sequence[str]) -> Table:
    """A row a measure, size, number of tokens and model: the mean of ours with its 95 % interval, its rank, how often it holds.

    study: of reports/published, which says what models are ranked by. measures: which of these, "loss" or columns of averages.
    Beside ours stand the printed number and its rank. Raises RequestError for a measure that the study does not have.
    """
    known = read_study(study)
    permitted = [LOSS, *known.tables[known.ranked["table"]].averages]
    for measure in measures:
        if measure not in permitted:
            raise unknown("measure", measure, permitted)
    values = pd.concat([_losses(frames, study, known), _averages(frames, study, known)], ignore_index=True).astype(NUMBERS)
    values = values[values["measure"].isin(measures)]
    ours = pd.DataFrame(list(_ranked(frames, known, values)), columns=OURS)
    printed = _printed(study, known)
    data = ours.merge(printed[printed["measure"].isin(measures)], on=["measure", *CELLS, "model"], how="outer")
    order = {measure: i for i, measure in enumerate(measures)}
    places = [data["measure"].map(order), *(data[name].map(amount_of) for name in CELLS), data["rank"], data["printed_rank"]]
    data = data.loc[pd.concat(places, axis=1, keys=range(5)).sort_values(list(range(5)), kind="stable").index]
    rows = tuple(_row(row) for row in data.to_dict("records"))
    header = ("measure", "size", "tokens", "model", "ours", "rank", "ahead of the next", "held", "printed", "printed rank")
    notes = (HOW, *((*_rivals(known, values, study), HOW_VERDICTS) if LOSS in measures else ()))
    return Table(data, header, rows, notes)


def _losses(frames: Frames, study: str, known: Study) -> pd.DataFrame:
    """The loss in nats of every run: ln of the perplexity on the text that models are ranked by, at the least context.

    Where no run of a size and number of tokens has that, it is the loss on the validation split of the training.
    """
    found = stored(frames, study)
    own = found.values[(found.values["metric"] == "perplexity") & (found.values["dataset"] == known.ranked["loss"])]
    own = own[own["context"] == own["context"].min()]
    cells = pd.MultiIndex.from_frame(own[CELLS])
    others = found.runs[~pd.MultiIndex.from_frame(found.runs[CELLS]).isin(cells)]
    validated = others.assign(value=others["run_id"].map(validation_losses(frames, "nll"))).dropna(subset="value")
    return pd.concat([own.assign(value=np.log(own["value"].astype(float))), validated]).assign(measure=LOSS)


def _averages(frames: Frames, study: str, known: Study) -> pd.DataFrame:
    """The averages of every run that are ranked."""
    table = known.ranked["table"]
    columns = printed_rows(study, table)[COLUMN].drop_duplicates()
    found = averaged(stored(frames, study).values, known.tables[table].averages, columns)
    return found.assign(measure=found["dataset"])


def _ranked(frames: Frames, known: Study, values: pd.DataFrame) -> Iterator[dict[str, Any]]:
    examples = _examples(frames, values)
    for (measure, size, tokens), own in values.groupby(["measure", *CELLS], sort=False):
        table = own.pivot_table(index="seed", columns="model", values="value", aggfunc="mean")
        members = known.tables[known.ranked["table"]].averages.get(measure, ())
        names = [known.benchmarks[member].name for member in members]
        spreads = [*of_seeds(table), *of_examples(list(_by_example(examples, own, names, table.columns)))]
        found = ahead_of_next(table.mean(), spreads, better="lower" if measure == LOSS else "higher")
        for row in found.to_dict("records"):
            interval = t_interval(table[row["model"]].dropna().to_numpy())
            about = {"measure": measure, "size": size, "train_tokens": tokens, "n": int(table[row["model"]].count())}
            yield {**about, **row, "low": interval.low, "high": interval.high}


def _examples(frames: Frames, values: pd.DataFrame) -> pd.DataFrame:
    """The scores by example of the runs that have averages of benchmarks, in the unit of the averages."""
    ids = set(values.loc[values["measure"] != LOSS, "run_id"])
    try:
        rows = primary_scores(frames.read_examples(ids), SCORED_BY) if ids else pd.DataFrame()
    except NoData:
        rows = pd.DataFrame()
    if rows.empty:
        return pd.DataFrame(columns=["run_id", "benchmark", "model", "example", "value"])
    return rows.assign(value=rows["value"].where(rows["metric"] == "bleu", 100.0 * rows["value"]))


def _by_example(examples: pd.DataFrame, own: pd.DataFrame, names: list[str], models: pd.Index) -> Iterator[pd.DataFrame]:
    """A table a benchmark: a row an example, a column a model, seeds averaged; nothing where one of them has none.

    Runs that are not `of_same_documents` have none.
    """
    of_cell = examples[examples["run_id"].isin(own["run_id"])]
    parts = [of_cell[of_cell["benchmark"] == name] for name in names]
    alike = [part[of_same_documents(part)] if len(part) else part for part in parts]
    tables = [part.pivot_table(index="example", columns="model", values="value") for part in alike]
    if all(set(models) <= set(table) for table in tables):
        yield from (table[models] for table in tables)


def _printed(study: str, known: Study) -> pd.DataFrame:
    """The printed numbers that models are ranked by, each with its rank."""
    losses = printed_rows(study, known.ranked["loss_table"])
    losses = losses[losses["dataset"] == known.ranked["loss"]]
    losses = losses.assign(measure=LOSS, published=np.log(losses["value"]))
    scores = printed_rows(study, known.ranked["table"])
    scores = scores.assign(measure=scores["dataset"], published=scores["value"])
    rows = pd.concat([losses, scores], ignore_index=True)[["measure", *CELLS, "model", "published"]]
    sign = rows["published"].where(rows["measure"] == LOSS, -rows["published"])
    ranked = rows.assign(sign=sign).groupby(["measure", *CELLS])["sign"].rank(method="min")
    return rows.assign(printed_rank=ranked)


def _row(row: Mapping[str, Any]) -> tuple[Entry, ...]:
    digits = METRICS["nll"].digits if row["measure"] == LOSS else 2
    half = (row["high"] - row["low"]) / 2
    spread = f" ± {half:.{digits}f}" if row["n"] > 2 else ""
    ours = Entry("–") if np.isnan(row["mean"]) else Entry(f"{row['mean']:.{digits}f}{spread}", row["mean"])
    shares = (Entry("–") if np.isnan(row[name]) else Entry(f"{100 * row[name]:.0f} %", row[name]) for name in ("ahead", "held"))
    printed = Entry("–") if np.isnan(row["published"]) else Entry(f"{row['published']:.{digits}f}", row["published"])
    own, theirs = (Entry("–") if np.isnan(rank) else Entry(f"{rank:.0f}", rank) for rank in (row["rank"], row["printed_rank"]))
    return (
        *map(Entry, (row["measure"], row["size"], row["train_tokens"], model_label(row["model"]))),
        ours,
        own,
        *shares,
        printed,
        theirs,
    )


def _rivals(known: Study, values: pd.DataFrame, study: str) -> Iterator[str]:
    """What the paper prints of two rivals' losses, and what our seeds decide between them."""
    first, second = known.rivals
    labels = [model_label(model) for model in known.rivals]
    printed = _printed(study, known)
    losses = printed[printed["measure"] == LOSS].pivot_table(index=CELLS, columns="model", values="published")
    ahead = losses[second] - losses[first]
    noise = _noise(values, known.rivals)
    said = f"The paper puts {labels[0]} {abs(ahead.min()):.3f} to {ahead.max():.3f} nats before {labels[1]}, from single runs"
    if np.isnan(noise):
        yield f"{said}: whether that is more than the noise of seeds takes two seeds or more of both here."
    else:
        within = int((ahead < noise).sum())
        yield (
            f"{said}. Two single runs of ours differ by up to {noise:.3f} nats by chance of the seed (95 %): "
            f"{counted(within, 'printed difference')} of {len(ahead)} are within that noise."
        )
    own = values[(values["measure"] == LOSS) & values["model"].isin(known.rivals)]
    for (size, tokens), cell in own.groupby(CELLS, sort=False):
        table = cell.pivot_table(index="seed", columns="model", values="value").reindex(columns=[first, second])
        what = f"{labels[0]} against {labels[1]}, {size}, {tokens} tokens"
        differences = list((table[first] - table[second]).dropna())
        if differences:
            yield verdict(what, differences, "nll")


def _noise(values: pd.DataFrame, models: tuple[str, str]) -> float:
    """By how much the losses of two single runs differ by chance of the seed with 95 %, from the spread of seeds in all cells.

    Runs of one seed are compared: what is common to a seed, such as the order of the data, is no part of it.
    """
    own = values[(values["measure"] == LOSS) & values["model"].isin(models)]
    squares, degrees = 0.0, 0
    for _, cell in own.groupby(CELLS):
        table = cell.pivot_table(index="seed", columns="model", values="value").reindex(columns=list(models))
        differences = (table[models[0]] - table[models[1]]).dropna()
        if len(differences) > 1:
            squares += float(((differences - differences.mean()) ** 2).sum())
            degrees += len(differences) - 1
    if not degrees:
        return math.nan
    return float(student_t(np.array(degrees))) * math.sqrt(squares / degrees)
