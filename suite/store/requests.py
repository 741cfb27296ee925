"""What experiments asked for, as the store keeps it: experiments/<experiment>-<hash>.json, a file a request. Imports no torch."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any

from suite.store.foreign import inert
from suite.store.reading import CELL_COLUMNS, frame, is_scalar, names, read, shown, skip


def load_request(root: str | Path, experiment: str) -> dict[str, Any] | None:
    """The latest request for an experiment: {"experiment", "created", "overrides", "cells"}, or None.

    Raises ValueError for a name that can't be an experiment's.
    """
    if not re.fullmatch(r"[\w-]+", experiment):
        raise ValueError(f"experiment {experiment!r} is not a name of letters, digits, _ and -")
    root, requests = Path(root), []
    for path in sorted((root / "experiments").glob(f"{experiment}-*.json")):
        request = read(path, root)
        if request is None or request.get("experiment") != experiment:
            continue
        try:
            requests.append(_checked_request(request))
        except (KeyError, TypeError, ValueError, OverflowError, OSError) as error:
            skip(path, error)
    return max(requests, key=lambda request: request["when"], default=None)


def _checked_request(request: dict[str, Any]) -> dict[str, Any]:
    """The request with its time, `when`, and with cells whose text is inert. Raises ValueError and others for what is none."""
    cells, overrides = request.get("cells"), request.get("overrides")
    if not isinstance(cells, list) or not cells or not all(isinstance(c, dict) and set(CELL_COLUMNS) <= set(c) for c in cells):
        raise ValueError(f"its cells do not all have {', '.join(CELL_COLUMNS)}")
    if not all(isinstance(s, list) and all(isinstance(name, str) for name in s) for s in (c.get("studies", []) for c in cells)):
        raise ValueError("the studies of its cells are not lists of strings")
    if not isinstance(overrides, list) or not all(isinstance(override, str) for override in overrides):
        raise ValueError("its overrides are not a list of strings")
    when = datetime.fromisoformat(request["created"]).astimezone()
    told = [{shown(key): shown(value) for key, value in cell.items() if is_scalar(value)} | names(cell) for cell in cells]
    studies = [[inert(name) for name in cell.get("studies", [])] for cell in cells]
    table = frame(told, []).astype(object)
    told = table.where(table.notna(), None).to_dict("records")
    return {
        **request,
        "when": when,
        "overrides": [inert(override) for override in overrides],
        "cells": [{**cell, "studies": names} for cell, names in zip(told, studies, strict=True)],
    }
