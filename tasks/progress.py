"""How far long work is: told by whoever does it, heard by whoever shows it, and by nobody otherwise.

A task or an evaluation knows its own loops and not who watches; the listener stands in a context variable, so that nothing
between the two hands it on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

Hearing = Callable[[str, int, int], None]
"""Is told what is done, how much of it, and how much there is."""

_hearing: ContextVar[Hearing | None] = ContextVar("hearing", default=None)


@contextmanager
def heard(by: Hearing) -> Iterator[None]:
    """Within the block `by` hears of the work of this thread, and nobody else does."""
    before = _hearing.set(by)
    try:
        yield
    finally:
        _hearing.reset(before)


def tell(what: str, done: int, total: int) -> None:
    """Says that `done` of `total` are done; what: the work in words, or "" for that of the whole stage."""
    hearing = _hearing.get()
    if hearing is not None:
        hearing(what, done, total)


def counted(items: Iterable[T], total: int, size: Callable[[T], int] = lambda item: 1) -> Iterator[T]:
    """The same items; says after each how much of `total` is done. size: how much an item is."""
    done = 0
    for item in items:
        yield item
        done += size(item)
        tell("", done, total)
