"""The intervals that the reports print: all two-sided, all at 95 %."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

Z = 1.959963984540054
"""Quantile 0.975 of the standard normal distribution."""

SMALL_T = (12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157)
"""Quantile 0.975 of Student's t for 1 to 9 degrees of freedom, where the expansion below is not good to 1e-5."""


class Interval(NamedTuple):
    """A mean with its 95 % interval; low and high are NaN where none can be given."""

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def student_t(degrees: int) -> float:
    """Quantile 0.975 of Student's t: tabulated, from 10 degrees on by Abramowitz & Stegun 26.7.5; error below 1e-5."""
    if degrees < 1:
        raise ValueError(f"{degrees} degrees of freedom; at least 1 is needed")
    if degrees <= len(SMALL_T):
        return SMALL_T[degrees - 1]
    terms = (
        (Z**3 + Z) / 4,
        (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96,
        (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384,
        (79 * Z**9 + 776 * Z**7 + 1482 * Z**5 - 1920 * Z**3 - 945 * Z) / 92160,
    )
    return Z + sum(term / degrees ** (i + 1) for i, term in enumerate(terms))


def t_interval(values: np.ndarray) -> Interval:
    """Mean and t interval of values [N] (seeds, or paired differences of examples); a single value has no interval."""
    values = np.asarray(values, dtype=float)
    if len(values) == 0:
        return Interval(math.nan, math.nan, math.nan)
    mean = float(values.mean())
    if len(values) == 1:
        return Interval(mean, math.nan, math.nan)
    half = student_t(len(values) - 1) * standard_error(values)
    return Interval(mean, mean - half, mean + half)


def standard_error(values: np.ndarray) -> float:
    """Standard error of the mean of values [N]; NaN for fewer than two."""
    values = np.asarray(values, dtype=float)
    # An infinite value has no spread: NaN, and no warning.
    with np.errstate(invalid="ignore"):
        return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def bootstrap_intervals(values: np.ndarray, *, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Percentile bootstrap of the column means of values [N, M], whole rows drawn together (Efron 1979).

    A row is a document, a column a position; NaN where a document does not reach it. For differences of two models
    on the same documents this is the paired bootstrap. Returns mean, low, high [M]; low and high are NaN for N < 2.
    """
    values = np.asarray(values, dtype=float)
    num_rows, num_columns = values.shape
    present, filled = np.isfinite(values).astype(float), np.nan_to_num(values)
    with np.errstate(invalid="ignore"):
        mean = filled.sum(0) / present.sum(0)
    if num_rows < 2:
        return mean, np.full(num_columns, np.nan), np.full(num_columns, np.nan)
    times_drawn = np.random.default_rng(seed).multinomial(num_rows, np.full(num_rows, 1 / num_rows), size=resamples)
    with np.errstate(invalid="ignore"):
        means = (times_drawn @ filled) / (times_drawn @ present)
    low, high = np.nanpercentile(means, (2.5, 97.5), axis=0)
    return mean, low, high
