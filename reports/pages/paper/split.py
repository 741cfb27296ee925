"""Which benchmarks are global and which local: as a paper prints it, by its printed means, and by the runs of a store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from reports.kit.benchmarks import benchmark_title, chance_of, classify, primary_scores
from reports.kit.beside import beside, filled_by
from reports.kit.fills import HOW
from reports.kit.parts import Entry, Frames, NoData, Table
from reports.kit.published import model_label
from reports.kit.render import counted
from reports.kit.split import VERDICTS, by_means
from reports.kit.stored import stored
from reports.kit.study import printed_rows, read_study

SCORED_BY = ("accuracy_per_token", "accuracy", "contains", "exact_match", "bleu")
"""What a benchmark is judged by: the first of these that it has."""
CELLS = ["size", "train_tokens"]
CONDITIONS = (
    "Global: (1) the score rises with the window, and (2) no window beats what sees everything; local otherwise. By printed "
    "means, which have no intervals, their order decides; ours takes 95 % intervals over examples and seeds, and what these do "
    "not settle is undecided."
)


def by_scale(frames: Frames, *, study: str, table: str) -> Table:
    """A row a benchmark: the printed split, and at every size and number of tokens the verdicts by printed means and by ours.

    study: of reports/published, which names the windows and the split. table: of the windows.
    """
    printed, ours = of_print(study, table), of_store(frames, study)
    data = pd.concat([printed, ours], ignore_index=True)
    places = list(dict.fromkeys(zip(data["size"], data["train_tokens"], data["by"], strict=True)))
    titles = [f"{size}, {tokens}, {'printed means' if by == 'printed' else by}" for size, tokens, by in places]
    rows = []
    for title, own in data.groupby("title", sort=False):
        found = own.set_index([*CELLS, "by"])["verdict"].to_dict()
        said = own["said"].iloc[0]
        entries = (Entry(_told(found.get(place), said)) for place in places)
        rows.append((Entry(str(title)), Entry(said or "–"), *entries))
    notes = [
        CONDITIONS,
        _agreement(printed),
        *_by_scale(data),
        *_blank(frames, study, table, list(dict.fromkeys(printed["size"]))),
    ]
    return Table(data, ("benchmark", "the paper says", *titles), tuple(rows), tuple(notes))


def reasons(frames: Frames, *, study: str) -> Table:
    """A row a benchmark, size and number of tokens of ours: scores by window, the verdict, and what settled it or did not."""
    known, data = read_study(study), of_store(frames, study)
    if data.empty:
        raise NoData(f"no run of {', '.join([*known.windows, known.full])} has scores of benchmarks by example (stage lm_eval)")
    models = [*known.windows, *known.shown, known.full]
    rows = []
    for row in data.to_dict("records"):
        means = [row.get(f"mean_{model}", np.nan) for model in models]
        scores = (Entry("–") if np.isnan(mean) else Entry(f"{mean:.3f}", mean) for mean in means)
        rows.append(
            (*map(Entry, (row["title"], row["size"], row["train_tokens"])), *scores, Entry(row["verdict"]), Entry(row["reason"]))
        )
    counts = ", ".join(f"{int((data['verdict'] == verdict).sum())} {verdict}" for verdict in VERDICTS)
    header = ("benchmark", "size", "tokens", *map(model_label, models), "verdict", "why")
    shown = f"No condition asks for {', '.join(map(model_label, known.shown))}." if known.shown else ""
    seeds = _seeds(data)
    return Table(
        data, header, tuple(rows), tuple(filter(None, (f"{counted(len(data), 'verdict')}: {counts}.", CONDITIONS, seeds, shown)))
    )


def of_print(study: str, table: str) -> pd.DataFrame:
    """The verdicts by the printed means of a table: `title` and `said`, the printed verdict, CELLS, `by`, `verdict`, `reason`."""
    known, rows = read_study(study), printed_rows(study, table)
    said = {dataset: verdict for verdict, datasets in known.split.items() for dataset in datasets}
    found = []
    for (size, tokens), own in rows.groupby(CELLS, sort=False):
        means = own.pivot_table(index="dataset", columns="model", values="value")
        if not {*known.windows, known.full} <= set(means):
            continue
        for dataset, verdict in said.items():
            judged = by_means(means.loc[dataset].dropna().to_dict(), windows=known.windows, full=known.full)
            about = {"title": dataset, "said": verdict, "size": size, "train_tokens": tokens, "by": "printed"}
            found.append({**about, "verdict": judged.verdict, "reason": judged.reason})
    return pd.DataFrame(found)


def of_store(frames: Frames, study: str) -> pd.DataFrame:
    """The same by the runs of a store, for every benchmark that it has; `seeds`, and the columns of `classify`, beside it."""
    known, found = read_study(study), stored(frames, study)
    runs = found.runs[found.runs["model"].isin([*known.windows, *known.shown, known.full])]
    columns = ["title", "said", *CELLS, "by", "verdict", "reason"]
    if runs.empty:
        return pd.DataFrame(columns=columns)
    examples = frames.read_examples(set(runs["run_id"]))
    try:
        scores = primary_scores(examples.drop(columns=["size"]), SCORED_BY)
    except NoData:
        return pd.DataFrame(columns=columns)
    scores = scores.merge(runs[["run_id", *CELLS]], on="run_id")
    windows, chance = known.windows, chance_of(frames)
    data = classify(scores, windows=windows, full=known.full, chance=chance, apart=CELLS, shown=known.shown)
    names = {benchmark.name: title for title, benchmark in known.benchmarks.items()}
    said = {dataset: verdict for verdict, datasets in known.split.items() for dataset in datasets}
    titles = [
        names.get(name) or benchmark_title(name, shots) for name, shots in zip(data["benchmark"], data["shots"], strict=True)
    ]
    seeds = scores.groupby(CELLS)["seed"].nunique().rename("seeds").reset_index()
    data = data.assign(title=titles, said=[said.get(title, "") for title in titles], by="ours").merge(seeds, on=CELLS, how="left")
    return data[[*columns, *(name for name in data if name not in columns)]]


def _told(verdict: str | None, said: str) -> str:
    """A verdict for an entry; one that is not the printed one stands in capitals."""
    if verdict is None:
        return "–"
    return verdict if verdict == said or verdict == "undecided" or not said else verdict.upper()


def _agreement(printed: pd.DataFrame) -> str:
    """In how many cells the conditions, applied to the printed means, give the printed split, and which are the others."""
    other = printed[printed["verdict"] != printed["said"]]
    named = [f"{size}/{tokens}: {', '.join(own['title'])}" for (size, tokens), own in other.groupby(CELLS, sort=False)]
    agreed = f"The conditions on the printed means give the printed split in {len(printed) - len(other)} of {len(printed)} cells"
    return f"{agreed}; the others, in capitals, are {'; '.join(named)}." if named else f"{agreed}."


def _by_scale(data: pd.DataFrame) -> Iterator[str]:
    """Which benchmarks are global at one scale and local at another, among those that are decided."""
    for by, words in (("printed", "By the printed means"), ("ours", "By ours")):
        decided = data[(data["by"] == by) & (data["verdict"] != "undecided")]
        if decided["title"].duplicated().any():
            several = decided.groupby("title", sort=False)["verdict"].nunique()
            changed = list(several[several > 1].index)
            yield f"{words} the verdict depends on scale for {', '.join(changed) if changed else 'no benchmark'}."


def _seeds(data: pd.DataFrame) -> str:
    """Whether the intervals know of seeds."""
    alone = data[data["seeds"] == 1].drop_duplicates(CELLS)
    where = "; ".join(f"{row.size}, {row.train_tokens}" for row in alone.itertuples())
    return f"With one seed intervals are over examples alone, and seeds may differ by more: {where}." if len(alone) else ""


def _blank(frames: Frames, study: str, table: str, sizes: Sequence[str]) -> Sequence[str]:
    """What fills the cells that ours does not have."""
    known = read_study(study)
    data = beside(frames, study, table, sizes=sizes, models=[*known.windows, *known.shown, known.full])
    told = [fill.told for fill in filled_by(frames, study, table, data)]
    return ["What ours lacks is filled by:", *told, HOW] if told else []
