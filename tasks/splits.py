"""To which split an example of a synthetic task belongs: a hash of what it is says so, under any seed."""

from __future__ import annotations

import numpy as np

SPLIT_QUARTERS = {"train": (0, 1), "validation": (2,), "test": (3,)}


def belongs(numbers: np.ndarray, split: str) -> np.ndarray:
    """[N] bool: which of the examples that these whole numbers [N, M] >= 0 identify are of the split."""
    return np.isin(_quarter(numbers), SPLIT_QUARTERS[split])


def _quarter(numbers: np.ndarray) -> np.ndarray:
    """A hash of every row to 0 ... 3: multiply, add, and take the two highest bits."""
    multipliers = np.random.Philox(key=0).random_raw(numbers.shape[1]) | np.uint64(1)
    return (numbers.astype(np.uint64) * multipliers).sum(axis=1, dtype=np.uint64) >> np.uint64(62)
