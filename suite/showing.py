"""What `show` does: everything that a store knows of one run, or what a name of the configuration stands for."""

from __future__ import annotations

import datetime
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from conf.groups import find, groups, options
from conf.settings import RequestError, unknown
from reports.kit.parts import Entry, Table
from reports.kit.tables import number
from reports.kit.text import display_width, to_text
from suite.listing import as_typed
from suite.metrics import METRICS
from suite.request.places import PLACES, read_places
from suite.results import MACHINE_COLUMNS, RUN_COLUMNS, load_results, load_runs
from suite.store.foreign import inert
from suite.store.ids import begun_ids, check_store, the_run
from suite.store.reading import read

TAKES = "show takes run=ID, the beginning of an id; or model=NAME, task=NAME, experiment=NAME"
STATUS = ("reason", "failed_stage", "failed_step")
CODE = {"today": "today's", "another": "another state of it than today's", "unknown": "not known"}


def show(arguments: Sequence[str]) -> str:
    """Everything about a run, or the file of a choice such as model=mesanet. Raises RequestError."""
    # `show ID` is meant as well as `show run=ID`.
    pairs = [argument.partition("=") if "=" in argument else ("run", "=", argument) for argument in arguments]
    places = [f"{key}={value}" for key, _, value in pairs if key.startswith("paths.")]
    asked = [(key, value) for key, _, value in pairs if not key.startswith("paths.")]
    if len(asked) != 1:
        raise RequestError(f"{TAKES}{f'; not {len(asked)} of them' if asked else ''}")
    ((key, name),) = asked
    meant = [f"{group}={name}" for group in groups() if name in options(group)] if arguments and name in arguments else []
    if meant:
        raise RequestError(f"{TAKES}; did you mean {' or '.join(meant)}?")
    if key in groups():
        if name not in options(key):
            raise unknown(key, name, options(key))
        return find(key, name).read_text(encoding="utf-8").rstrip()
    if key != "run":
        raise unknown("key", key, ("run", *groups(), *(f"paths.{name}" for name in PLACES)))
    results = Path(read_places(places)["results"])
    check_store(results)
    return "\n".join(_lines(results, the_run(name, begun_ids(results), results)))


def _lines(results: Path, run_id: str) -> Iterator[str]:
    """What is known of a run, a section after the other."""
    try:
        (run,) = load_runs(results, {run_id}).to_dict("records")
    except ValueError as error:
        raise RequestError(f"run {run_id} can't be read, as the warning says") from error
    rows = load_results(results, {run_id})
    rows = rows[~rows["superseded"].astype(bool)]
    folder = results / "runs" / run_id
    settings = {key: run[key] for key in run if "." in key}
    facts = {key: value for key, value in run.items() if key not in {*settings, *RUN_COLUMNS, *STATUS, *MACHINE_COLUMNS, "code"}}
    yield f"run {run_id}: {run['model_label'] or run['model']}, {run['task']}, size {run['size']}, seed {run['seed']}"
    yield from _section(
        "", {"status": _status(run), **_when(folder, results), "code": CODE[run["code"]], **_command(folder, results)}
    )
    yield from _section(
        "facts", {key: f"{value:,}" if isinstance(value, int) else as_typed(value) for key, value in facts.items()}
    )
    for group in dict.fromkeys(key.partition(".")[0] for key in settings):
        yield from _section(
            f"{group} settings", {key: as_typed(settings[key]) for key in settings if key.startswith(f"{group}.")}
        )
    yield from _section("environment", {key: as_typed(run[key]) for key in ("backend", *MACHINE_COLUMNS)})
    yield from _scores(rows)
    yield from _section("files", {name: f"{size:,} bytes" for name, size in _files(folder)})


def _section(title: str, told: dict[str, str]) -> list[str]:
    """A title and, aligned below it, what is told; nothing where nothing is."""
    wide = max(map(display_width, told), default=0)
    lines = [f"  {name}{' ' * (wide - display_width(name))}  {value}".rstrip() for name, value in told.items()]
    return [*(["", title] if title else []), *lines] if lines else []


def _status(run: dict[str, Any]) -> str:
    step = "" if pd.isna(run["failed_step"]) else f" at step {run['failed_step']:.0f}"
    return f"{run['status']}{step}{f': {why}' if (why := run['reason']) else ''}"


def _when(folder: Path, results: Path) -> dict[str, str]:
    """When a run was trained, and when its status last changed, in this machine's time."""
    found = {}
    trained, status = (_content(folder / f"{name}.json", folder, results) for name in ("train", "status"))
    if isinstance(made := trained.get("made"), str):
        found["trained"] = inert(made)
    if isinstance(seconds := status.get("time"), int | float) and 0 <= seconds < 1e11:
        found["last seen"] = datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
    return found


def _command(folder: Path, results: Path) -> dict[str, str]:
    """What was typed to make the run, other runs perhaps among it, and where the working copy stood."""
    typed = _content(folder / "environment.json", folder, results).get("command")
    if not isinstance(typed, list) or typed[1:2] != ["run"]:
        return {"made by": "python -m suite run, with the keys of its config.yaml"}
    return {"made by": inert(shlex.join(["python", "-m", "suite", *map(str, typed[1:])]))}


def _content(path: Path, folder: Path, results: Path) -> dict[str, Any]:
    return (read(path, results, schema=None, run=folder.name) if os.path.lexists(path) else None) or {}


def _scores(rows: pd.DataFrame) -> Iterator[str]:
    """Every score over a whole split, and how many others each stage has."""
    whole = rows[(rows["slice"] == "") & rows["value"].notna()]
    if len(whole):
        entries = [
            (
                Entry(row.stage),
                Entry(row.split),
                Entry(row.metric),
                Entry(_number(row.value, row.metric), row.value),
                Entry(f"{row.count:,}", row.count),
            )
            for row in whole[["stage", "split", "metric", "value", "count"]].itertuples(name="Score", index=False)
        ]
        table = Table(whole, ("stage", "split", "metric", "value", "count"), tuple(entries))
        yield from ["", "scores", *(f"  {line}" for line in to_text(table, 1000).splitlines())]
    sliced = rows[rows["slice"] != ""].groupby("evaluation", sort=False).size()
    yield from _section("scores of parts of a split", {name: f"{count:,} rows" for name, count in sliced.items()})


def _number(value: float, metric: str) -> str:
    return number(value, metric) if metric in METRICS else f"{value:.6g}"


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    """The files of a run, by their names within its folder; no link is followed."""
    for where, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(where, name)
            yield inert(path.relative_to(folder)), path.lstat().st_size
