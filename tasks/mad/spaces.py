"""How many examples a task has, which decides how a hash deals them out to the splits."""

from __future__ import annotations

import numpy as np

from tasks.synthetic.blocks import Space
from tasks.synthetic.splits import TINY

MOST_TOKENS = 2**16
"""The longest sequence of a MAD task."""
MOST_IDS = 2**16
"""The largest vocabulary of a MAD task."""


def every_list(symbols: int, length: int, *, scarce: str) -> Space:
    """All lists of `length` numbers below `symbols`. scarce: see `Space`."""

    def marks() -> np.ndarray:
        return np.arange(symbols**length)[:, None] // symbols ** np.arange(length) % symbols

    return Space(symbols**length, marks, scarce)


def many(*, scarce: str) -> Space:
    """More than TINY examples, which the task's settings guarantee. scarce: see `Space`."""

    def marks() -> np.ndarray:
        raise AssertionError("more than TINY examples are never listed")

    return Space(TINY + 1, marks, scarce)


def choices_for_many(options: int) -> int:
    """How many choices among `options` (>= 2) give more than TINY outcomes."""
    choices = 1
    while options**choices <= TINY:
        choices += 1
    return choices
