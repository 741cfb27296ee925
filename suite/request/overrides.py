"""From what was typed to the cells of a sweep: lists of overrides key=value, one a run."""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, OverrideType
from hydra.errors import HydraException
from omegaconf import OmegaConf

from conf.groups import find, groups, options
from conf.settings import RequestError, text, unknown

LAUNCHER = "hydra/launcher"
LENGTHS = {"train.steps", "train.tokens", "train.flops"}
"""Spellings of one thing: one that is typed takes the place of another in an experiment's grid."""


@dataclass(frozen=True)
class Request:
    """A request, read once. overrides: as they were typed, Hydra's own among them. cells: the overrides of each run."""

    overrides: tuple[Override, ...]
    cells: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Assignment:
    """One override of a cell: a choice of a group's option, or a value for a key, which may be new in a model."""

    typed: str
    key: str
    value: Any
    is_choice: bool
    is_new: bool

    @property
    def section(self) -> str:
        return self.key.partition(".")[0]


def read_request(arguments: Sequence[str]) -> Request:
    """The request of a command line. Raises RequestError."""
    overrides = parse(arguments)
    return Request(tuple(overrides), tuple(map(tuple, _cells(overrides))))


def parse(arguments: Sequence[str]) -> list[Override]:
    """Hydra's overrides. Raises RequestError for one that is not of the form key=value or names an unknown group option."""
    overrides = [_parsed(argument) for argument in arguments]
    for override in overrides:
        key, new = override.key_or_group, override.type == OverrideType.ADD
        if not key or override.package or (override.type != OverrideType.CHANGE and not (new and key.startswith("model."))):
            raise RequestError(f"{override.input_line!r} is not of the form key=value; + adds keys of a model alone")
        if is_hydra(override) and key != LAUNCHER and not key.startswith("hydra.launcher."):
            raise unknown("key of Hydra", key, (LAUNCHER, "hydra.launcher.KEY"))
        if key.startswith("hydra.") and not any(each.key_or_group == LAUNCHER for each in overrides):
            raise RequestError(f"{override.input_line} has no meaning without {LAUNCHER}=NAME")
        if key in groups():
            for choice in values(override):
                if choice.strip("'\"") not in options(key):
                    raise unknown(key, choice, options(key))
    return overrides


@functools.cache
def _parsed(argument: str) -> Override:
    """An argument as Hydra reads it; one that Hydra can't read, such as a path with a bracket, as if its value were quoted."""
    key, separator, value = argument.partition("=")
    for each in (argument, f"{key}={quoted(value)}") if separator else (argument,):
        with contextlib.suppress(HydraException):
            return OverridesParser.create().parse_override(each)
    # A word alone is a group without its option, or an option without its group.
    meant = (
        [f"{argument}=NAME"] if argument in groups() else [f"{each}={argument}" for each in groups() if argument in options(each)]
    )
    hint = f"; did you mean {meant[0]}? Several are a list without spaces, KEY=A,B" if meant else ""
    raise RequestError(f"{argument!r} is not of the form key=value{hint}")


@functools.cache
def assignment(typed: str) -> Assignment:
    """An override of a cell, read. Its text stays as it was typed; a path that needed quotes has them."""
    override = _parsed(typed)
    key, is_choice = override.key_or_group, override.key_or_group in groups()
    value = values(override)[0].strip("'\"") if is_choice else override.value()
    return Assignment(override.input_line, key, value, is_choice, override.type == OverrideType.ADD)


def whose(said: str, cell: Sequence[str], request: Request) -> str:
    """Which model, task or other option a refused value is of, where the request has several and the refusal names none."""
    section = said.partition(".")[0]

    def chosen(overrides: Sequence[str]) -> list[str]:
        return [each.typed for each in map(assignment, overrides) if each.is_choice and each.key == section]

    own = chosen(cell)
    return f" ({own[0]})" if own and own[0] not in said and any(chosen(other) != own for other in request.cells) else ""


def quoted(value: str) -> str:
    """A text as Hydra's overrides hold it, whatever its characters."""
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), value) + "'"


def values(override: Override) -> list[str]:
    """The values that an override lists, as they are typed: one, or those of a comma list, range or glob."""
    if override.is_sweep_override():
        if isinstance(override.value(), Glob):
            if override.key_or_group not in groups():
                raise RequestError(f"{override.input_line}: permitted is glob for {', '.join(groups())}")
            return override.value().filter(options(override.key_or_group))
        if not override.is_discrete_sweep():
            raise RequestError(f"{override.input_line!r} is a continuous range; list the values with commas")
        return list(override.sweep_string_iterator())
    return [override.input_line.partition("=")[2]]


def is_hydra(override: Override) -> bool:
    return override.key_or_group.split("/")[0].split(".")[0] == "hydra"


def _cells(overrides: Sequence[Override]) -> list[list[str]]:
    """Every combination of the request's comma lists with the grid of its experiment, less Hydra's own keys.

    An override of an axis that the grid lists narrows the grid to those values; a value that the grid doesn't list
    takes the place of the listed ones. A length of the training that is typed takes the place of the grid's.
    """
    typed: dict[str, list[str]] = {}
    for override in overrides:
        key = override.input_line.partition("=")[0]
        if is_hydra(override):
            continue
        if key in typed:
            raise RequestError(f"{key} is given twice; several values are a list, {key}=A,B")
        typed[key] = values(override)
    if "experiment.grid" in typed:
        raise RequestError("experiment.grid can't be typed, permitted are its axes, e.g. seed=0,1,2")
    if not typed.get("experiment"):
        return _product(typed)
    experiment, *others = typed.pop("experiment")
    if others:
        raise RequestError(f"experiment={','.join([experiment, *others])} names several; a request is of one experiment")
    cells = [cell for entry in _entries(experiment, typed) for cell in _product({"experiment": [experiment], **entry})]
    return [list(cell) for cell in dict.fromkeys(map(tuple, cells))]


def _entries(experiment: str, typed: dict[str, list[str]]) -> list[dict[str, list[str]]]:
    """The grid's entries, each an axis name to its values, after the typed overrides have narrowed them."""
    grid = OmegaConf.to_container(OmegaConf.load(find("experiment", experiment)).experiment.grid)
    entries = [
        {key: [text(v) for v in (value if isinstance(value, list) else [value])] for key, value in e.items()} for e in grid
    ]
    listed = {key: {value for entry in entries for value in entry.get(key, [])} for key in typed}
    lengths, narrowed = LENGTHS & typed.keys(), []
    for entry in entries or [{}]:
        axes = {key: values for key, values in entry.items() if not (key in LENGTHS and lengths - {key})}
        for key, asked in typed.items():
            axes[key] = asked if key not in entry else [v for v in asked if v in entry[key] or v not in listed[key]]
        if all(axes.values()):
            narrowed.append(axes)
    return narrowed


def _product(axes: dict[str, list[str]]) -> list[list[str]]:
    return [
        [f"{key}={value}" for key, value in zip(axes, combination, strict=True)]
        for combination in itertools.product(*axes.values())
    ]
