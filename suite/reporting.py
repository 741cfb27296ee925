"""What `report` does: the page of an experiment, of a repeated `run` line, or of whatever the store holds that fits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from conf.groups import find, options
from conf.settings import RequestError, fields, unknown
from reports.kit.build import build_report
from reports.kit.commands import commands_of, suite_command, without_places
from reports.kit.index import build_index
from reports.kit.page import Page, read_page
from reports.kit.parts import Frames, frames_of, load_frames, no_frames
from reports.kit.render import counted
from reports.kit.sheet import SCREEN, VENUES, Sheet, read_sheet
from reports.standard import standard_page
from suite.canonical import digest
from suite.request.places import read_places, split
from suite.results import Reader
from suite.scores import main_scores
from suite.store.ids import check_store
from suite.store.reading import CELL_COLUMNS
from suite.where import select

SHEET = tuple(fields(Sheet))
OWN = {
    "where": "CONDITIONS  (what the store holds that fits, such as model=gla|mesanet,train.lr<=1e-3; drawn as the report named)",
    "style": f"{SCREEN.style}  (paper draws for the columns of a venue, into the folder paper/ of the report)",
    "venue": f"{SCREEN.venue}  ({', '.join(VENUES)})",
    "width": f"{SCREEN.width}  (single, double, or auto: as many columns as the panels need)",
}
"""The keys of the verb, each with what it is; any other is one of `run`, and paths."""


def report(arguments: Sequence[str]) -> str:
    """`draw` in words, or without arguments `draw_index`."""
    if all(each.startswith("paths.") for each in arguments):
        return str(draw_index(arguments))
    index, frames = draw(arguments)
    count, missing = len(frames.cells), int((frames.cells["status"] != "done").sum())
    told = counted(count, "run")
    if missing:
        told = ": ".join([f"{told}, {missing} of them not done", *filter(None, ["; ".join(commands_of(frames.request))])])
    return f"{index}  ({told})"


def draw(arguments: Sequence[str]) -> tuple[Path, Frames]:
    """Draws a page; returns where it lies, and what it is drawn from. Raises RequestError.

    arguments: the name of a report or an experiment; or what was typed behind `run`; or where=CONDITIONS, with the name of a
    report to be drawn of these runs. paths.results, paths.reports and the keys of a `Sheet` besides.
    """
    names, overrides = split(arguments)
    own, line = _parted(overrides)
    if len(names) > 1 or ("where" in own and line) or not (names or line or "where" in own):
        raise RequestError(
            f"report takes one name ({', '.join(known_names())}), or a line of run, or where=CONDITIONS with or without a name"
        )
    results, reports = store_and_pages(overrides, may_lack=_shows_what_is_missing(names, own, line, overrides))
    draws = _Draws(results, reports, read_sheet({key: own[key] for key in SHEET if key in own}))
    if "where" in own:
        name = check_name(names[0]) if names else None
        frames = frames_where(results, own["where"], page=name)
        return draws.page(f"{name or 'where'}-{digest(own['where'], 8)}", frames, page_of(name))
    if not line:
        return draws.named(check_name(names[0]))
    line = [f"experiment={check_name(names[0])}", *line] if names else line
    frames = frames_line(results, line)
    experiment = frames.request["experiment"]
    return draws.page(
        "-".join([*([experiment] if experiment else _models(frames)), digest(line, 8)]), frames, page_of(experiment)
    )


def draw_index(arguments: Sequence[str]) -> Path:
    """Draws the page over all reports and runs of a store; returns where it lies. Raises RequestError."""
    results, reports = store_and_pages(arguments)
    try:
        reader = Reader(results)
        runs = reader.runs()
    except ValueError as error:
        raise RequestError(str(error)) from error
    return build_index(runs, main_scores(reader.results()), reports, results)


def store_and_pages(overrides: Sequence[str], *, may_lack: bool = False) -> tuple[Path, Path]:
    """The folders of the results and of the reports. Raises RequestError where there are no results, unless they may lack."""
    places = read_places([each for each in overrides if each.startswith("paths.")])
    results = Path(places["results"])
    if not may_lack:
        check_store(results)
    return results, Path(places["reports"])


def _shows_what_is_missing(names: Sequence[str], own: Mapping[str, str], line: Sequence[str], overrides: Sequence[str]) -> bool:
    """Whether a report is drawn of no run at all too: one of all runs of some tasks, from the store that nobody named."""
    if len(names) != 1 or "where" in own or line or any(each.startswith("paths.results=") for each in overrides):
        return False
    page = page_of(names[0]) if names[0] in options("report") else None
    return bool(page and page.tasks)


def _parted(overrides: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """What is given for the verb's own keys, and the overrides of a `run` line. Raises RequestError."""
    own: dict[str, str] = {}
    line = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key in own:
            raise RequestError(f"{key} is given twice, permitted is once")
        if key in OWN:
            own[key] = value
        elif not key.startswith("paths."):
            line.append(override)
    return own, line


