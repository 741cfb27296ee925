"""The reading side of the results store: from a folder of runs to DataFrames.

    runs/<run_id>/run.json, status.json, metrics.jsonl, train.json, eval/<evaluation>-<hash>.json
    experiments/<experiment>-<hash>.json

A store may come from a stranger, or be damaged: only JSON is read, no link is followed, a file that is not what was
written is skipped with a warning that names it, and what the frames hold as text is inert where it is shown. Many runs are
read by an index of the user's own, with the same outcome (see suite.store.index).
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd

from suite.store.code_state import age
from suite.store.columns import Column, Group, Table, beside, tabulated
from suite.store.index import Store
from suite.store.records import CODE, CURVE_COLUMNS, MACHINE_COLUMNS, ROW_COLUMNS, RUN_COLUMNS, RunFiles
from suite.store.requests import load_request

__all__ = [
    "MACHINE_COLUMNS",
    "RESULT_COLUMNS",
    "RUN_COLUMNS",
    "Reader",
    "load_curves",
    "load_examples",
    "load_request",
    "load_results",
    "load_runs",
]

RESULT_COLUMNS = [*RUN_COLUMNS, *ROW_COLUMNS]
"""The columns that the rows of every store have."""


def load_runs(root: str | Path, run_ids: Collection[str] | None = None) -> pd.DataFrame:
    """One row a run: RUN_COLUMNS, `reason`, `failed_stage` and `failed_step` of its status, every fact, MACHINE_COLUMNS, the
    `command` that was typed for it, and every setting that decides its numbers by its dotted key, such as "train.lr" and
    "model.mixer.key_dim".

    code: whether "today"'s code trained the run, "another" state of it, or one that is "unknown" (see suite.store.code_state).

    run_ids: only these runs; None for all. Raises ValueError when there is none.
    """
    return Reader(root, run_ids).runs()


def load_results(root: str | Path, run_ids: Collection[str] | None = None) -> pd.DataFrame:
    """Tidy rows: RUN_COLUMNS, facts and settings as in `load_runs`, one column a slice (`position`, ...), ROW_COLUMNS.

    `superseded` says that a newer result measured the same by another version of its benchmark, or of the data behind it.
    `slice` spells the slices out ("benchmark=recall, shots=1") and is empty for a score over the whole split;
    `evaluation` is the file's name. A slice hides a fact of the same name. Raises ValueError when there is no run.
    """
    return Reader(root, run_ids).results()


def load_examples(root: str | Path, run_ids: Collection[str] | None = None) -> pd.DataFrame:
    """One row an example of every result that keeps its examples: the columns of `load_results` less the facts, and
    `example` (its index within the split), `value` (NaN where the example has none) and `document`, the number of what it
    is a part of (NaN where that is not known, or it stands by itself).
    """
    return Reader(root, run_ids).examples()


def load_curves(root: str | Path, run_ids: Collection[str] | None = None) -> pd.DataFrame:
    """One row a logged step of training: RUN_COLUMNS and CURVE_COLUMNS, by run and step.

    A run that was killed and continued logs some steps twice: the last of them counts.
    """
    return Reader(root, run_ids).curves()


class Reader:
    """Reads frames of the same runs, whose own files are read once for all of them; see the functions above."""

    def __init__(self, root: str | Path, run_ids: Collection[str] | None = None) -> None:
        self._root = Path(root)
        self._store = Store(self._root, run_ids)

    def of(self, run_ids: Collection[str]) -> Reader:
        """The reader of some of these runs, which has what was read of them already."""
        own = copy.copy(self)
        own.__dict__.pop("_runs", None)
        own._store = self._store.of(run_ids)
        return own

    @functools.cached_property
    def _runs(self) -> tuple[list[str], Table]:
        """The readable runs, and a row of each. Raises ValueError where there is none."""
        found = self._store.read("run", self._store.run_ids)
        if not found.table.length:
            raise ValueError(f"no results under {self._root}")
        return [run_id for run_id, count in zip(found.run_ids, found.rows_of, strict=True) if count], _aged(found.table)

    def runs(self) -> pd.DataFrame:
        run_ids, runs = self._runs
        machines = self._store.read("machine", run_ids).table
        return beside(runs, machines, np.arange(runs.length), [*RUN_COLUMNS, "reason", "failed_stage", "failed_step"])

    def results(self, *, with_facts: bool = True) -> pd.DataFrame:
        """See `load_results`. with_facts: whether every row repeats the facts and settings of its run."""
        run_ids, runs = self._runs
        runs = runs if with_facts else runs.only(RUN_COLUMNS)
        found = self._store.read("rows", run_ids)
        table = beside(runs, found.table, np.repeat(np.arange(runs.length), found.rows_of), RESULT_COLUMNS)
        # Facts of these names are what an example is, and stand in its frame alone.
        return table.drop(columns=["examples", "groups"], errors="ignore")

    def examples(self) -> pd.DataFrame:
        run_ids, runs = self._runs
        rows, of, values, documents = [], [], [np.empty(0)], [np.empty(0)]
        for i, run_id in enumerate(run_ids):
            for row in RunFiles(self._root, run_id).rows():
                examples, groups = row.pop("examples"), row.pop("groups")
                if examples:
                    rows.append(row)
                    of.append(i)
                    values.append(np.array(examples, float))
                    documents.append(np.array(groups, float))
        first = [*RUN_COLUMNS, *(column for column in ROW_COLUMNS if column != "value")]
        table = beside(runs.only(RUN_COLUMNS), tabulated(rows), np.array(of, int), [*first, "value"]).drop(columns="value")
        lengths = [len(each) for each in values[1:]]
        table = table.take(np.repeat(np.arange(len(rows)), lengths)).reset_index(drop=True)
        numbers = [np.arange(length) for length in lengths]
        own = {"example": np.concatenate([np.empty(0, int), *numbers]), "value": np.concatenate(values)}
        own = pd.DataFrame(own | {"document": np.concatenate(documents)})
        return pd.concat([table[first], own, table.drop(columns=first)], axis=1)

    def curves(self) -> pd.DataFrame:
        run_ids, runs = self._runs
        found = [RunFiles(self._root, run_id).curve() for run_id in run_ids]
        of = np.repeat(np.arange(len(found)), [len(lines) for lines in found])
        lines = tabulated([line for lines in found for line in lines])
        table = beside(runs.only(RUN_COLUMNS), lines, of, [*RUN_COLUMNS, *CURVE_COLUMNS])
        return table.drop_duplicates(["run_id", "step"], keep="last").sort_values(["run_id", "step"], ignore_index=True)


def _aged(runs: Table) -> Table:
    """The runs with the age of their code in the place of its record."""
    groups = []
    for group in runs.groups:
        i = group.keys.index(CODE)
        column = group.columns[i]
        ages = Column(column.kind, column.data, [age(json.loads(str(record))) for record in column.values])
        groups.append(Group(group.keys, group.rows, [*group.columns[:i], ages, *group.columns[i + 1 :]]))
    return Table(runs.length, groups)
