"""What a command that made runs prints of them: the scores of every task, and what its evaluations wrote."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import pandas as pd

from reports.kit.parts import Entry, Frames, NoData, Table
from reports.kit.rows import BAND, by_metric, seeds_note, slice_names
from reports.kit.style import arms_in_order
from reports.kit.tables import Column, entries_of, mean_entry, number, outcome_notes, summarise
from suite.metrics import METRICS, axis_label
from suite.naming import task_label
from suite.scores import JUDGED_ON, main_scores

MOST_ROWS = 40
MOST_NAMED = 10
"""So many runs that are not done are named below a table."""
PRIMARY = ("accuracy_norm", "accuracy", "exact_match", "contains")
"""What a benchmark is judged by: the first of these that it has."""
TRAINED = JUDGED_ON[-1]


def score_tables(frames: Frames) -> Iterator[tuple[str, Table]]:
    """For every task its name and a table, one row an arm: its main score, that on validation, size and speed."""
    for task, cells in frames.cells.groupby("task", sort=False):
        columns = list(_columns(frames, str(task)))
        summaries = [summarise(frames, column) for column in columns]
        entries = [entries_of(table, column.metric, within="task") for column, table in zip(columns, summaries, strict=True)]
        seeds = cells.groupby("arm").size()
        arms, more = _shown([arm for arm, _ in arms_in_order(cells)], summaries[0], columns[0].metric)
        header = ["model", *map(_title, columns)]
        rows = [[Entry(arm), *(of_arm.get(arm, Entry("–")) for of_arm in entries)] for arm in arms]
        if seeds.max() > 1:
            header.append("seeds")
            rows = [[*row, Entry(f"n={seeds[arm]}", float(seeds[arm]))] for row, arm in zip(rows, arms, strict=True)]
        notes = [*_outcomes(cells), seeds_note(summaries[0], "±"), *more]
        data = pd.concat(summaries, ignore_index=True)
        yield task_label(str(task)), Table(data, tuple(header), tuple(map(tuple, rows)), tuple(notes))


def _columns(frames: Frames, task: str) -> Iterator[Column]:
    """What judges the runs of a task, the same metrics on validation, and what they cost."""
    main = main_scores(frames.results[frames.results["task"] == task])
    judging = list(main[["metric", "stage", "split"]].drop_duplicates().itertuples(index=False, name=None))
    for metric, stage, split in dict.fromkeys([*judging, *((metric, *TRAINED) for metric, _, _ in judging)]):
        yield Column(metric=metric, task=task, stage=stage, split=split)
    yield from (Column(metric=fact, task=task) for fact in ("parameters", "state_bytes"))
    yield Column(metric="tokens_per_second", task=task, stage="train", split="train")


def _title(column: Column) -> str:
    """A column's header, short: "test accuracy", "tokens/s"."""
    metric = METRICS[column.metric]
    if (column.stage, column.split) in JUDGED_ON:
        return f"{column.split} {axis_label(column.metric)}"
    return metric.unit if "/" in metric.unit else f"{metric.label} {metric.unit}".rstrip()


def _shown(arms: Sequence[str], summary: pd.DataFrame, metric: str) -> tuple[list[str], list[str]]:
    """The arms that a terminal has room for, the best where there are more, and the words that say so."""
    if len(arms) <= MOST_ROWS:
        return list(arms), []
    found = summary.set_index("arm")["mean"].reindex(arms)
    best = found.sort_values(ascending=METRICS[metric].better != "higher", kind="stable").index[:MOST_ROWS]
    return list(best), [f"The best {MOST_ROWS} of {len(arms)}; `list runs sort={metric}` has all of them."]


def _outcomes(cells: pd.DataFrame) -> list[str]:
    """What became of the runs, where not all of them are done."""
    if (cells["status"] == "done").all():
        return []
    notes = outcome_notes(cells)
    more = len(notes) - 1 - MOST_NAMED
    return notes[: MOST_NAMED + 1] + ([f"And {more} more that are not done."] if more > 0 else [])


def stage_tables(frames: Frames, stages: Collection[str]) -> Iterator[tuple[str, Table]]:
    """For every stage of evaluations its name and a table of what it wrote; of benchmarks a table of their own."""
    for stage in stages:
        try:
            yield stage, benchmark_table(frames) if stage == "lm_eval" else stage_table(frames, stage)
        except NoData:
            continue


