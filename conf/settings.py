"""What a setting is: its type, range, choices and neutral value, and the sentence about a value that is not permitted.

The YAML files beside this module hold the values. What each may be is declared on the fields of a `Settings`, which stands
beside whatever takes it: a mixer, a task, a size, a training. msgspec converts and checks.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Self, Union, dataclass_transform, get_args, get_origin, get_type_hints

import msgspec
from msgspec import UNSET, Meta, UnsetType

from conf.kinds import base_of, fault_of, marks_of, range_of

# Letters of a value that an error shows.
SHOWN = 100
# float32 holds no more.
LARGEST = 1e38
LISTS, MAPPINGS = (list, Sequence), (dict, Mapping)


class RequestError(ValueError):
    """The request itself is wrong: one line that names the value, what is permitted and the nearest match."""


class Refusal(RequestError):
    """A value that is not permitted. permitted: in words, behind "permitted are". fault: what the value is, or is not."""

    def __init__(self, key: str, value: object, permitted: str, nearest: str = "", fault: str = "is out of range") -> None:
        # A text that would be read as something else shows that it is a text.
        said = repr(value) if isinstance(value, str) and _reads_otherwise(value) else text(value)
        super().__init__(f"{key}={said[:SHOWN]} {fault}, permitted are {permitted}{nearest}")
        self.parts = key, value, permitted, nearest, fault

    def under(self, prefix: str) -> Refusal:
        """The same refusal of a key that stands in `prefix`."""
        key, *others = self.parts
        return Refusal(_joined(prefix, key), *others)


@dataclass(frozen=True)
class Neutral:
    """Marks a field that was added after runs existed: at this value it changes nothing and stays out of a run's name."""

    value: Any


class Outside:
    """Marks a field that says where something lies or what it is called, and stays out of a run's name."""


OUTSIDE = Outside()


def within(low: float, high: float) -> Meta:
    """Numbers from low to high."""
    return Meta(ge=low, le=high)


def above(low: float, high: float = LARGEST) -> Meta:
    """Numbers above low, up to high."""
    return Meta(gt=low, le=high)


def between(low: float, high: float) -> Meta:
    """Numbers above low and below high."""
    return Meta(gt=low, lt=high)


def below(low: float, high: float) -> Meta:
    """Numbers from low to below high."""
    return Meta(ge=low, lt=high)


Count = Annotated[int, within(1, 2**31 - 1)]
Natural = Annotated[int, within(0, 2**31 - 1)]
Positive = Annotated[float, above(0)]
Share = Annotated[float, within(0, 1)]
Line = Annotated[str, Meta(pattern=r"^(?=.*\S)[^\x00-\x1f\x7f\x80-\x9f\u2028\u2029]+$", description="one line of text")]
Name = Annotated[str, Meta(pattern=r"^\w[\w.-]*$", description="words of letters, digits, ., _ and -")]


# Type checkers would take a subclass that does not repeat frozen=True for a record that can change.
@dataclass_transform(frozen_default=True)
class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one thing: frozen, hashable, by keyword; what decides a run's numbers is without default values.

    A subclass says kw_only=True, declares types with ranges on its fields, and refuses what only several fields together
    decide in __post_init__, by a Refusal. `read` checks types and ranges; the constructor does not.
    """

    @classmethod
    def read(cls, values: Mapping[str, Any], key: str = "") -> Self:
        """The settings in a mapping from YAML, at the place `key` of the configuration. Raises RequestError.

        8.0 is the whole number 8, and 8 the real number 8.0; true is no number, and '8' is none.
        """
        plain = _whole(values)
        try:
            return msgspec.convert(plain, cls, dec_hook=_of)
        except msgspec.ValidationError as error:
            raise _refusal(key, plain, cls) or RequestError(f"{key}: {error}") from error

    def plain(self) -> dict[str, Any]:
        """The settings as YAML holds them."""
        return _listed(msgspec.to_builtins(self, enc_hook=_plain))

    def replace(self, changes: Mapping[str, Any]) -> Self:
        """The same settings with some values changed, checked anew. Raises RequestError."""
        return type(self).read({**self.plain(), **changes})

    def named(self, *, neutral: bool) -> dict[str, Any]:
        """The settings that belong to a run's name, as YAML holds them: none that is OUTSIDE.

        neutral: whether those that stand at their neutral value are among them.
        """
        kept = {}
        for name, kind in fields(type(self)).items():
            value, marks = getattr(self, name), marks_of(kind)
            if OUTSIDE in marks or (not neutral and any(isinstance(mark, Neutral) and mark.value == value for mark in marks)):
                continue
            kept[name] = value.named(neutral=neutral) if isinstance(value, Settings) else value
        return msgspec.to_builtins(kept, enc_hook=_plain)


def with_neutral(settings: type[Settings], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values from before some fields existed, with those fields at their neutral values."""
    made = dict(values)
    for name, kind in fields(settings).items():
        for mark in marks_of(kind):
            if isinstance(mark, Neutral):
                made.setdefault(name, mark.value)
        base = base_of(kind)
        if isinstance(base, type) and issubclass(base, Settings) and isinstance(made.get(name), Mapping):
            made[name] = with_neutral(base, made[name])
    return made


