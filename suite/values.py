"""Types of settings: whether a value is of one, made exactly that, and in words what is permitted.

A type is what an annotation says (int, float, bool, str, None, X | Y, Literal, Sequence[X], Mapping[str, X], TypedDict), a
Path, Annotated[X, Limit], or a dictionary that has a type for every key.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import pwd
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from omegaconf import DictConfig, ListConfig, OmegaConf

# No size, length or number of steps is beyond, and no kernel or file format counts less; float32 holds no more.
MOST = {int: 2**32 - 1, float: 1e38}
WORDS = {int: "whole numbers", float: "numbers", bool: "true, false", str: "words", NoneType: "null"}
WORDS[Path] = "paths (~ a user's home)"
UNFIT = object()
# Letters of a value that an error shows.
SHOWN = 100


class RequestError(ValueError):
    """The request itself is wrong: one line that names the value, what is permitted and the nearest match."""


@dataclass(frozen=True)
class Limit:
    """What is asked of a value beside its type, and its words behind the type's."""

    words: str
    holds: Callable[[Any], bool]


def between(kind: type, low: float, high: float) -> Any:
    """The type of whole (int) or real (float) numbers from low to high."""
    return Annotated[kind, Limit(f"from {low} to {high}", lambda value: low <= value <= high)]


def above_zero(high: float) -> Any:
    """The type of real numbers above 0, up to high."""
    return Annotated[float, Limit(f"above 0, up to {high:g}", lambda value: 0 < value <= high)]


def near(value: object, permitted: Iterable[str]) -> str:
    """The words that name the nearest permitted value, if any is near."""
    found = difflib.get_close_matches(str(value), list(permitted), n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else ""


def unknown(what: str, value: str, permitted: Iterable[str]) -> RequestError:
    """The error for a name that is not among the permitted ones, with the nearest match."""
    permitted = list(permitted)
    return RequestError(f"unknown {what} {value!r}{near(value, permitted)} (permitted: {', '.join(permitted)})")


def text(value: object) -> str:
    """A value as it is typed in a request, on one line."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{text(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | ListConfig):
        return "[" + ",".join(map(text, value)) + "]"
    return str(value) if str(value).isprintable() else ascii(value)


def settle(config: DictConfig, kinds: Mapping[str, Any]) -> None:
    """Makes the values of these keys exactly of their types, so that 8 and 8.0 are one. Raises RequestError."""
    values = OmegaConf.to_container(config, resolve=True)
    made = {key: fit(key, values[key], kind) for key, kind in kinds.items()}
    # What refers to a value that is made right has the right one afterwards, and goes on referring to it.
    for interpolations in (False, True):
        _write(config, made, interpolations)


def _write(config: DictConfig, made: Mapping[str, Any], interpolations: bool) -> None:
    for key, value in made.items():
        refers = OmegaConf.is_interpolation(config, key)
        if isinstance(value, dict) and isinstance(config[key], DictConfig) and not refers:
            _write(config[key], value, interpolations)
        elif refers == interpolations and repr(config[key]) != repr(value):
            config[key] = value


def fit(key: str, value: Any, kind: Any) -> Any:
    """The value, made exactly of its type. Raises RequestError, which names the key, the value and what is permitted."""
    base, limits = (kind.__origin__, kind.__metadata__) if get_origin(kind) is Annotated else (kind, ())
    made = _made(key, value, base)
    if made is UNFIT or not all(limit.holds(made) for limit in limits):
        names = [text(name) for each in (kind, *get_args(kind)) if get_origin(each) is Literal for name in get_args(each)]
        raise RequestError(f"{key}={text(value)[:SHOWN]} is out of range, permitted are {words(kind)}{near(value, names)}")
    return made


def _made(key: str, value: Any, kind: Any) -> Any:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        for part in parts:
            with contextlib.suppress(RequestError):
                return fit(key, value, part)
    elif origin is Literal:
        # By type too: 1 equals true, and is none.
        return next((part for part in parts if type(part) is type(value) and part == value), UNFIT)
    elif isinstance(value, dict) and origin is Mapping:
        return {name: fit(f"{key}.{name}", each, parts[1]) for name, each in value.items()}
    elif isinstance(value, dict) and (isinstance(kind, dict) or is_typeddict(kind)):
        return _record(key, value, kind)
    elif isinstance(value, list) and origin is Sequence:
        return [fit(f"{key}[{i}]", each, parts[0]) for i, each in enumerate(value)]
    elif kind is Any or (kind is type(value) and kind in (bool, NoneType)):
        return value
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        return _word_or_number(value, kind)
    return UNFIT


def _word_or_number(value: str | float, kind: Any) -> Any:
    if kind is Path and not isinstance(value, float):
        parts = [_at_home(part) for part in str(value).split(",")]
        return ",".join(parts) if None not in parts and str(value).strip() else UNFIT
    if isinstance(value, str):
        return value if kind is str and value.strip() and value.isprintable() else UNFIT
    # What is not a number is not below any bound.
    fits = kind in (int, float) and abs(value) <= MOST[kind] and (kind is float or value == int(value))
    return kind(value) if fits else UNFIT


def _record(key: str, value: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    fields, needed = (get_type_hints(kind), kind.__total__) if is_typeddict(kind) else (kind, True)
    for name in value:
        if name not in fields:
            raise unknown("key", f"{key}.{name}", [f"{key}.{field}" for field in fields])
    for name in fields if needed else ():
        if name not in value:
            raise RequestError(f"{key}.{name} is needed: give {key}.{name}=VALUE, permitted are {words(fields[name])}")
    return {name: fit(f"{key}.{name}", each, fields[name]) for name, each in value.items()}


def words(kind: Any) -> str:
    """What is permitted, in words."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return f"{words(kind.__origin__).partition(' up to ')[0]} {kind.__metadata__[0].words}"
    if origin in (Union, UnionType, Literal):
        return ", ".join(map(text if origin is Literal else words, parts))
    if origin in (Sequence, Mapping):
        return f"lists of {words(parts[0])}" if origin is Sequence else "{key: value}"
    if isinstance(kind, dict) or is_typeddict(kind):
        return f"{{{', '.join(kind if isinstance(kind, dict) else get_type_hints(kind))}}}"
    return f"{WORDS[kind]} up to {MOST[kind]}" if kind in MOST else WORDS[kind]


def _at_home(path: str) -> str | None:
    """A path with ~ at its start put in place; None where it names nobody's home: no folder is made that is named ~."""
    name, _, rest = path.strip().partition("/")
    if not name.startswith("~"):
        return path
    folder = home() if name == "~" else os.path.expanduser(name)
    return None if folder in (None, name) else os.path.join(folder, rest)


def home() -> str | None:
    """The user's home folder, None where there is none; an empty HOME says nothing."""
    try:
        return os.environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return None
