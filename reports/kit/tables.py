"""The entries of a report's tables: which rows a column has, how a mean is printed, and what is said of the runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from conf.settings import Settings
from reports.kit.arguments import Metric, Split, Stage, Task
from reports.kit.intervals import share_interval
from reports.kit.marks import SETTING, marks
from reports.kit.narrow import task_setting
from reports.kit.parts import Entry, Frames
from reports.kit.render import counted, scientific, signed
from reports.kit.rows import NO_INTERVAL, SEEDS_SHOWN, by_band, check_one_arm, ids_of, seed_summary, slice_names
from suite.metrics import METRICS, axis_label, short_label
from suite.naming import task_label

Keys = str | list[str]
PARTED = ("train", "test")
"""Stages of which the slices of one kind are parts of the split; those of a study are settings."""
TINY = ("solver_residual", "readout_error", "readout_error_worst")
"""Metrics of any size, printed as a power of ten."""


class Column(Settings, kw_only=True):
    """One column: a metric of a task's runs, from a stage and split; a fact of the run where stage is empty.

    size: of the models; empty for any. slice: as its rows spell it, "num_pairs=8"; empty for the whole split.
    bound: the metric that says how much of this one is within reach, printed beside it; empty for none.
    """

    metric: Metric
    task: Task
    size: str = ""
    stage: Stage = ""
    split: Split = ""
    slice: str = ""
    bound: Metric = ""

    @property
    def title(self) -> str:
        return f"{task_label(self.task)} {axis_label(self.metric)}" if self.stage else axis_label(self.metric)

    @property
    def short(self) -> str:
        """The title where a table has to be narrow."""
        return f"{task_label(self.task)} {short_label(self.metric)}" if self.stage else short_label(self.metric)

    @property
    def place(self) -> str:
        """The slice in words: "num pairs 8", "positions 17 to 32", counted from 1; empty for the whole split."""
        parts = dict(part.split("=", 1) for part in self.slice.split(", ") if part)
        if parts.keys() == {"position_low", "position_high"}:
            return f"positions {int(parts['position_low']) + 1} to {parts['position_high']}"
        return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in parts.items())

    @property
    def runs(self) -> str:
        """Whose it is: "MQAR, tiny"."""
        return ", ".join(filter(None, (task_label(self.task), self.size)))


def rows_of(frame: pd.DataFrame, column: Column) -> pd.DataFrame:
    """The rows of the column's task and, where it names one, size."""
    rows = frame[frame["task"] == column.task]
    return rows[rows["size"] == column.size] if column.size else rows


def per_run(frames: Frames, column: Column, metric: str) -> pd.Series:
    """A metric of the column's slice, or a fact, for every run of the column that has it; indexed by run_id."""
    if not column.stage:
        runs = rows_of(frames.runs, column).set_index("run_id")
        return pd.to_numeric(runs[metric], errors="coerce").dropna() if metric in runs else pd.Series(dtype=float)
    rows = rows_of(frames.results, column)
    rows = rows[(rows["metric"] == metric) & (rows["stage"] == column.stage) & (rows["split"] == column.split)]
    rows = rows.dropna(subset="value")
    asked = rows[rows["slice"] == column.slice].set_index("run_id")["value"]
    if column.slice:
        return asked
    # References may come by slice alone; the whole split's is their mean over examples, which slices of two kinds share.
    sliced = by_band(rows[~rows["run_id"].isin(asked.index) & (rows["stage"].isin(PARTED))], whole=True)
    kinds = sliced["slice"].map(lambda text: ", ".join(sorted(slice_names(text))))
    sliced = sliced[kinds == kinds.groupby(sliced["run_id"]).transform("first")]
    sums = sliced.assign(value=sliced["value"] * sliced["count"]).groupby("run_id")[["value", "count"]].sum()
    # What a study has at several settings is no value of the run; at one, which is its own, it is.
    studied = rows[~rows["run_id"].isin(asked.index) & ~rows["stage"].isin(PARTED)]
    alone = studied[~studied["run_id"].duplicated(keep=False)].set_index("run_id")["value"]
    return pd.concat([asked, sums["value"] / sums["count"], alone])


