"""Models side by side, and how their runs were made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from reports.kit.arguments import Metric
from reports.kit.chosen import at_best
from reports.kit.details import PLACES
from reports.kit.marks import marks_notes
from reports.kit.parts import Entry, Frames, NoData, Table
from reports.kit.rows import by_metric, of_stage, seeds_note
from reports.kit.style import arms_in_order
from reports.kit.tables import (
    Column,
    entries_by,
    entries_of,
    mean_entry,
    notes_on,
    number,
    per_run,
    rows_of,
    state_notes,
    summarise,
)
from suite.metrics import METRICS, axis_label
from suite.naming import fact_label, task_label


def comparison(
    frames: Frames, *, columns: Sequence[Column], floors: Mapping[Metric, Sequence[Metric]], chosen: str = ""
) -> Table:
    """Model x metric, best and second best marked, with what is known without training in the last rows.

    floors: per metric of a column the reference metrics that get a row of their own. chosen: a setting of whose values each
    model keeps the one that validation prefers, see `at_best`.
    """
    wanted = [column for column in columns if column.task in set(frames.cells["task"])]
    if not wanted:
        raise NoData(f"no run of the tasks {sorted({column.task for column in columns})} was asked for")
    frames, preferred = at_best(frames, chosen) if chosen else (frames, [])
    summaries = [summarise(frames, column) for column in wanted]
    scored = [entries_of(table, column.metric, within="task") for column, table in zip(wanted, summaries, strict=True)]
    run_ids = pd.concat([rows_of(frames.cells, column)["run_id"] for column in wanted])
    cells = frames.cells[frames.cells["run_id"].isin(run_ids)]
    seeds = cells.groupby(["arm", "task"]).size().groupby("arm").max()
    rows = []
    for arm, _ in arms_in_order(cells):
        own = (of_arm.get(arm, Entry("not asked")) for of_arm in scored)
        rows.append((Entry(arm), *own, Entry(f"n={seeds[arm]}", float(seeds[arm]))))
    references = []
    for i, column in enumerate(wanted):
        for metric in floors.get(column.metric, ()):
            values = per_run(frames, column, metric)
            if len(values):
                label, value = METRICS[metric].label, float(values.mean())
                entries = [Entry(label), *[Entry("")] * (len(wanted) + 1)]
                # Arms whose task is set otherwise may have other floors.
                ends = dict.fromkeys(number(end, column.metric) for end in (values.min(), values.max()))
                entries[i + 1] = Entry(" to ".join(ends), value)
                rows.append(tuple(entries))
                references.append({"arm": label, "task": column.task, "metric": metric, "mean": value})
    data = pd.concat([*summaries, pd.DataFrame(references)], ignore_index=True)
    header = ("model", *(column.title for column in wanted), "seeds")
    columns_marked = [(column.title, table, column.metric) for column, table in zip(wanted, summaries, strict=True)]
    notes = [
        *notes_on(cells),
        *marks_notes(columns_marked, within="task"),
        *(state_notes(frames.runs) if "state_bytes" in set(data["metric"]) else ()),
        *([f"Chosen on validation: {'; '.join(preferred)}."] if preferred else ()),
    ]
    if data["bound"].lt(1).any():
        notes.append("≤ is the most that a model can reach that sees no further back than its window.")
    short = ("model", *(column.short for column in wanted), "seeds")
    return Table(data, header, tuple(rows), tuple(notes), short)


def settings(frames: Frames, *, facts: Sequence[str]) -> Table:
    """Per task the facts and settings of its runs; one that differs between runs is given as its range or list."""
    if frames.runs.empty:
        raise NoData("no run of this request is in the store")
    present = [fact for fact in facts if fact in frames.runs]
    rows, tidy = [], []
    for task, runs in frames.runs.groupby("task"):
        texts = [_values_text(runs[fact].dropna().unique()) for fact in present]
        rows.append((Entry(str(task)), *map(Entry, texts)))
        tidy.append({"task": task} | dict(zip(present, texts, strict=True)))
    return Table(pd.DataFrame(tidy), ("task", *map(fact_label, present)), tuple(rows))


def _values_text(values: np.ndarray) -> str:
    if len(values) == 0:
        return "–"
    if all(isinstance(value, int | float | np.number) for value in values):
        low, high = (f"{bound:,.6g}" if abs(bound) < 1e6 else f"{bound:,.0f}" for bound in (min(values), max(values)))
        return low if low == high else f"{low} to {high}"
    return ", ".join(sorted(map(str, values)))


def stage(frames: Frames, *, stage: str) -> Table:
    """Every score that an evaluation wrote: arm and slice x metric, the mean over seeds in every entry."""
    rows = of_stage(frames.results, stage=stage).dropna(subset="value")
    # Scores over whole splits say it all where there are any, or else those over whole sequences: slices may be hundreds.
    parts = rows.reindex(columns=sorted(PLACES)).notna().any(axis=1)
    rows = next((kept for kept in (rows[rows["slice"] == ""], rows[~parts]) if len(kept)), rows)
    data = by_metric({metric: own for metric, own in rows.groupby("metric", sort=False)}, ["task", "arm", "model", "slice"])
    metrics = list(dict.fromkeys(data["metric"]))
    entries = []
    for (task, arm, slice_), scores in entries_by(data, ["task", "arm", "slice"], "metric", metrics, _stage_entry):
        entries.append((Entry(task_label(task)), Entry(arm), Entry(slice_.replace("_", " ")), *scores))
    names = ("task", "model", "slice")
    taken = [i for i, name in enumerate(names) if name == "model" or len({row[i].text for row in entries}) > 1]
    header = *(names[i] for i in taken), *map(axis_label, metrics)
    return Table(data, header, tuple((*(row[i] for i in taken), *row[3:]) for row in entries), (seeds_note(data, "±"),))


def _stage_entry(row: Mapping[str, object], metric: str) -> Entry:
    return mean_entry(row, metric) if metric in METRICS else mean_entry(row, metric, digits=4)
