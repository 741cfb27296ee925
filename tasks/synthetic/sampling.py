"""Drawing without replacement: where the smallest of a row of random numbers stand."""

from __future__ import annotations

import math

import numpy as np

SHORT = 512  # columns up to which sorting a whole row is quicker than looking for its smallest numbers


def first_smallest(draws: np.ndarray, count: int) -> np.ndarray:
    """The columns of the `count` smallest numbers of every row, smallest first [N, count]; equal numbers by column.

    A sorting algorithm that leaves the order of equal numbers open takes another one on another processor.
    """
    if draws.shape[1] <= SHORT:
        return draws.argsort(axis=1, kind="stable")[:, :count]
    bound = np.partition(draws, count - 1, axis=1)[:, count - 1 : count]
    rows, columns = np.nonzero(draws <= bound)
    order = np.lexsort((draws[rows, columns], rows))
    first = np.searchsorted(rows, np.arange(len(draws)))
    return columns[order][first[:, None] + np.arange(count)]


def first_smallest_uniform(rng: np.random.Generator, shape: tuple[int, int], count: int) -> np.ndarray:
    """What `first_smallest(rng.random(shape, dtype=np.float32), count)` gives, faster, with rng left in the same state.

    shape: of an even number of elements. Each float is the upper 24 of 32 random bits, so bits are compared instead. Nearly
    always at least `count` numbers of a row lie below a bound, and the others need not be looked at. A row with fewer, or
    with equal numbers, whose order depends on the sorting algorithm, is sorted as a whole.
    """
    if rng.bit_generator.state["has_uint32"]:
        # Half a word that an earlier draw left over comes first.
        return first_smallest(rng.random(shape, dtype=np.float32), count)
    num_rows, num_columns = shape
    bits = rng.bit_generator.random_raw(num_rows * num_columns // 2).astype("<u8", copy=False).view("<u4").reshape(shape)
    bound = min(0.5, (count + 6.0 * math.sqrt(count) + 8.0) / num_columns)
    rows, columns = np.divmod(np.flatnonzero(bits < np.uint32(bound * 2**32)), num_columns)
    found = np.bincount(rows, minlength=num_rows)
    place = np.arange(len(rows)) - (np.cumsum(found) - found)[rows]
    smallest = np.full((num_rows, max(found.max(), count + 1)), 2**24, dtype=np.uint32)
    where = np.zeros(smallest.shape, dtype=np.int64)
    smallest[rows, place], where[rows, place] = bits[rows, columns] >> 8, columns
    order = smallest.argsort(axis=1)[:, : count + 1]
    first = np.take_along_axis(smallest, order, axis=1)
    chosen = np.take_along_axis(where, order[:, :count], axis=1)
    unsure = (found <= count) | (first[:, 1:] == first[:, :-1]).any(axis=1)
    chosen[unsure] = first_smallest((bits[unsure] >> 8).astype(np.float32) / np.float32(2**24), count)
    return chosen


def distinct(rng: np.random.Generator, shape: tuple[int, int], size: int) -> np.ndarray:
    """Different numbers below `size` in every row, in random order [N, count]; quick where count is far below size.

    A number that an earlier place of its row holds already is drawn again until there is none. Every renaming of the numbers
    leaves the procedure as it is, so that all ordered choices are equally likely.
    """
    kind = np.uint16 if size <= 2**16 else np.uint32
    drawn = rng.integers(size, size=shape, dtype=kind)
    left = np.arange(len(drawn))
    while True:
        # Numbers alone are sorted ten times faster than with their places, and few rows repeat one.
        ordered = np.sort(drawn[left], axis=1)
        left = left[(ordered[:, 1:] == ordered[:, :-1]).any(axis=1)]
        if not len(left):
            return drawn
        order = drawn[left].argsort(axis=1, kind="stable")
        ordered = np.take_along_axis(drawn[left], order, axis=1)
        rows, places = np.nonzero(ordered[:, 1:] == ordered[:, :-1])
        drawn[left[rows], order[rows, places + 1]] = rng.integers(size, size=len(rows), dtype=kind)