@dataclass(frozen=True)
class _Draws:
    """Where from, where to and for what a page is drawn."""

    results: Path
    reports: Path
    sheet: Sheet

    def named(self, name: str) -> tuple[Path, Frames]:
        """What was asked for under the name of a report or an experiment."""
        page = page_of(name)
        if page and page.tasks:
            return self.page(name, stored_frames(self.results, page), page)
        try:
            frames = load_frames(self.results, page.experiment if page and page.experiment else name)
        except ValueError as error:
            raise RequestError(f"{error}; its runs are made by: {suite_command('run', [f'experiment={name}'])}") from error
        return self.page(name, frames, page)

    def page(self, folder: str, frames: Frames, page: Page | None = None) -> tuple[Path, Frames]:
        return build_report(page or standard_page(frames), frames, self.reports / folder, self.sheet), frames


def known_names() -> list[str]:
    """What `report` can be asked for by name."""
    return sorted({*options("report"), *options("experiment")})


def check_name(name: str) -> str:
    """The name of a report or an experiment. Raises RequestError for any other."""
    if name not in known_names():
        raise unknown("report", name, known_names())
    return name


def frames_where(results: Path, where: str, *, page: str | None) -> Frames:
    """The frames of all runs for which the conditions hold. page: the name of the report that they are drawn as, if any.

    Raises RequestError where there is none.
    """
    try:
        reader = Reader(results)
        runs = reader.runs()
    except ValueError as error:
        raise RequestError(str(error)) from error
    found = select(runs, where, reader.results)
    if found.empty:
        raise RequestError(f"where={where}: none of the {len(runs)} runs under {results}")
    return frames_of(results, _request(where, page) | {"cells": _cells(found)}, reader=reader)


def stored_frames(results: Path, page: Page) -> Frames:
    """The frames of all runs of a page's tasks, of none where the store has none."""
    request = _request(f"task={'|'.join(page.tasks)}", page.name) | {"is_of_page": True}
    reader = Reader(results)
    try:
        runs = reader.runs()
    except ValueError:
        # An empty store.
        return no_frames(request)
    found = runs[runs["task"].isin(page.tasks)]
    if found.empty:
        return no_frames(request)
    return frames_of(results, request | {"cells": _cells(found)}, with_facts=False, reader=reader)


def _request(where: str, page: str | None) -> dict[str, Any]:
    return {"experiment": None, "created": "", "overrides": [], "where": where, "page": page}


def _cells(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """The runs as a request asks for them."""
    cells = runs[[name for name in runs if "." in name or name in CELL_COLUMNS]].astype(object)
    return cells.where(cells.notna(), None).to_dict("records")


def frames_line(results: Path, line: Sequence[str]) -> Frames:
    """The frames of what `run` would make of a line, under the names that it would give. Raises RequestError."""
    # Only this way of asking names runs anew, which takes torch.
    from suite.plan import plan
    from suite.running.printing import request_of

    runs = plan([*line, f"paths.results={results}"])
    try:
        # Nobody asked for these runs at one time.
        return frames_of(results, request_of(runs, line) | {"created": ""})
    except ValueError as error:
        raise RequestError(
            f"{error}: none of the {len(runs)} runs; they are made by: {suite_command('run', without_places(line))}"
        ) from error


def page_of(name: str | None) -> Page | None:
    """The report that is written for a name, None where there is none. Raises RequestError for one with a mistake."""
    return read_page(find("report", name)) if name in options("report") else None


def _models(frames: Frames) -> list[str]:
    """The names of the models for a folder: all of few, else how many there are."""
    models = [re.sub(r"[^\w-]", "", model) for model in dict.fromkeys(frames.cells["model"])]
    return models if len(models) < 4 else [f"{len(models)}-models"]
