"""The split to which an example of a synthetic task belongs: a hash of the example decides, under any seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

SPLIT_QUARTERS = {"train": (0, 1), "validation": (2,), "test": (3,)}
_IS_OF = {split: np.isin(np.arange(4), quarters) for split, quarters in SPLIT_QUARTERS.items()}
"""Whether each quarter is of a split."""

# Where no more examples than this are possible, each is assigned to a split on its own: the hash of `belongs` is too weak there.
# Among examples of a single pair, for instance, it gives all that have one value to one split.
TINY = 2**16


def belongs(numbers: np.ndarray, split: str) -> np.ndarray:
    """[N] bool: which of the examples that these whole numbers [N, M] >= 0 identify are of the split.

    A hash of every row to 0 ... 3 decides: multiply, add, and take the two highest bits.
    """
    multipliers = np.random.Philox(key=0).random_raw(numbers.shape[1]) | np.uint64(1)
    quarters = (numbers.astype(np.uint64) * multipliers).sum(axis=1, dtype=np.uint64) >> np.uint64(62)
    return _IS_OF[split][quarters.astype(np.intp)]


def belongs_of(space: np.ndarray) -> Callable[[np.ndarray, str], np.ndarray]:
    """`belongs` for a space of few examples, all of them listed [S, M]: each quarter holds a quarter of the list."""
    # Where a quarter begins, by the hash; a space of fewer than four examples leaves quarters empty.
    ordered = np.append(np.sort(_mixed(space)), np.uint64(2**64 - 1))
    cuts = ordered[[-(-len(space) * quarter // 4) for quarter in (1, 2, 3)]]
    return lambda numbers, split: _IS_OF[split][np.searchsorted(cuts, _mixed(numbers), side="right")]


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """A hash of every row to 64 bits, each of which depends on all numbers: splitmix64 (Steele et al. 2014)."""
    mixed = np.zeros(len(numbers), dtype=np.uint64)
    for column in numbers.astype(np.uint64).T:
        mixed = (mixed ^ column) + np.uint64(0x9E3779B97F4A7C15)
        for shift, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(multiplier)
        mixed ^= mixed >> np.uint64(31)
    return mixed
