"""Folders of the user's own: models, tasks, figures and options beside those of this package.

A folder mirrors the package: models/NAME.py, tasks/NAME.py, reports/NAME.py and conf/GROUP/NAME.yaml. It is named on the
command line (extend=FOLDER), in the environment (LRS_EXTEND) or by an entry point of an installed distribution. What is read,
such as a run in a results folder, names none, nor does the folder that a command is typed in.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from conf.paths import UserPath
from conf.settings import RequestError

KEY, VARIABLE, ENTRY_POINTS = "extend", "LRS_EXTEND", "linear_rnn_suite.extensions"
ROOMS = ("models", "tasks", "reports", "conf")
LAYOUT = "models/NAME.py, tasks/NAME.py, reports/NAME.py and conf/GROUP/NAME.yaml"
# No package of this name is installed: two folders may hold files of one name.
PACKAGE = "lrs_extensions"


class Module(NamedTuple):
    """A module of a user's folder: the dotted name that imports it, and its file."""

    name: str
    file: Path


def extended(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command but for extend=FOLDER,FOLDER, whose folders this process and its children then have.

    Raises RequestError for a folder that is not there or is laid out otherwise.
    """
    typed = [argument.partition("=")[2] for argument in arguments if argument.startswith(f"{KEY}=")]
    if len(typed) > 1:
        raise RequestError(f"{KEY} is given twice; several folders are a list, {KEY}=A,B")
    given = [_folder(name, KEY) for name in (typed[0].split(",") if typed else ())]
    if lost := [path for path in given if os.pathsep in str(path)]:
        raise RequestError(f"{KEY}={lost[0]} has a {os.pathsep!r} in its name, permitted are paths without")
    there = _of_environment()
    if there or given:
        os.environ[VARIABLE] = os.pathsep.join(map(str, dict.fromkeys((*there, *given))))
    return [argument for argument in arguments if not argument.startswith(f"{KEY}=")]


def folders() -> tuple[Path, ...]:
    """The user's folders, each once, those of installed distributions first. Raises RequestError as `extended`."""
    return tuple(dict.fromkeys((*_installed(), *_of_environment())))


def modules(room: str) -> list[Module]:
    """The Python files in a room of every folder."""
    found = []
    for folder in folders():
        files = [path for path in sorted((folder / room).glob("*.py")) if path.stem != "__init__"]
        found += [Module(f"{_package(folder)}.{room}.{path.stem}", path) for path in files]
    return found


def _of_environment() -> tuple[Path, ...]:
    named = os.environ.get(VARIABLE)
    return _named(named, os.getcwd()) if named else ()


@functools.cache
def _named(value: str, here: str) -> tuple[Path, ...]:
    """The folders in the text; here: what they are relative to."""
    return tuple(_folder(name, VARIABLE) for name in value.split(os.pathsep) if name)


@functools.cache
def _installed() -> tuple[Path, ...]:
    """The folders of the packages that installed distributions name."""
    found = []
    for point in _entry_points():
        spec = importlib.util.find_spec(point.value)
        if spec is None or not spec.submodule_search_locations:
            raise RequestError(f"entry point {point.name} = {point.value} of {ENTRY_POINTS} is no package that is installed")
        found.append(_folder(next(iter(spec.submodule_search_locations)), f"entry point {point.name}"))
    return tuple(sorted(found))


def _entry_points() -> Iterator[importlib.metadata.EntryPoint]:
    # `python -m` puts the folder of the command first, where a stranger's files may lie.
    places = [place for place in sys.path if os.path.realpath(place or ".") != os.path.realpath(".")]
    for distribution in importlib.metadata.distributions(path=places):
        yield from distribution.entry_points.select(group=ENTRY_POINTS)


def _folder(name: str, source: str) -> Path:
    try:
        path = Path(os.path.realpath(UserPath.of(name)))
    except ValueError as error:
        raise RequestError(f"{source}={name}: {error}, permitted are {UserPath.words}") from error
    if not path.is_dir():
        raise RequestError(f"{source}={name} is no folder, permitted is one with {LAYOUT}")
    if not any((path / room).is_dir() for room in ROOMS):
        raise RequestError(f"{source}={name} has none of the folders {', '.join(ROOMS)}; it is laid out as {LAYOUT}")
    return path


def _package(folder: Path) -> str:
    """The name of the package that stands for a folder, which is made where this process does not have it."""
    name = f"{PACKAGE}.x{hashlib.sha256(str(folder).encode(errors='surrogateescape')).hexdigest()[:12]}"
    _make(PACKAGE, ())
    _make(name, [str(folder)])
    return name


def _make(name: str, path: Iterable[str]) -> None:
    if name not in sys.modules:
        module = ModuleType(name)
        module.__path__ = list(path)
        sys.modules[name] = module
