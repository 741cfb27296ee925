"""What the arguments of a part may be: the annotations of its function, of which some stand for names found elsewhere."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast, get_args, get_origin, get_type_hints

import msgspec
import yaml

from conf.groups import find, options
from conf.settings import Refusal, Settings, fields, near
from suite.metrics import METRICS

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Known:
    """Marks words that must be among those that `names` finds."""

    names: Callable[[], Iterable[str]]


def stages() -> list[str]:
    """The training and every stage that an option of conf/eval asks for."""
    return ["train", *_stages(tuple(find("eval", name) for name in options("eval")))]


@functools.cache
def _stages(paths: tuple[Path, ...]) -> list[str]:
    return sorted({stage for path in paths for stage in yaml.safe_load(path.read_text(encoding="utf-8")).get("stages", ())})


# Type checkers see words.
Metric = Annotated[str, Known(lambda: METRICS)]
Task = Annotated[str, Known(lambda: options("task"))]
Model = Annotated[str, Known(lambda: options("model"))]
Stage = Annotated[str, Known(stages)]
Split = Annotated[str, Known(lambda: SPLITS)]


def read_arguments(function: Callable[..., Any], values: Mapping[str, Any], *, named: bool) -> dict[str, Any]:
    """The arguments of a part from YAML, as the annotations of its function say, but for `frames`.

    named: whether words that stand for names have to be names of this package; a store may hold tasks of another.
    Raises RequestError for one that is not known, is missing or is not what it may be.
    """
    arguments = _settings(function).read(values, "arguments")
    for key, value, permitted in _named(arguments, "arguments") if named else ():
        if value not in permitted:
            raise Refusal(key, value, ", ".join(permitted), near(value, permitted))
    return {name: getattr(arguments, name) for name in arguments.__struct_fields__}


@functools.cache
def _settings(function: Callable[..., Any]) -> type[Settings]:
    """The arguments as settings, those with a default value at the end."""
    hints, made = get_type_hints(function, include_extras=True), []
    for name, parameter in list(inspect.signature(function).parameters.items())[1:]:
        default = () if parameter.default is parameter.empty else (parameter.default,)
        made.append((name, hints.get(name, Any), *default))
    kind = msgspec.defstruct("Arguments", made, bases=(Settings,), module=function.__module__, frozen=True, kw_only=True)
    return cast(type[Settings], kind)


def _named(value: Any, key: str, kind: Any = None) -> Iterator[tuple[str, Any, list[str]]]:
    """Every value that stands for a name found elsewhere, with its dotted key and the names permitted."""
    if isinstance(value, Settings):
        for name, (inner, default) in {each.name: (kind, each.default) for each, kind in _fields(type(value))}.items():
            # What may be left out may be left empty.
            if (own := getattr(value, name)) != default:
                yield from _named(own, f"{key}.{name}", inner)
    elif isinstance(value, str):
        for mark in getattr(kind, "__metadata__", ()):
            if isinstance(mark, Known):
                yield key, value, list(mark.names())
    elif isinstance(value, Mapping):
        of_key, of_value = get_args(kind) or (Any, Any)
        for name, each in value.items():
            yield from _named(name, key, of_key)
            yield from _named(each, f"{key}.{name}", of_value)
    elif isinstance(value, Sequence):
        kinds = get_args(kind) or (Any,)
        for i, each in enumerate(value):
            yield from _named(each, f"{key}[{i}]", kinds[min(i, len(kinds) - 1)] if _is_fixed(kind) else kinds[0])


def _is_fixed(kind: Any) -> bool:
    """Whether each place of a list has a type of its own: tuple[int, str], not tuple[str, ...]."""
    return get_origin(kind) is tuple and get_args(kind)[-1] is not Ellipsis


def _fields(kind: type[Settings]) -> list[tuple[msgspec.structs.FieldInfo, Any]]:
    return [(each, fields(kind)[each.name]) for each in msgspec.structs.fields(kind)]
