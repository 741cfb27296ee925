"""The tables of a report: pure functions of its frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd

from reports.parts import Cell, Frames, NoData, Table
from reports.study import NO_INTERVAL, seed_summary, spread
from reports.style import arms_in_order, fact_label, task_label
from suite.metrics import METRICS, axis_label


@dataclass(frozen=True)
class Column:
    """One column: a metric of a task's runs, from a stage and split; a fact of the run where stage is empty.

    size: of the models; empty for any. slice: as its rows spell it, "num_pairs=8"; empty for the whole split.
    bound: the metric that says how much of this one is within reach, printed beside it; empty for none.
    """

    metric: str
    task: str
    size: str = ""
    stage: str = ""
    split: str = ""
    slice: str = ""
    bound: str = ""

    @property
    def title(self) -> str:
        return f"{task_label(self.task)} {axis_label(self.metric)}" if self.stage else axis_label(self.metric)


def column_of(config: Mapping[str, str]) -> Column:
    """A column from its configuration; ValueError for a field that it has not or a metric that is not in the table."""
    known = [field.name for field in fields(Column)]
    if not {"metric", "task"} <= set(config) <= set(known):
        raise ValueError(f"a column has {known}, of which metric and task are needed; not {sorted(config)}")
    if config["metric"] not in METRICS:
        raise ValueError(f"metric {config['metric']!r} is not one of {', '.join(METRICS)}")
    return Column(**config)


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
    # References may come by slice alone; the whole split's is their mean over examples.
    sliced = rows[~rows["run_id"].isin(asked.index)]
    sums = sliced.assign(value=sliced["value"] * sliced["count"]).groupby("run_id")[["value", "count"]].sum()
    return pd.concat([asked, sums["value"] / sums["count"]])


def outcomes(statuses: pd.Series) -> str:
    """What became of cells without a value: "diverged", or "2 diverged, 1 missing"; nothing of none."""
    counts = statuses.replace("done", "not measured").str.replace("_", " ").value_counts()
    if len(counts) == 1 and counts.iloc[0] == 1:
        return counts.index[0]
    return ", ".join(f"{count} {status}" for status, count in counts.sort_index().items())


def summarise(frames: Frames, column: Column) -> pd.DataFrame:
    """One row an arm that was asked for the column: its `seed_summary`, chance, asked, bound, and what became of the rest."""
    values, bounds, chances = (per_run(frames, column, metric) for metric in (column.metric, column.bound, "chance"))
    rows = []
    for arm, cells in rows_of(frames.cells, column).groupby("arm", sort=False):
        found = values.reindex(cells["run_id"]).to_numpy()
        missing = np.isnan(found)
        rows.append(
            {
                "arm": arm,
                "family": cells["family"].iloc[0],
                "model": cells["model"].iloc[0],
                "task": column.task,
                "metric": column.metric,
                **seed_summary(found[~missing], column.metric),
                "chance": np.nan_to_num(chances.reindex(cells["run_id"]).mean()),
                "asked": len(cells),
                "bound": bounds.reindex(cells["run_id"]).mean(),
                "without": outcomes(cells.loc[missing, "status"]),
            }
        )
    return pd.DataFrame(rows)


def marks(summary: pd.DataFrame, metric: str) -> dict[str, str]:
    """Which arms are "best" and "second", compared as printed, so that equal numbers are marked alike."""
    better, digits = METRICS[metric].better, METRICS[metric].digits
    means = summary.set_index("arm")["mean"].dropna().round(digits)
    if not better or len(means) < 2:
        return {}
    ranked = np.sort(means.unique())
    best, second = (ranked[::-1] if better == "higher" else ranked)[:2] if len(ranked) > 1 else (ranked[0], None)
    return {arm: "best" if mean == best else "second" for arm, mean in means.items() if mean in (best, second)}


def number(value: float, metric: str) -> str:
    return f"{value:,.{METRICS[metric].digits}f}"


def value_cell(row: Mapping[str, object], mark: str) -> Cell:
    """The text of a summary's row: the mean, its interval when there is one, its bound, and what is not in it."""
    metric, n, asked = row["metric"], row["n"], row["asked"]
    if n == 0:
        return Cell(row["without"])
    text = number(row["mean"], metric)
    # A fact like the number of parameters is the same for every seed: an interval would be noise.
    if METRICS[metric].better:
        text += spread(row, digits=METRICS[metric].digits, chance=row["chance"])
    if row["bound"] < 1:
        text += f" (≤\N{NO-BREAK SPACE}{number(row['bound'], metric)})"
    if n < asked:
        text += f" (n={n};\N{NO-BREAK SPACE}{row['without']})"
    return Cell(text, row["mean"], mark)


def value_cells(summary: pd.DataFrame, marked: Mapping[str, str]) -> dict[str, Cell]:
    """The cell of every arm of a summary."""
    return {row["arm"]: value_cell(row, marked.get(row["arm"], "")) for row in summary.to_dict("records")}


