"""The intervals that the reports print: all two-sided, all at 95 %."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from suite.metrics import METRICS

Z = 1.959963984540054
"""Quantile 0.975 of the standard normal distribution."""
RESAMPLES = 2000
"""Bootstrap draws behind a band: enough that its edges move by less than a line's width."""
FEW_CLUSTERS = 10
"""Below so many a bootstrap covers less than 93 % (5 documents: 91 %, 3: 75 %)."""


class Interval(NamedTuple):
    """A mean with its 95 % interval; low and high are NaN where none can be given."""

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    @property
    def sign(self) -> int:
        """On which side of zero it lies, -1 or 1; 0 where it holds zero or can't be given."""
        return int(self.low > 0) - int(self.high < 0)


def student_t(degrees: np.ndarray | int, tail: float = 0.025) -> np.ndarray:
    """Quantile 1 - tail of Student's t; NaN without a degree of freedom."""
    return stdtrit(degrees, 1 - tail)


def t_interval(values: np.ndarray, *, comparisons: int = 1) -> Interval:
    """Mean and t interval of values [N] (seeds, or paired differences of examples); a single value has no interval.

    comparisons: of how many intervals it is one, which hold what they should all at once with 95 % (Bonferroni).
    """
    values = np.asarray(values, dtype=float)
    mean = float(values.mean()) if len(values) else math.nan
    half = float(student_t(len(values) - 1, 0.025 / comparisons)) * standard_error(values)
    return Interval(mean, mean - half, mean + half)


def seed_interval(values: np.ndarray, metric: str, *, difference: bool = False) -> Interval:
    """Mean and t interval of a metric of N seeds, or of its difference, within the metric's limits; none (NaN) where none holds.

    None holds for a single seed, and for a metric that a seed has learnt or not: around a mean of two kinds of seeds a t
    interval of three covers half of what it says. Such seeds are shown themselves.
    """
    known = METRICS.get(metric)
    found = t_interval(values)
    if known and known.learnt_or_not:
        return Interval(found.mean, math.nan, math.nan)
    if known is None or difference:
        return found
    # A mean that is beyond the limits, if only by rounding, stays within its interval.
    low, high = np.clip(found[1:], *known.bounds)
    return Interval(found.mean, float(np.minimum(low, found.mean)), float(np.maximum(high, found.mean)))


def share_interval(successes: int, count: int) -> tuple[float, float]:
    """Wilson's interval (1927) of a share, of which `successes` in `count` draws were seen."""
    middle, square = (successes + Z**2 / 2) / (count + Z**2), successes * (count - successes) / count + Z**2 / 4
    half = Z * math.sqrt(square) / (count + Z**2)
    return max(0.0, middle - half), min(1.0, middle + half)


def standard_error(values: np.ndarray) -> float:
    """Standard error of the mean of values [N]; NaN for fewer than two."""
    values = np.asarray(values, dtype=float)
    # An infinite value has no spread: NaN, and no warning.
    with np.errstate(invalid="ignore"):
        return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def bootstrap_intervals(
    values: np.ndarray, *, resamples: int, seed: int, clusters: Sequence[float] | np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bootstrap of the column means of values [N, M], whole clusters of rows drawn together (Efron 1979).

    A row is a window, a column a position; NaN where a window does not reach it. clusters: the document of every row, None
    where rows are independent. Differences of two models on the same windows make it the paired bootstrap. Returns mean,
    low, high [M]; low and high are NaN for fewer than two clusters. The ends are percentiles further out than 95 %, by as much
    as Student's t is wider, since the percentiles of few documents are too near (Hesterberg 2015, sec. 5.3); with fewer than
    FEW_CLUSTERS the ends are the t interval of the mean, a ratio of sums over clusters, linearised.
    """
    values = np.asarray(values, dtype=float)
    names, cluster = np.unique(np.arange(len(values)) if clusters is None else clusters, return_inverse=True)
    present, filled = (np.zeros((len(names), values.shape[1])) for _ in range(2))
    np.add.at(present, cluster, np.isfinite(values).astype(float))
    np.add.at(filled, cluster, np.nan_to_num(values))
    with np.errstate(invalid="ignore"):
        mean = filled.sum(0) / present.sum(0)
    if len(names) < 2:
        return mean, np.full(len(mean), np.nan), np.full(len(mean), np.nan)
    times_drawn = _times_drawn(len(names), resamples, seed)
    with np.errstate(invalid="ignore"):
        means = (times_drawn @ filled) / (times_drawn @ present)
    # The one that looks for NaN takes three times as long.
    percentile = np.percentile if np.isfinite(means).all() else np.nanpercentile
    low, high = percentile(means, bootstrap_percentiles(len(names)), axis=0)
    # What is drawn again can't leave the few that were seen: Student's t on how far each moves the mean instead.
    counts = (present > 0).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        moves = (filled - mean * present) / (present.sum(0) / counts)
        error = np.sqrt((moves**2).sum(0) / (counts * (counts - 1)))
    half = error * student_t(counts - 1)
    few = counts < FEW_CLUSTERS
    return mean, np.where(few, mean - half, low), np.where(few, mean + half, high)


@functools.lru_cache(maxsize=4)
def _times_drawn(count: int, resamples: int, seed: int) -> np.ndarray:
    """How often each of `count` clusters is drawn, [resamples, count]: the same for all the models of a figure."""
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples).astype(float)
    drawn.flags.writeable = False
    return drawn


def bootstrap_percentiles(clusters: int) -> tuple[float, float]:
    """Between which percentiles of the resampled means 95 % lie: 2.5 and 97.5 for many clusters, further out for few."""
    if clusters < 2:
        return 0.0, 100.0
    outer = 100 * NormalDist().cdf(-math.sqrt(clusters / (clusters - 1)) * float(student_t(clusters - 1)))
    return outer, 100 - outer