def scored_cells(frames: Frames, column: Column) -> pd.DataFrame:
    """The cells of the column with its `value`, NaN where there is none."""
    cells = rows_of(frames.cells, column)
    return cells.assign(value=cells["run_id"].map(per_run(frames, column, column.metric)))


def outcomes(statuses: pd.Series) -> str:
    """What became of cells without a value: "diverged", or "2 diverged, 1 missing"; nothing of none."""
    counts = statuses.replace("done", "not measured").str.replace("_", " ").value_counts()
    if len(counts) == 1 and counts.iloc[0] == 1:
        return counts.index[0]
    return ", ".join(f"{count} {status}" for status, count in counts.sort_index().items())


def summarised(cells: pd.DataFrame, keys: Sequence[str], metric: str) -> pd.DataFrame:
    """One row a value of the keys: the `seed_summary` of the cells' `value`, asked, what became of those without one, runs.

    Raises NoData where a value of the keys has cells of several arms.
    """
    check_one_arm(cells, keys)
    rows = []
    # A group of all settings, which are hundreds, takes longer to cut out than to summarise.
    needed = cells[list(dict.fromkeys([*keys, "value", "seed", "status", "run_id"]))]
    for key, group in needed.groupby(list(keys), sort=False):
        missing = group["value"].isna()
        found = seed_summary(group.loc[~missing, "value"].to_numpy(), metric)
        counts = {"of_seeds": tuple(group.loc[~missing, "seed"]), "asked": len(group), "runs": ids_of(group)}
        counts["without"] = outcomes(group.loc[missing, "status"])
        rows.append(dict(zip(keys, key, strict=True)) | {"metric": metric, **found, **counts})
    return pd.DataFrame(rows)


def summarise(frames: Frames, column: Column) -> pd.DataFrame:
    """`summarised` by arm of the cells that were asked for the column, with chance and bound."""
    table = summarised(scored_cells(frames, column), ["arm", "family", "model", "task"], column.metric)
    if table.empty:
        return table
    run_arms = frames.cells.set_index("run_id")["arm"]
    chance, bound = (per_run(frames, column, name) for name in ("chance", column.bound))
    chance, bound = (values.groupby(run_arms).mean().reindex(table["arm"]).to_numpy() for values in (chance, bound))
    return table.assign(chance=np.nan_to_num(chance), bound=bound, **{SETTING: table["arm"].map(task_settings(frames, column))})


def task_settings(frames: Frames, column: Column) -> dict[str, str]:
    """By arm of the column how its task was set and on which text, as far as that varies: scores of two such are not compared."""
    cells = rows_of(frames.cells, column)
    return dict(zip(cells["arm"], task_setting(cells), strict=True))


def number(value: float, metric: str) -> str:
    return f"{value:,.{METRICS[metric].digits}f}"


def entries_of(summary: pd.DataFrame, metric: str, *, within: str) -> dict[str, Entry]:
    """By arm the mean, its interval when there is one, its bound, and what is not in it; marked `within` a column."""
    marked, entries = marks(summary, metric, within=within), {}
    for row in summary.to_dict("records"):
        text = number(row["mean"], metric)
        # A fact like the number of parameters is the same for every seed: an interval would be noise.
        if METRICS[metric].better:
            text += spread(row, digits=METRICS[metric].digits, chance=row["chance"])
        if row["bound"] < 1:
            text += f" (≤\N{NO-BREAK SPACE}{number(row['bound'], metric)})"
        if row["n"] < row["asked"]:
            text += f" (n={row['n']};\N{NO-BREAK SPACE}{row['without']})"
        entry = Entry(text, row["mean"], marked.get(row["arm"], "")) if row["n"] else Entry(row["without"])
        entries[row["arm"]] = replace(entry, runs=opened(row))
    return entries


def entries_by(
    data: pd.DataFrame, keys: Keys, column: Keys, names: Iterable, entry: Callable[[Mapping, Any], Entry], absent: str = "–"
) -> Iterator[tuple[Any, list[Entry]]]:
    """Every value of the keys, in the order of the data, and for each name in the column entry(row, name), or what is absent."""
    names = list(names)
    for key, own in data.groupby(keys, sort=False):
        found = own.set_index(column).to_dict("index")
        yield key, [entry(found[name], name) if name in found else Entry(absent) for name in names]


