"""What an annotated type is made of: its base, its marks, its range in words, and what a value of another type is not."""

from __future__ import annotations

from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from msgspec import Meta, UnsetType

PLAIN: dict[Any, tuple[Any, str]] = {
    int: (int, "a whole number"),
    float: (int | float, "a number"),
    bool: (bool, "true or false"),
    str: (str, "text"),
    tuple: (list | tuple, "a list"),
}
"""What a value of a type is to Python, and in words."""


def base_of(kind: Any) -> Any:
    """A type without its marks."""
    return kind.__origin__ if get_origin(kind) is Annotated else kind


def marks_of(kind: Any) -> tuple[Any, ...]:
    """Ranges and other marks of a type."""
    return kind.__metadata__ if get_origin(kind) is Annotated else ()


def range_of(metas: Sequence[Meta]) -> list[str]:
    """The lower and the upper bound, in words."""
    low = next((f"from {m.ge:g}" if m.ge is not None else f"above {m.gt:g}" for m in metas if (m.ge, m.gt) != (None, None)), "")
    high = ""
    for meta in metas:
        if meta.lt is not None:
            high = f"to below {meta.lt:g}" if low.startswith("from") else f"and below {meta.lt:g}"
        elif meta.le is not None:
            bound = str(meta.le) if isinstance(meta.le, int) else f"{meta.le:g}"
            high = f"to {bound}" if low.startswith("from") else f"up to {bound}"
    return [part for part in (f"{low}," if high.startswith("up") else low, high) if part]


def fault_of(value: object, kind: Any) -> str:
    """What a value is not that has another type than it should; "" where the type is right, or one that reads texts itself."""
    base, parts = base_of(kind), [part for part in get_args(base_of(kind)) if part not in (NoneType, UnsetType)]
    if get_origin(base) in (Union, UnionType):
        faults = [fault_of(value, part) for part in parts]
        return "" if "" in faults else faults[0] if len(faults) == 1 else "is unknown"
    if get_origin(base) is Literal:
        return "is unknown"
    type_, noun = PLAIN.get(get_origin(base) or base, (object, ""))
    # Truth is a whole number to Python alone.
    fits = isinstance(value, type_) and (isinstance(value, bool) <= (base is bool or not noun))
    return "" if fits else f"is not {noun}"
