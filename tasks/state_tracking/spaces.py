"""Spaces of examples that are too many to be listed: a hash alone deals them out to the splits."""

from __future__ import annotations

import numpy as np

from tasks.synthetic.blocks import Space
from tasks.synthetic.splits import TINY


def large_space(size: int) -> Space:
    """A space of at least `size` examples, which are more than TINY."""
    assert size > TINY
    return Space(size, _unlisted, "")


def shortest_with(symbols: int) -> int:
    """How many of so many symbols a string must have at least for the strings of that length to be more than TINY."""
    return next(length for length in range(1, 64) if symbols**length > TINY)


def _unlisted() -> np.ndarray:
    raise AssertionError("a large space is not listed")
