"""Which run of a store the beginning of an id means. Imports no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from conf.settings import RequestError, near

MOST_NAMED = 8


def begun_ids(results: Path) -> list[str]:
    """The ids of a store's runs, sorted, whatever became of them."""
    return _ids(results, "run.json")


def trained_ids(results: Path) -> list[str]:
    return _ids(results, "train.json")


def _ids(results: Path, file: str) -> list[str]:
    folders = (path.parent.name for path in (results / "runs").glob(f"*/{file}"))
    return sorted(name for name in folders if re.fullmatch(r"[0-9a-f]{12}", name))


def the_run(beginning: str, known: Sequence[str], results: Path) -> str:
    """The one of the known ids that begins so. Raises RequestError, which names several, or near ones where there is none."""
    if not known:
        raise RequestError(f"no trained runs under {place(results)}")
    matching = [name for name in known if beginning and name.startswith(beginning)]
    if len(matching) > 1:
        raise RequestError(
            f"run={beginning} is the beginning of {len(matching)} runs, permitted are more letters: {_few(matching)}"
        )
    if not matching:
        permitted = f"{_few(known)}, or the beginning of one"
        raise RequestError(f"unknown run {beginning!r}{near(beginning, known)} (permitted: {permitted})")
    return matching[0]


def check_store(results: Path) -> None:
    """Raises RequestError where there is no folder, naming where it was looked for."""
    if not results.is_dir():
        raise RequestError(f"paths.results={place(results)} is no folder; permitted is one that `run` has made")


def place(results: Path) -> str:
    """A store's folder for people: a relative one with where it is looked for."""
    return str(results) if results.is_absolute() else f"{results} (in {os.getcwd()})"


def _few(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
