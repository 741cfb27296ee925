"""What `status` does: how far the sweeps of a store are, and how long they take yet. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from conf.settings import RequestError, unknown
from suite.request.places import read_places, split
from suite.results import load_request, load_results, load_runs
from suite.running.progress import duration
from suite.store.foreign import say
from suite.store.ids import check_store
from suite.store.lock import RunLock

STATES = ("done", "running", "failed", "missing")
FAILED = ("diverged", "out_of_memory", "error")
REQUEST = re.compile(r"([\w-]+)-[0-9a-f]{8}\.json")


def tell_status(arguments: Sequence[str]) -> str | int:
    """How many runs of an experiment's latest request are done, running, failed and missing, by task, and the time left.

    arguments: names of experiments, none for all that the store was asked for, and places. Raises RequestError.
    """
    names, overrides = split(arguments)
    results = Path(read_places(overrides)["results"])
    check_store(results)
    asked = _asked(results)
    for name in names:
        if name not in asked:
            raise unknown("experiment of this store", name, asked)
    if not asked:
        raise RequestError(f"no experiment was asked of {results}; list runs lists its runs")
    try:
        runs, rows = load_runs(results), load_results(results)
    except ValueError as error:
        # An empty store has nothing that is done.
        say(error)
        return 0
    seconds = rows[rows["metric"] == "train_seconds"].set_index("run_id")["value"]
    return "\n".join(line for name in names or asked for line in _lines(name, results, runs, seconds))


def _asked(results: Path) -> list[str]:
    """The experiments that a store was asked for."""
    found = (REQUEST.fullmatch(path.name) for path in (results / "experiments").glob("*.json"))
    return sorted({match[1] for match in found if match})


def _lines(name: str, results: Path, runs: pd.DataFrame, seconds: pd.Series) -> Iterator[str]:
    request = load_request(results, name)
    cells = pd.DataFrame(request["cells"] if request else [], columns=["run_id", "task", "model"])
    told = runs.drop_duplicates("run_id").set_index("run_id")["status"]
    cells["state"] = [_state(told.get(run_id), run_id, results) for run_id in cells["run_id"]]
    cells["seconds"] = seconds.reindex(cells["run_id"]).to_numpy()
    table = cells.groupby("task")["state"].value_counts().unstack(fill_value=0).reindex(columns=STATES, fill_value=0)
    width = max(len(each) for each in (*table.index, name, "all tasks"))
    yield f"{name:{width}s}  " + "  ".join(f"{state:>7s}" for state in STATES)
    for task, counts in (*table.iterrows(), ("all tasks", table.sum())):
        yield f"{task:{width}s}  " + "  ".join(f"{counts[state]:7d}" for state in STATES)
    yield _left(cells)


def _state(status: Any, run_id: str, results: Path) -> str:
    """What becomes of a run: one that claims to be running is so only while its worker lives."""
    if status == "done":
        return "done"
    if status in FAILED:
        return "failed"
    folder = results / "runs" / run_id
    return "running" if status == "running" and RunLock(folder, results).holder() else "missing"


def _left(cells: pd.DataFrame) -> str:
    """How long what is missing and running takes, by the mean of the runs that are done: of the model on the task, or nearest."""
    left = cells[cells["state"].isin(["running", "missing"])]
    if left.empty:
        return "nothing is left"
    if cells["seconds"].isna().all():
        return f"{len(left)} runs left; how long they take is known once one is done"
    mean = cells.groupby(["task", "model"])["seconds"].transform("mean")
    mean = mean.fillna(cells.groupby("model")["seconds"].transform("mean")).fillna(cells["seconds"].mean())
    # A run that is under way is half done, on average.
    work = (mean[left.index] * left["state"].map({"running": 0.5, "missing": 1.0})).sum()
    workers = max(1, int((left["state"] == "running").sum()))
    return f"{len(left)} runs left: {duration(work / workers)} by {workers} at a time"
