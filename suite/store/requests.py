"""What experiments were asked for: experiments/<experiment>-<hash>.json, a file a request. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from conf.groups import find
from suite.store.foreign import inert
from suite.store.reading import CELL_COLUMNS, frame, names, read, scalars, skip

NARROWING = {"experiment", "model", "task", "seed", "backend"}
"""Keys that choose among the runs of an experiment, beside the axes of its grid. Its arms may have several backends."""
PLACES = ("compute", "paths", "eval", "hydra")
"""Groups that change no run."""


def load_request(root: str | Path, experiment: str) -> dict[str, Any] | None:
    """What an experiment was asked for last: {"experiment", "created", "overrides", "cells", "requests"}, or None.

    A request that asks for some of the experiment's runs does not hide the others: requests that differ in axes of the
    experiment alone are one, and a run that several ask for is as the latest asks for it. A request with other values, such
    as train.steps=20, is another one. created and overrides are those of the latest; requests: the overrides of each that is
    needed to ask for all cells, the latest last. Raises ValueError for a name that can't be an experiment's.
    """
    if not re.fullmatch(r"[\w-]+", experiment):
        raise ValueError(f"experiment {experiment!r} is not a name of letters, digits, _ and -")
    known = sorted(_requests(Path(root), experiment), key=lambda request: request["when"])
    if not known:
        return None
    axes = _axes(experiment)
    asked = [each for each in known if _beyond(each["overrides"], axes) == _beyond(known[-1]["overrides"], axes)]
    cells: list[dict[str, Any]] = []
    kept = []
    for request in reversed(asked):
        there = {what for cell in cells for what in (cell["run_id"], _what(cell))}
        new = [cell for cell in request["cells"] if not there & {cell["run_id"], _what(cell)}]
        kept += [request["overrides"]] if new else []
        cells += new
    # What the widest request asks for comes first, in its order.
    wide = max(asked, key=lambda request: len(request["cells"]))
    rank = {_what(cell): i for i, cell in enumerate(wide["cells"])}
    ordered = sorted(cells, key=lambda cell: rank.get(_what(cell), len(rank)))
    return {**asked[-1], "cells": ordered, "requests": _without_covered(kept, asked)}


def _requests(root: Path, experiment: str) -> Iterator[dict[str, Any]]:
    for path in sorted((root / "experiments").glob(f"{experiment}-*.json")):
        request = read(path, root)
        if request is None or request.get("experiment") != experiment:
            continue
        try:
            yield _checked(request)
        except (KeyError, TypeError, ValueError, OverflowError, OSError) as error:
            skip(path, error)


def _axes(experiment: str) -> set[str]:
    """The keys by which a request chooses among the runs of an experiment; one that is not configured here has no grid."""
    path = find("experiment", experiment)
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))["experiment"]["grid"] if path.is_file() else []
    return NARROWING.union(*entries)


def _beyond(overrides: Sequence[str], axes: set[str]) -> frozenset[str]:
    """The overrides of a request that change its runs, rather than choose among them."""
    keys = ((each.partition("=")[0], each) for each in overrides)
    return frozenset(each for key, each in keys if key not in axes and re.split(r"[./]", key)[0] not in PLACES)


def _what(cell: dict[str, Any]) -> str:
    """What a cell asks for, whatever the version of the model or task that it was asked of.

    A cell of an old store may say too little: such a run is itself alone.
    """
    if not any("." in key for key in cell):
        return str(cell["run_id"])
    named = {key: value for key, value in cell.items() if key not in ("run_id", "group_id", "model_label", "studies")}
    return repr(sorted((key, value) for key, value in named.items() if not key.endswith("version")))


def _without_covered(kept: Sequence[list[str]], asked: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The overrides of the requests, the latest last, less those whose cells the others ask for too."""
    cells = {tuple(each["overrides"]): set(map(_what, each["cells"])) for each in asked}
    needed = [tuple(each) for each in kept]
    for each in sorted(needed, key=lambda overrides: len(cells[overrides])):
        others = [cells[other] for other in needed if other != each]
        if others and cells[each] <= set.union(*others):
            needed.remove(each)
    return [list(each) for each in reversed(needed)]


def _checked(request: dict[str, Any]) -> dict[str, Any]:
    """The request with its time, `when`, and with cells whose text is inert. Raises ValueError and others for what is none."""
    cells, overrides = request.get("cells"), request.get("overrides")
    if not isinstance(cells, list) or not cells or not all(isinstance(c, dict) and set(CELL_COLUMNS) <= set(c) for c in cells):
        raise ValueError(f"its cells do not all have {', '.join(CELL_COLUMNS)}")
    if not all(isinstance(s, list) and all(isinstance(name, str) for name in s) for s in (c.get("studies", []) for c in cells)):
        raise ValueError("the studies of its cells are not lists of strings")
    if not isinstance(overrides, list) or not all(isinstance(override, str) for override in overrides):
        raise ValueError("its overrides are not a list of strings")
    when = datetime.fromisoformat(request["created"]).astimezone()
    table = frame([scalars(cell) | names(cell) for cell in cells], []).astype(object)
    told = table.where(table.notna(), None).to_dict("records")
    return {
        **request,
        "when": when,
        "overrides": [inert(override) for override in overrides],
        "cells": [{**shown, "studies": [*map(inert, cell.get("studies", []))]} for shown, cell in zip(told, cells, strict=True)],
    }