def comparison(frames: Frames, *, columns: Sequence[Mapping[str, str]], floors: Mapping[str, Sequence[str]]) -> Table:
    """Model x metric, best and second best marked, with what is known without training in the last rows.

    columns: the fields of `Column`. floors: per metric of a column the reference metrics that get a row of their own.
    """
    wanted = [column_of(column) for column in columns]
    wanted = [column for column in wanted if column.task in set(frames.cells["task"])]
    if not wanted:
        raise NoData(f"no run of the tasks {sorted({column['task'] for column in columns})} was asked for")
    summaries = [summarise(frames, column) for column in wanted]
    rows = []
    scored = [value_cells(summary, marks(summary, column.metric)) for column, summary in zip(wanted, summaries, strict=True)]
    run_ids = pd.concat([rows_of(frames.cells, column)["run_id"] for column in wanted])
    cells = frames.cells[frames.cells["run_id"].isin(run_ids)]
    for arm, _ in arms_in_order(cells):
        asked = cells[cells["arm"] == arm].groupby("task").size()
        own = (of_arm.get(arm, Cell("not asked")) for of_arm in scored)
        rows.append((Cell(arm), *own, Cell(f"n={asked.max()}", float(asked.max()))))
    reference_rows, references = _reference_rows(frames, wanted, floors)
    data = pd.concat([*summaries, references], ignore_index=True)
    header = ("model", *(column.title for column in wanted), "seeds")
    notes = [*notes_on(cells), *(state_notes(frames.runs) if "state_bytes" in set(data["metric"]) else ())]
    if data["bound"].lt(1).any():
        notes.append("≤ is the most that a model can reach that sees no further back than its window.")
    return Table(data, header, (*rows, *reference_rows), tuple(notes))


def _reference_rows(
    frames: Frames, columns: Sequence[Column], floors: Mapping[str, Sequence[str]]
) -> tuple[list[tuple[Cell, ...]], pd.DataFrame]:
    """One row a reference, its value in the column that it bounds, and the same numbers in tidy form."""
    rows, tidy = [], []
    for i, column in enumerate(columns):
        for metric in floors.get(column.metric, ()):
            values = per_run(frames, column, metric)
            if values.empty:
                continue
            value = float(values.mean())
            cells = [Cell("")] * len(columns)
            cells[i] = Cell(number(value, column.metric), value)
            rows.append((Cell(METRICS[metric].label), *cells, Cell("")))
            tidy.append({"arm": METRICS[metric].label, "task": column.task, "metric": metric, "mean": value})
    return rows, pd.DataFrame(tidy)


def notes_on(cells: pd.DataFrame) -> list[str]:
    """`outcome_notes`, and what the intervals over seeds are."""
    if cells.groupby(["arm", "task"]).size().max() > 1:
        return [*outcome_notes(cells), "± is half the 95 % t interval over seeds.", NO_INTERVAL]
    return [*outcome_notes(cells), "One seed each (n=1): differences between models may be chance."]


def state_notes(runs: pd.DataFrame) -> list[str]:
    """Which arms' state bytes were counted as float32 although their cache of keys and values was narrower."""
    old = runs[runs["state_counted"] == "as float32"] if "state_counted" in runs else runs.iloc[:0]
    arms = ", ".join(sorted(set(old["arm"])))
    return [f"Old runs under autocast, whose state is counted as float32, twice what attention holds: {arms}."] if arms else []


def outcome_notes(cells: pd.DataFrame) -> list[str]:
    """What was asked and what became of it, and the runs that did not finish, by name."""
    counts = cells["status"].str.replace("_", " ").value_counts()
    notes = [f"{len(cells)} runs asked for: {', '.join(f'{count} {status}' for status, count in counts.items())}."]
    for cell in cells[cells["status"] != "done"].itertuples():
        reason = f" ({cell.reason})" if cell.reason else ""
        notes.append(f"{cell.status.replace('_', ' ')}: {cell.arm}, {cell.task}, seed {cell.seed}{reason}.")
    return notes


def settings(frames: Frames, *, facts: Sequence[str]) -> Table:
    """Per task the facts that its runs were made with; a fact that differs between runs is given as its range or list."""
    if frames.runs.empty:
        raise NoData("no run of this request is in the store")
    present = [fact for fact in facts if fact in frames.runs]
    rows, tidy = [], []
    for task, runs in frames.runs.groupby("task"):
        texts = [_values_text(runs[fact].dropna().unique()) for fact in present]
        rows.append((Cell(str(task)), *(Cell(text) for text in texts)))
        tidy.append({"task": task} | dict(zip(present, texts, strict=True)))
    return Table(pd.DataFrame(tidy), ("task", *(fact_label(fact) for fact in present)), tuple(rows))


def _values_text(values: np.ndarray) -> str:
    if len(values) == 0:
        return "–"
    if all(isinstance(value, int | float | np.number) for value in values):
        low, high = (f"{bound:,.6g}" if abs(bound) < 1e6 else f"{bound:,.0f}" for bound in (min(values), max(values)))
        return low if low == high else f"{low} to {high}"
    return ", ".join(sorted(map(str, values)))
