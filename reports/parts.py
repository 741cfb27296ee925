"""What the parts of a report are made of: the frames they read, and the tables and drawings they return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from reports.style import fact_text
from suite.results import CELL_COLUMNS, load_curves, load_examples, load_request, load_results, load_runs

VARIED = (
    "head_dim",
    "lr",
    "forget_gate_init",
    "forget_cap",
    "regularizer_floor",
    "solver_max_steps",
    "solver_tolerance",
    "random_steps",
    "solver_gradient",
    "noise",
    "drift",
    "segment_len",
    "backend",
)
"""Facts of a run that an experiment varies on purpose; a request that was written before they were has none."""


class NoData(ValueError):
    """The store holds nothing that a part could show; the report prints the reason in its place."""


@dataclass(frozen=True)
class Frames:
    """Everything one experiment's latest request left in the store.

    cells: one row a run that was asked for, with its `status` ("missing" when the store does not have it), `reason`,
    `arm`, the label of what is compared: the model, and whatever else tells two of its runs of a task apart but the
    seed; and `family`, the label of the model alone, which all its arms share. results, examples, curves and runs have
    the columns `arm` and `family` too.
    request: {"experiment", "created", "overrides"}.
    """

    results: pd.DataFrame
    examples: pd.DataFrame
    runs: pd.DataFrame
    curves: pd.DataFrame
    cells: pd.DataFrame
    request: Mapping[str, Any]


@dataclass(frozen=True)
class Drawing:
    """A figure, the numbers that it draws, and remarks printed below it."""

    data: pd.DataFrame
    figure: Figure
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One cell: its text, what it is sorted by (its text when None), and "", "best" or "second"."""

    text: str
    sort: float | None = None
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """A table to be read, the numbers that it prints in tidy form, and remarks printed below it."""

    data: pd.DataFrame
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()


def load_frames(root: Path, experiment: str) -> Frames:
    """The frames of the latest request for an experiment.

    Raises ValueError when the store has no request for it, or not one of its runs.
    """
    request = load_request(root, experiment)
    if request is None:
        raise ValueError(f"no results under {root} for experiment {experiment!r}")
    cells = pd.DataFrame(request["cells"], columns=[*CELL_COLUMNS, *VARIED]).drop_duplicates("run_id", ignore_index=True)
    cells["arm"] = labels(cells, ("model", "size", "data", *VARIED, "group_id"))
    cells["family"] = labels(cells, ("model",))
    run_ids = set(cells["run_id"])
    runs = load_runs(root, run_ids)
    cells = cells.merge(runs[["run_id", "status", "reason"]], on="run_id", how="left")
    cells = cells.fillna({"status": "missing", "reason": ""})
    results, examples = (of_request(load(root, run_ids), request["cells"]) for load in (load_results, load_examples))
    arms = cells[["run_id", "arm", "family"]]
    return Frames(
        results=most_thorough(results, ["run_id", "stage", "metric", "split", "slice"]).merge(arms, on="run_id"),
        examples=most_thorough(examples, ["run_id", "stage", "metric", "split", "slice", "example"]).merge(arms, on="run_id"),
        runs=runs.merge(arms, on="run_id"),
        curves=load_curves(root, run_ids).merge(arms, on="run_id"),
        cells=cells,
        request={key: request[key] for key in ("experiment", "created", "overrides")},
    )


def of_request(rows: pd.DataFrame, cells: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows less those of studies that the request asked for otherwise: other experiments may share its runs.

    Stages that it did not ask for at all stay, such as benchmarks that were added later.
    """
    asked = {(cell["run_id"], study) for cell in cells for study in cell.get("studies", ())}
    stages = {(run_id, study.rpartition("-")[0]) for run_id, study in asked}
    kept = [
        (run_id, stage) not in stages or (run_id, evaluation) in asked
        for run_id, stage, evaluation in zip(rows["run_id"], rows["stage"], rows["evaluation"], strict=True)
    ]
    return rows[pd.Series(kept, index=rows.index, dtype=bool)]


def labels(cells: pd.DataFrame, facts: Sequence[str]) -> pd.Series:
    """One label a cell: the model's label and, in this order, those facts that tell two cells of a task apart.

    A fact is named in every task that has the same value of it: language and recall of one size share a label.
    """
    label = cells["model_label"].fillna(cells["model"]).astype(str)
    for fact in facts:
        # A fact that only some of a model's runs have, such as a cap, is named where it is missing too.
        value = cells[fact].astype(object).where(cells[fact].notna(), None).map(partial(fact_text, fact))
        varies = value.groupby([label, cells["task"]]).transform("nunique") > 1
        ambiguous = varies.groupby([label, value]).transform("any") & (value != "")
        label = label.where(~ambiguous, label + ", " + value)
    return label


def most_thorough(rows: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    """One row a key: where a run was evaluated more than once, the evaluation over most units, of the newest version."""
    ordered = rows[~rows["superseded"].astype(bool)].sort_values(["count", "evaluation"], kind="stable")
    return ordered.drop_duplicates(key, keep="last").sort_index(ignore_index=True)
