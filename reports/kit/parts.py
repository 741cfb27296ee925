"""What the parts of a report are made of: the frames they read, and the tables and drawings they return."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from suite.naming import labels, varying
from suite.results import RESULT_COLUMNS, RUN_COLUMNS, Reader, load_request

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# As pandas holds text where pyarrow is not installed: Arrow's strings take longer where a few rows are taken at a time.
PLAIN_STRINGS = pd.option_context("mode.string_storage", "python")

TEXT_DIGITS = 6
"""So many digits of a text's digest are shown where its name alone does not tell it apart."""


class NoData(ValueError):
    """The store holds nothing that a part could show; the report prints the reason in its place."""


@dataclass(frozen=True, eq=False)
class Frames:
    """Everything one experiment's latest request left in the store.

    cells: one row a run that was asked for, with its `status` ("missing" when the store does not have it), `reason`, every
    fact and setting of the run that is known, `arm`, the label of what is compared: the model, and whatever else but the
    seed tells two of its runs of a task apart; and `family`, the label of the model alone, which all its arms share.
    results, examples, curves and runs have the columns `arm` and `family` too. examples and curves, which are most of what a
    store holds, are read when something first asks for them, by read_examples and read_curves, which `load_frames` makes: called
    with the ids of some runs they read the files of these alone.
    request: {"experiment", "created", "overrides"}, and "requests" of an experiment in the store (see
    `suite.store.requests.load_request`) or "where" of whatever a store held, and the name of the "page" that was asked for.
    """

    results: pd.DataFrame
    runs: pd.DataFrame
    cells: pd.DataFrame
    request: Mapping[str, Any]
    read_examples: Callable[..., pd.DataFrame]
    read_curves: Callable[..., pd.DataFrame]

    @functools.cached_property
    def examples(self) -> pd.DataFrame:
        return self.read_examples()

    @functools.cached_property
    def curves(self) -> pd.DataFrame:
        return self.read_curves()


@dataclass(frozen=True)
class Drawing:
    """A figure, the numbers that it draws, and remarks printed below it."""

    data: pd.DataFrame
    figure: Figure
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One entry of a table: its text, what it is sorted by (its text when None), and "", "best" or "second".

    runs: the ids of the runs that the entry is about, which the page opens from it.
    """

    text: str
    sort: float | None = None
    mark: str = ""
    runs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table to be read, the numbers that it prints in tidy form, and remarks printed below it.

    short: the header where a table has to be narrow; empty where that is the header.
    """

    data: pd.DataFrame
    header: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...] = ()
    short: tuple[str, ...] = ()


def load_frames(root: Path, experiment: str) -> Frames:
    """The frames of the latest request for an experiment.

    Raises ValueError when the store has no request for it, or not one of its runs.
    """
    request = load_request(root, experiment)
    if request is None:
        raise ValueError(f"no results under {root} for experiment {experiment!r}")
    return frames_of(root, request)


def no_frames(request: Mapping[str, Any]) -> Frames:
    """The frames of a store that has none of the runs that a page is about: no row, and the columns that all stores have."""
    labelled = [*RUN_COLUMNS, "reason", "arm", "family"]
    rows, runs = (
        pd.DataFrame(columns=names, dtype=object) for names in ([*RESULT_COLUMNS, "arm", "family"], [*labelled, "code"])
    )
    rows = rows.astype({"superseded": bool, "value": float, "count": int})
    examples = rows.reindex(columns=[*rows.columns, "example", "document"])
    curves = pd.DataFrame(columns=[*labelled, "step", "tokens", "loss"], dtype=object)
    return Frames(rows, runs, runs, request, lambda run_ids=None: examples, lambda run_ids=None: curves)


