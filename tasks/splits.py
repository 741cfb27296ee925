"""To which split an example of a synthetic task belongs: a hash of what it is says so, under any seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

SPLIT_QUARTERS = {"train": (0, 1), "validation": (2,), "test": (3,)}

TINY = 2**16
"""Up to so many possible examples a split is drawn from the list of all of them: `belongs` would favour some (of the
values of a single pair it gives whole ones to one split)."""
DRAWINGS, ROWS = 256, 2**18  # tried at most to find an even one, and hashed in all of them together


def belongs(numbers: np.ndarray, split: str) -> np.ndarray:
    """[N] bool: which of the examples that these whole numbers [N, M] >= 0 identify are of the split."""
    return np.isin(_quarter(numbers), SPLIT_QUARTERS[split])


def _quarter(numbers: np.ndarray) -> np.ndarray:
    """A hash of every row to 0 ... 3: multiply, add, and take the two highest bits."""
    multipliers = np.random.Philox(key=0).random_raw(numbers.shape[1]) | np.uint64(1)
    return (numbers.astype(np.uint64) * multipliers).sum(axis=1, dtype=np.uint64) >> np.uint64(62)


def belongs_of(space: np.ndarray) -> Callable[[np.ndarray, str], np.ndarray]:
    """`belongs` for examples of which there are no more than these [S, M]: every quarter holds a quarter of them.

    Of several drawings it takes the one in which each number is most evenly frequent in each place of each split.
    """
    keys = range(max(1, min(DRAWINGS, ROWS // len(space))))
    key = min(keys, key=lambda key: _unevenness(space, _ranks(_mixed(space, key)) * 4 // len(space)))
    # Where a quarter begins, by the hash; a space of fewer than four examples leaves quarters empty.
    ordered = np.append(np.sort(_mixed(space, key)), np.uint64(2**64 - 1))
    cuts = ordered[[-(-len(space) * quarter // 4) for quarter in (1, 2, 3)]]

    def of_split(numbers: np.ndarray, split: str) -> np.ndarray:
        return np.isin(np.searchsorted(cuts, _mixed(numbers, key), side="right"), SPLIT_QUARTERS[split])

    return of_split


def _mixed(numbers: np.ndarray, key: int) -> np.ndarray:
    """A hash of every row to 64 bits, of which each depends on all numbers (the finisher of splitmix64, Steele et al. 2014)."""
    mixed = np.full(len(numbers), key, dtype=np.uint64)
    for column in numbers.astype(np.uint64).T:
        mixed = (mixed ^ column) + np.uint64(0x9E3779B97F4A7C15)
        for shift, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(multiplier)
        mixed ^= mixed >> np.uint64(31)
    return mixed


def _ranks(values: np.ndarray) -> np.ndarray:
    return values.argsort().argsort()


def _unevenness(space: np.ndarray, quarters: np.ndarray) -> float:
    """How far the share of a split in any number of any column is from the split's share, at most."""
    worst = 0.0
    for column in space.T:
        _, numbers = np.unique(column, return_inverse=True)
        counts = np.bincount(4 * numbers + quarters, minlength=4 * (numbers.max() + 1)).reshape(-1, 4)
        shares = np.stack([counts[:, list(parts)].sum(1) for parts in SPLIT_QUARTERS.values()], axis=1) / counts.sum(1)[:, None]
        worst = max(worst, float(np.abs(shares - [0.5, 0.25, 0.25]).max()))
    return worst