def partial(name: str, settings: type[Settings], module: str) -> type[Settings]:
    """Settings of the same fields, each of which may be left out: what is laid over settings that are there."""
    optional = [(field, kind | UnsetType, UNSET) for field, kind in fields(settings).items()]
    return msgspec.defstruct(name, optional, bases=(Settings,), module=module, frozen=True, kw_only=True)


@functools.cache
def fields(settings: type[Settings]) -> dict[str, Any]:
    """The name and the declared type of every field."""
    hints = get_type_hints(settings, include_extras=True)
    return {name: hints[name] for name in settings.__struct_fields__}


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested mappings with its dotted key."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def near(value: object, permitted: Iterable[str]) -> str:
    """The words that name the nearest permitted value, if any is near; small and capital letters are alike."""
    names = {name.lower(): name for name in permitted}
    found = difflib.get_close_matches(str(value).lower(), list(names), n=1, cutoff=0.5)
    return f"; did you mean {names[found[0]]}?" if found else ""


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
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(map(text, value)) + "]"
    return str(value) if str(value).isprintable() else ascii(value)


def _reads_otherwise(value: str) -> bool:
    """Whether YAML reads these letters as a number, a truth or nothing."""
    with contextlib.suppress(ValueError):
        float(value)
        return True
    return value.lower() in ("true", "false", "null", "")


def words(kind: Any) -> str:
    """What a type permits, in words."""
    base, parts = base_of(kind), get_args(base_of(kind))
    metas = [mark for mark in marks_of(kind) if isinstance(mark, Meta)]
    told = [meta.description for meta in metas if meta.description]
    if told:
        return told[-1]
    if get_origin(base) in (Union, UnionType):
        return ", ".join(words(part) for part in parts if part is not UnsetType)
    if get_origin(base) is Literal:
        return ", ".join(map(text, parts))
    if get_origin(base) is tuple:
        each = dict.fromkeys(words(part) for part in parts if part is not Ellipsis)
        number = "" if parts[-1] is Ellipsis or len(each) > 1 else f"{len(parts)} "
        return f"lists of {number}{' and '.join(each)}"
    if get_origin(base) in LISTS:
        return f"lists of {words(parts[0])}"
    if get_origin(base) in MAPPINGS:
        return f"mappings to {words(parts[1])}"
    if isinstance(base, type) and issubclass(base, Settings):
        return f"{{{', '.join(fields(base))}}}"
    plain = {int: "whole numbers", float: "numbers", bool: "true, false", str: "words", NoneType: "null", Any: "values"}
    return " ".join([getattr(base, "words", None) or plain[base], *range_of(metas)])


def _refusal(key: str, value: Any, kind: Any) -> RequestError | None:
    """What is wrong with a value, looked for from the inside out; None where nothing is."""
    base, parts = base_of(kind), get_args(base_of(kind))
    if isinstance(base, type) and issubclass(base, Settings) and isinstance(value, dict):
        return _refusal_of_settings(key, value, base)
    if get_origin(base) in (*LISTS, tuple) and parts[-1] in (parts[0], Ellipsis) and isinstance(value, list | tuple):
        found = (_refusal(f"{key}[{i}]", each, parts[0]) for i, each in enumerate(value))
        if refusal := next(filter(None, found), None):
            return refusal
    if get_origin(base) in MAPPINGS and isinstance(value, dict):
        found = (_refusal(_joined(key, str(name)), each, parts[1]) for name, each in value.items())
        if refusal := next(filter(None, found), None):
            return refusal
    try:
        msgspec.convert(value, kind, dec_hook=_of)
    except msgspec.ValidationError:
        choices = [text(name) for each in (base, *parts) if get_origin(each) is Literal for name in get_args(each)]
        return Refusal(key, value, words(kind), near(value, choices), fault_of(value, kind) or "is out of range")
    return None


def _refusal_of_settings(key: str, value: Mapping[str, Any], kind: type[Settings]) -> RequestError | None:
    known = fields(kind)
    for name in value:
        if name not in known:
            return unknown("key", _joined(key, name), [_joined(key, field) for field in known])
    for name, each in value.items():
        if refusal := _refusal(_joined(key, name), each, known[name]):
            return refusal
    for name in [each.name for each in msgspec.structs.fields(kind) if each.required]:
        if name not in value:
            missing = _joined(key, name)
            return RequestError(f"{missing} is needed: give {missing}=VALUE, permitted are {words(known[name])}")
    try:
        msgspec.convert(value, kind, dec_hook=_of)
    except msgspec.ValidationError as error:
        return error.__cause__.under(key) if isinstance(error.__cause__, Refusal) else RequestError(f"{key}: {error}")
    return None


def _joined(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key


def _whole(value: Any) -> Any:
    """Every real number that is a whole one, as a whole one: a field of real numbers makes it real again."""
    if isinstance(value, Mapping):
        return {name: _whole(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _of(kind: type, value: object) -> Any:
    return kind.of(value)


def _listed(value: Any) -> Any:
    """Values whose tuples are lists, as YAML has them."""
    if isinstance(value, dict):
        return {name: _listed(each) for name, each in value.items()}
    return [_listed(each) for each in value] if isinstance(value, list | tuple) else value


def _plain(value: object) -> Any:
    return str(value) if isinstance(value, str) else list(value)
