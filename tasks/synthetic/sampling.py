"""Drawing without replacement: where the smallest of a row of random numbers stand."""

from __future__ import annotations

import math

import numpy as np


def first_smallest(draws: np.ndarray, count: int) -> np.ndarray:
    """The columns of the `count` smallest numbers of every row, smallest first [N, count]."""
    smallest = np.argpartition(draws, count - 1, axis=1)[:, :count]
    order = np.take_along_axis(draws, smallest, axis=1).argsort(axis=1)
    return np.take_along_axis(smallest, order, axis=1)


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