def stage_table(frames: Frames, stage: str) -> Table:
    """One row an arm and task, with every metric of the whole split that the stage wrote.

    A stage that has none has a row a slice, or a range of positions where it has nothing else. Raises NoData.
    """
    rows = frames.results[(frames.results["stage"] == stage) & frames.results["value"].notna()]
    depth = rows["slice"].map(_depth)
    rows = rows[(depth == depth.min()) & rows["metric"].isin(METRICS)]
    if rows.empty:
        raise NoData(f"no run has results (stage {stage})")
    keys = ["arm", "task", "slice"]
    data = by_metric({metric: of for metric, of in rows.groupby("metric", sort=False)}, keys)
    found = {(row["arm"], row["task"], row["slice"], row["metric"]): row for row in data.to_dict("records")}
    metrics = [metric for metric in METRICS if metric in set(data["metric"])]
    parts = data[keys].drop_duplicates()
    lines = [part for arm, _ in arms_in_order(rows) for part in parts[parts["arm"] == arm].itertuples(index=False, name=None)]
    several = parts["task"].nunique() > 1
    table = [
        (
            Entry(", ".join(filter(None, (line[0], task_label(line[1]) * several, _part(line[2]))))),
            *(mean_entry(found[*line, each], each) if (*line, each) in found else Entry("–") for each in metrics),
        )
        for line in lines[:MOST_ROWS]
    ]
    notes = [f"{len(lines) - MOST_ROWS} more rows are not shown."] if len(lines) > MOST_ROWS else []
    return Table(data, ("model", *map(axis_label, metrics)), tuple(table), (seeds_note(data, "±"), *notes))


def _depth(part: str) -> int:
    """How finely a slice divides a split: the whole, a setting or group, a range of positions, one position or anything else."""
    names = slice_names(part)
    return 0 if not names else 1 if not names & {*BAND, "position"} else 2 if names == set(BAND) else 3


def _part(text: str) -> str:
    """A slice for people: a range of positions as "positions 4 to 8"."""
    found = dict(part.split("=", 1) for part in text.split(", ") if "=" in part)
    return f"positions {found[BAND[0]]} to {found[BAND[1]]}" if set(found) == set(BAND) else text


def benchmark_table(frames: Frames) -> Table:
    """Benchmark x model with standard errors over examples, chance, and the split where the windows that decide it are there."""
    # Its figures need matplotlib, which takes a second to import.
    from reports.kit.benchmarks import BENCHMARK
    from reports.pages.benchmarks import reading_order, score_table

    windows, full = _windows(frames.runs)
    data, told = score_table(frames, metrics=PRIMARY, windows=windows, full=full)
    arms = [arm for arm, _ in arms_in_order(data)]
    rows = []
    for _, own in data.sort_values(["verdict", *BENCHMARK], key=reading_order).groupby(BENCHMARK, sort=False, dropna=False):
        first, of_arm = own.iloc[0], own.set_index("arm")
        chance = Entry("–") if np.isnan(first["chance"]) else Entry(number(first["chance"], "chance"), first["chance"])
        scored = (_score(of_arm.loc[arm]) if arm in of_arm.index else Entry("–") for arm in arms)
        split = [Entry(first["verdict"])] if windows else []
        rows.append((Entry(first["title"]), Entry(METRICS[first["metric"]].label), *split, chance, *scored))
    notes = ["± is the standard error over examples.", *told]
    if not windows:
        notes.append(
            "The split into global and local takes runs of two models with windows, as swa4 and swa16, and of the transformer."
        )
    header = ("benchmark", "score", *(["split"] if windows else []), "chance", *arms)
    return Table(data, header, tuple(rows), tuple(notes))


def _score(row: pd.Series) -> Entry:
    error = row["standard_error"]
    return Entry(f"{row['mean']:.3f}{'' if np.isnan(error) else f' ± {error:.3f}'}", row["mean"])


def _windows(runs: pd.DataFrame) -> tuple[list[str], str]:
    """The models of attention within windows shorter than a sequence, the narrowest first, and that without one.

    No windows where there are not two of them, or there is no model that sees everything.
    """
    if "model.mixer.window" not in runs:
        return [], ""
    window = pd.to_numeric(runs["model.mixer.window"], errors="coerce")
    limited = runs.assign(window=window)[window < runs["seq_len"]].sort_values("window")
    whole = runs[window.isna() & runs["model.mixer.type"].isin(limited["model.mixer.type"])]
    windows = list(dict.fromkeys(limited["model"]))
    return (windows, str(whole["model"].iloc[0])) if len(windows) > 1 and len(whole) else ([], "")