def opened(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The ids of the runs behind a row of a summary, for its entry."""
    return tuple(str(row.get("runs") or "").split())


def mean_entry(row: Mapping[str, object], metric: str, *, difference: bool = False, digits: int | None = None) -> Entry:
    """A row of `over_runs`: "1.234 ± 0.056", a difference with its sign; TINY ones without interval, "1.2e-5".

    digits: those of the metric where none are given.
    """
    if metric in TINY:
        return Entry(scientific(row["mean"]), row["mean"], runs=opened(row))
    digits = METRICS[metric].digits if digits is None else digits
    text = signed(row["mean"], digits) if difference else f"{row['mean']:,.{digits}f}"
    return Entry(text + spread(row, digits=digits, difference=difference), row["mean"], runs=opened(row))


def spread(row: Mapping[str, object], *, digits: int, difference: bool = False, chance: float = 0.0) -> str:
    """What stands behind the mean of a `seed_summary`: " ± 0.056", " [0, 0.1]" where a limit cuts it, or the seeds themselves."""
    low, high = row["mean"] - row["low"], row["high"] - row["mean"]
    if row["half_width"] > 0 and row["n"] > 2:
        if np.isclose(low, high):
            return f" ±\N{NO-BREAK SPACE}{row['half_width']:,.{digits}f}"
        return f" [{row['low']:,.{digits}f}, {row['high']:,.{digits}f}]"
    texts = [signed(value, digits) if difference else f"{value:,.{digits}f}" for value in row["each"]]
    if len(set(texts)) < 2:
        return ""
    if len(texts) <= SEEDS_SHOWN:
        return f" ({'; '.join(texts)})"
    if difference:
        return ""
    learnt = sum(value > (1 + chance) / 2 for value in row["each"])
    low, high = share_interval(learnt, len(texts))
    return f" (learnt by {learnt} of {len(texts)} [{low:.2f}, {high:.2f}])"


def notes_on(cells: pd.DataFrame) -> list[str]:
    """`outcome_notes`, and what the intervals over seeds are."""
    if cells.groupby(["arm", "task"]).size().max() > 1:
        return [*outcome_notes(cells), "± is half the 95 % t interval over seeds.", NO_INTERVAL]
    return [*outcome_notes(cells), "One seed each (n=1): differences between models may be chance."]


def outcome_notes(cells: pd.DataFrame) -> list[str]:
    """What was asked and what became of it, and the runs that did not finish, by name."""
    counts = cells["status"].str.replace("_", " ").value_counts()
    notes = [f"{counted(len(cells), 'run')} asked for: {', '.join(f'{count} {status}' for status, count in counts.items())}."]
    for cell in cells[cells["status"] != "done"].itertuples():
        reason = f" ({cell.reason})" if cell.reason else ""
        notes.append(f"{cell.status.replace('_', ' ')}: {cell.arm}, {cell.task}, seed {cell.seed}{reason}.")
    return [*notes, *_texts_notes(cells)]


def _texts_notes(cells: pd.DataFrame) -> Iterator[str]:
    """Which arms are of which text, where a task has several: a label names it only where it tells arms of one model apart."""
    for task, own in cells.dropna(subset="data").groupby("task"):
        if own["data"].nunique() > 1:
            told = (f"{data} ({', '.join(dict.fromkeys(each['arm']))})" for data, each in own.groupby("data", sort=False))
            yield f"Runs of {task_label(str(task))} are on several texts, whose scores are no comparison: {'; '.join(told)}."


def state_notes(runs: pd.DataFrame) -> list[str]:
    """Which arms' state bytes were counted as float32 although their cache of keys and values was narrower."""
    old = runs[runs["state_counted"] == "as float32"] if "state_counted" in runs else runs.iloc[:0]
    arms = ", ".join(sorted(set(old["arm"])))
    return [f"Old runs under autocast, whose state is counted as float32, twice what attention holds: {arms}."] if arms else []
