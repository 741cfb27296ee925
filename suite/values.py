"""Types of settings: whether a value is of one, made exactly that, and in words what is permitted.

A type is what an annotation says (int, float, bool, str, None, X | Y, Literal, Sequence[X], Mapping[str, X]), a Path,
Annotated[X, Limit], or a record, which is a TypedDict or, where keys may be missing, a dictionary of types.
"""

from __future__ import annotations

import difflib
import os
import pwd
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from omegaconf import DictConfig, OmegaConf

# No size, length or number of steps is beyond, and no kernel or file format counts less; float32 holds no more.
MOST = {int: 2**32 - 1, float: 1e38}
WORDS = {int: "whole numbers", float: "numbers", bool: "true, false", str: "words", NoneType: "null", Path: "paths"}
UNFIT = object()


class RequestError(ValueError):
    """The request itself is wrong: one line that names the value, what is permitted and the nearest match."""


@dataclass(frozen=True)
class Limit:
    """What is asked of a value beside its type, and its words behind the type's."""

    words: str
    holds: Callable[[Any], bool]


def whole(low: int, high: int) -> Any:
    """The type of whole numbers from low to high."""
    return Annotated[int, Limit(f"from {low} to {high}", lambda value: low <= value <= high)]


def real(low: float, high: float) -> Any:
    """The type of numbers from low to high."""
    return Annotated[float, Limit(f"from {low:g} to {high:g}", lambda value: low <= value <= high)]


def above_zero(high: float) -> Any:
    """The type of numbers above 0, up to high."""
    return Annotated[float, Limit(f"above 0, up to {high:g}", lambda value: 0 < value <= high)]


def near(value: str, permitted: Iterable[str]) -> str:
    """The words that name the nearest permitted value, if any is near."""
    found = difflib.get_close_matches(value, list(permitted), n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else ""


def unknown(what: str, value: str, permitted: Iterable[str]) -> RequestError:
    """The error for a name that is not among the permitted ones, with the nearest match."""
    permitted = list(permitted)
    return RequestError(f"unknown {what} {value!r}{near(value, permitted)} (permitted: {', '.join(permitted)})")


def text(value: object) -> str:
    """A value as it is typed in a request, on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{text(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(text, value)) + "]"
    return str(value) if str(value).isprintable() else ascii(value)


def settle(config: DictConfig, kinds: Mapping[str, Any]) -> None:
    """Makes the values of these keys exactly of their types, so that 8 and 8.0 are one. Raises RequestError."""
    made = {key: fit(key, value, kinds[key]) for key, value in OmegaConf.to_container(config, resolve=True).items() if key in kinds}
    # What refers to a value that is made right has the right one afterwards, and goes on referring to it.
    for interpolations in (False, True):
        _write(config, made, interpolations)


def _write(config: DictConfig, made: Mapping[str, Any], interpolations: bool) -> None:
    for key, value in made.items():
        if isinstance(value, dict) and OmegaConf.is_dict(config._get_node(key)) and not OmegaConf.is_interpolation(config, key):
            _write(config[key], value, interpolations)
        elif OmegaConf.is_interpolation(config, key) == interpolations and repr(config[key]) != repr(value):
            config[key] = value


def fit(key: str, value: Any, kind: Any) -> Any:
    """The value, made exactly of its type. Raises RequestError, which names the key, the value and what is permitted."""
    limited = get_origin(kind) is Annotated
    made = _made(key, value, kind.__origin__ if limited else kind)
    if made is UNFIT or (limited and not kind.__metadata__[0].holds(made)):
        names = [name for each in (kind, *get_args(kind)) if get_origin(each) is Literal for name in map(text, get_args(each))]
        hint = near(value, names) if isinstance(value, str) else ""
        raise RequestError(f"{key}={text(value)} is out of range{hint}, permitted are {words(kind)}")
    return made


def _made(key: str, value: Any, kind: Any) -> Any:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return next((made for part in parts if (made := _tried(key, value, part)) is not UNFIT), UNFIT)
    if origin is Literal:
        # By type too: 1 equals true, and is none.
        return next((part for part in parts if type(part) is type(value) and part == value), UNFIT)
    if kind is Any:
        return value
    if isinstance(value, Mapping):
        fields = _fields(kind)
        if fields is not None:
            return _record(key, value, fields, needed=is_typeddict(kind))
        return {name: fit(f"{key}.{name}", each, parts[1]) for name, each in value.items()} if origin is Mapping else UNFIT
    if isinstance(value, list):
        return [fit(f"{key}[{i}]", each, parts[0]) for i, each in enumerate(value)] if origin is Sequence else UNFIT
    return _scalar(key, value, kind)



def _scalar(key: str, value: Any, kind: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return value if kind is (NoneType if value is None else bool) else UNFIT
    if kind in (int, float) and isinstance(value, int | float):
        # What is not a number is not below any bound.
        fits = abs(value) <= MOST[kind] and (kind is float or value == int(value))
        return kind(value) if fits else UNFIT
    if kind is Path and isinstance(value, str | int):
        return ",".join(_at_home(key, part) for part in str(value).split(",")) if str(value).strip() else UNFIT
    return value if kind is str and isinstance(value, str) and value.isprintable() else UNFIT


def _tried(key: str, value: Any, kind: Any) -> Any:
    try:
        return fit(key, value, kind)
    except RequestError:
        return UNFIT


def _fields(kind: Any) -> Mapping[str, Any] | None:
    if is_typeddict(kind):
        return get_type_hints(kind, include_extras=True)
    return kind if isinstance(kind, dict) else None


def _record(key: str, value: Mapping[str, Any], fields: Mapping[str, Any], *, needed: bool) -> dict[str, Any]:
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
        return f"{WORDS.get(kind.__origin__) or words(kind.__origin__)} {kind.__metadata__[0].words}"
    if origin in (Union, UnionType):
        return ", ".join(map(words, parts))
    if origin is Literal:
        return ", ".join(map(text, parts))
    if origin is Sequence:
        return f"lists of {words(parts[0])}"
    if kind in MOST:
        return f"{WORDS[kind]} from -{MOST[kind]:g} to {MOST[kind]:g}"
    return WORDS.get(kind) if isinstance(kind, type) and kind in WORDS else "{" + ", ".join(_fields(kind) or ("key: value",)) + "}"


def _at_home(key: str, path: str) -> str:
    """A path with ~ at its start put in place. Raises RequestError where it names nobody's home, never a folder named ~."""
    if not path.lstrip().startswith("~"):
        return path
    name, _, rest = path.strip().partition("/")
    folder = home() if name == "~" else os.path.expanduser(name)
    if folder is None or folder == name:
        raise RequestError(f"{key}={text(path)}: {name} is nobody's home folder here, permitted are paths; ./{path} is one here")
    return os.path.join(folder, rest)


def home() -> str | None:
    """The user's home folder, None where there is none; an empty HOME says nothing."""
    try:
        return os.environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return None
