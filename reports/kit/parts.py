"""What the parts of a report are made of: the frames they read, and the tables and drawings they return."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from reports.kit.style import fact_text
from suite.results import load_curves, load_examples, load_request, load_results, load_runs

ALIKE = ["model", "size", "task", "data"]
TELLING = ("size", "train", "model", "task")
"""The groups of settings in the order in which they name a run: the size of a head before the key size that follows from it."""
UNTOLD = re.compile(r"paths\.|model\.lr\.|(.*\.)?(label|version|mlp_dim|path|paths|include_path|seed)$")
"""Settings that name no run: words about it, paths, what matching makes, and a model's table of default learning rates."""


class NoData(ValueError):
    """The store holds nothing that a part could show; the report prints the reason in its place."""


@dataclass(frozen=True)
class Frames:
    """Everything one experiment's latest request left in the store.

    cells: one row a run that was asked for, with its `status` ("missing" when the store does not have it), `reason`, every
    fact and setting of the run that is known, `arm`, the label of what is compared: the model, and whatever else but the
    seed tells two of its runs of a task apart; and `family`, the label of the model alone, which all its arms share.
    results, examples, curves and runs have the columns `arm` and `family` too.
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
class Entry:
    """One entry of a table: its text, what it is sorted by (its text when None), and "", "best" or "second"."""

    text: str
    sort: float | None = None
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """A table to be read, the numbers that it prints in tidy form, and remarks printed below it."""

    data: pd.DataFrame
    header: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...] = ()


def load_frames(root: Path, experiment: str) -> Frames:
    """The frames of the latest request for an experiment.

    Raises ValueError when the store has no request for it, or not one of its runs.
    """
    request = load_request(root, experiment)
    if request is None:
        raise ValueError(f"no results under {root} for experiment {experiment!r}")
    asked = pd.DataFrame(request["cells"]).drop_duplicates("run_id", ignore_index=True)
    run_ids = set(asked["run_id"])
    runs = load_runs(root, run_ids)
    cells = with_settings(asked, runs).fillna({"status": "missing", "reason": ""})
    cells["arm"] = labels(cells, ("model", "size", "data", *varying(cells), "backend", "group_id"))
    cells["family"] = labels(cells, ("model",))
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


def with_settings(asked: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """The cells of a request with what their runs know; an old request says less, and a run that was never begun nothing.

    Such a run has the settings of the runs of its group, which are other seeds of it.
    """
    known = runs.set_index("run_id").reindex(asked["run_id"]).reset_index(drop=True)
    both = asked.columns.intersection(known.columns)
    cells = pd.concat([asked.fillna(known[both]), known.drop(columns=both)], axis=1)
    settings = ["backend", *(name for name in cells if "." in name)]
    return cells.assign(**cells[settings].fillna(cells.groupby("group_id")[settings].transform("first")))


def varying(table: pd.DataFrame) -> list[str]:
    """The settings (columns with dotted names) that differ between runs of one model, size, task and text, as TELLING orders."""
    settings = [name for name in table if "." in name and not UNTOLD.match(name)]
    differ = [name for name in settings if (table.groupby(ALIKE, dropna=False)[name].nunique(dropna=False) > 1).any()]
    rank = {group: i for i, group in enumerate(TELLING)}
    return sorted(differ, key=lambda name: rank.get(name.partition(".")[0], len(rank)))


def of_request(rows: pd.DataFrame, cells: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows without studies whose settings the request did not ask for: other experiments may share its runs.

    The rows of stages that the request did not ask for at all stay, such as benchmarks that were added later.
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
    begun = cells[[name for name in cells if "." in name]].notna().any(axis=1)
    for fact in facts:
        value = cells[fact].astype(object).where(cells[fact].notna(), None).map(partial(fact_text, fact))
        # A setting that is null is named too; a run that was never begun may have nothing that is known.
        value = value.where(begun | ("." not in fact), "")
        varies = value.groupby([label, cells["task"]]).transform("nunique") > 1
        ambiguous = varies.groupby([label, value]).transform("any") & (value != "")
        label = label.where(~ambiguous, label + ", " + value)
    return label


def most_thorough(rows: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    """One row a key: where a run was evaluated more than once, the evaluation over most units, of the newest version."""
    ordered = rows[~rows["superseded"].astype(bool)].sort_values(["count", "evaluation"], kind="stable")
    return ordered.drop_duplicates(key, keep="last").sort_index(ignore_index=True)