@PLAIN_STRINGS
def frames_of(root: Path, request: Mapping[str, Any], *, with_facts: bool = True, reader: Reader | None = None) -> Frames:
    """The frames of a request, whether or not the store keeps it: see `Frames`, with its "cells".

    with_facts: whether the results repeat the facts and settings of runs, which takes most of the time that many runs take.
    reader: of these runs of the store, or of more, where some of what they say was read already.
    Raises ValueError when the store has not one of its runs.
    """
    asked = pd.DataFrame(request["cells"]).drop_duplicates("run_id", ignore_index=True)
    run_ids = set(asked["run_id"])
    read = reader.of(run_ids) if reader else Reader(root, run_ids)
    runs = read.runs()
    cells = with_settings(asked, runs).fillna({"status": "missing", "reason": ""})
    texts = texts_apart(cells)
    cells = texts(cells)
    cells["arm"] = labels(cells, ("model", "size", "data", *varying(cells), "backend", "group_id"))
    cells["family"] = labels(cells, ("model",))
    arms = cells[["run_id", "arm", "family"]]

    def asked_for(rows: pd.DataFrame, *more: str) -> pd.DataFrame:
        key = ["run_id", "stage", "metric", "split", "slice", *more]
        return texts(most_thorough(of_request(rows, request["cells"]), key)).merge(arms, on="run_id")

    def of(run_ids: Collection[str] | None) -> Reader:
        return read if run_ids is None else read.of(run_ids)

    return Frames(
        results=asked_for(read.results(with_facts=with_facts)),
        runs=texts(runs).merge(arms, on="run_id"),
        cells=cells,
        request={key: value for key, value in request.items() if key != "cells"},
        read_examples=lambda run_ids=None: asked_for(of(run_ids).examples(), "example"),
        read_curves=lambda run_ids=None: texts(of(run_ids).curves()).merge(arms, on="run_id"),
    )


def texts_apart(cells: pd.DataFrame) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """What names, in the column `data` of a frame of these runs, texts apart that share a name: "text 91e51d" by their digest.

    Whatever is read by data=text is called text, and so is a text before and after it grew. Scores on different texts would
    stand beside each other, and their examples would be compared in pairs.
    """
    if "data_fingerprint" not in cells:
        return lambda table: table
    # A run that was never begun has the text of the other seeds of it.
    digests = cells["data_fingerprint"].fillna(cells.groupby("group_id")["data_fingerprint"].transform("first"))
    several = (digests.groupby(cells["data"]).transform("nunique") > 1) & digests.notna()
    told = cells["data"][several] + " " + digests[several].map(str).str[:TEXT_DIGITS]
    names = dict(zip(cells["run_id"][several], told, strict=True))

    def named(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(data=table["run_id"].map(names).fillna(table["data"])) if names else table

    return named


def with_settings(asked: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """The cells of a request with what their runs know; an old request says less, and a run that was never begun nothing.

    Such a run has the settings of the runs of its group, which are other seeds of it.
    """
    known = runs.set_index("run_id").reindex(asked["run_id"]).reset_index(drop=True)
    both = asked.columns.intersection(known.columns)
    cells = pd.concat([asked.fillna(known[both]), known.drop(columns=both)], axis=1)
    settings = ["backend", *(name for name in cells if "." in name)]
    # What every cell has is not looked up in its group, which takes a while for hundreds of columns.
    settings = [name for name, lacking in cells[settings].isna().any().items() if lacking]
    filled = cells[settings].fillna(cells.groupby("group_id")[settings].transform("first"))
    # Together: pandas warns of a frame to which hundreds of columns were assigned one by one.
    return pd.concat([cells.drop(columns=settings), filled], axis=1)[cells.columns]


def of_request(rows: pd.DataFrame, cells: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows without studies whose settings the request did not ask for: other experiments may share its runs.

    The rows of stages that the request did not ask for at all stay, such as benchmarks that were added later.
    """
    asked = {(cell["run_id"], study) for cell in cells for study in cell.get("studies", ())}
    if not asked:
        return rows
    stages = {(run_id, study.rpartition("-")[0]) for run_id, study in asked}
    kept = [
        (run_id, stage) not in stages or (run_id, evaluation) in asked
        for run_id, stage, evaluation in zip(rows["run_id"], rows["stage"], rows["evaluation"], strict=True)
    ]
    return rows[pd.Series(kept, index=rows.index, dtype=bool)]


def most_thorough(rows: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    """One row a key: where a run was evaluated more than once, the evaluation over most units, of the newest version.

    Of two over as many units it is the one that more runs have, so that runs are compared by the same.
    """
    # The columns that decide alone: there are dozens of others, whose rows would be put in order too.
    deciding = rows.loc[~rows["superseded"].astype(bool), list(dict.fromkeys([*key, "count", "evaluation"]))]
    shared = deciding[["run_id", "evaluation"]].drop_duplicates()["evaluation"].value_counts()
    deciding = deciding.assign(shared=deciding["evaluation"].map(shared))
    ordered = deciding.sort_values(["count", "shared", "evaluation"], kind="stable")
    kept = ordered.index[~ordered.duplicated(key, keep="last")]
    return rows.loc[kept.sort_values()].reset_index(drop=True)
