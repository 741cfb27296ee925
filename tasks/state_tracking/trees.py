"""Random binary trees laid out as tokens, many at once, and what they come to modulo a number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PLUS, MINUS, TIMES = range(3)


@dataclass(frozen=True)
class Layout:
    """How a tree of n tokens is laid out: `before` tokens, the left part, `between`, the right part, `after`.

    A tree of at most largest_leaf tokens is a leaf. Parts have 1, 1 + step, 1 + 2 step ... tokens, each length of the left
    part that leaves a right part with the same chance.
    """

    before: int
    between: int
    after: int
    step: int
    largest_leaf: int


@dataclass(frozen=True)
class Level:
    """The trees of one depth, of all examples. rows: the example of each [M]; starts: its first token; sizes: its tokens.

    inner: which are not leaves [M] bool. middles: where the left part of each inner one ends [K]. operations: of each inner
    one [K], PLUS, MINUS or TIMES. The next level has the left parts of the inner ones, in order, and then the right parts.
    """

    rows: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    inner: np.ndarray
    middles: np.ndarray
    operations: np.ndarray


def grow(rng: np.random.Generator, layout: Layout, *, starts: np.ndarray, sizes: np.ndarray) -> list[Level]:
    """A random tree for every example: its first token and its number of tokens [N] are given."""
    levels: list[Level] = []
    rows = np.arange(len(sizes))
    while len(rows):
        inner = sizes > layout.largest_leaf
        room = sizes[inner] - layout.before - layout.between - layout.after
        left = 1 + layout.step * rng.integers(0, (room - 2) // layout.step + 1)
        middles = starts[inner] + layout.before + left
        operations = rng.integers(3, size=len(room))
        levels.append(Level(rows, starts, sizes, inner, middles, operations))
        starts = np.concatenate([middles - left, middles + layout.between])
        rows, sizes = np.tile(rows[inner], 2), np.concatenate([left, room - left])
    return levels


def values(levels: list[Level], leaves: list[np.ndarray], modulus: int) -> np.ndarray:
    """What every example comes to [N], from the values of each level's leaves, in order."""
    below = np.zeros(0, dtype=np.int64)
    for level, given in zip(reversed(levels), reversed(leaves), strict=True):
        left, right = np.split(below, 2)
        choices = [left + right, left - right, left * right]
        here = np.empty(len(level.rows), dtype=np.int64)
        here[~level.inner] = given
        here[level.inner] = np.choose(level.operations, choices)
        below = here % modulus
    return below
