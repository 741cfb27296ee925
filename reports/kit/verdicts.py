"""What a comparison of two arms over the same seeds decides, in a sentence: which is better, or how many seeds would tell."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from reports.kit.intervals import student_t, t_interval
from reports.kit.render import counted, signed, signed_interval
from suite.metrics import METRICS

POWER = 0.8
"""The chance by which seeds are counted: with so many a difference as large as the one seen is found with this chance."""
MOST_SEEDS = 1000
HOW = (
    "Decided: the 95 % t interval of the differences, paired by seed, leaves out 0; each comparison is a test of its own. "
    f"Undecided: so many seeds would leave it out with a chance of {100 * POWER:.0f} %, were mean and spread those seen here."
)


def seeds_needed(differences: Sequence[float]) -> int | None:
    """With how many seeds a paired t interval of 95 % leaves out 0 with a chance of POWER, if mean and spread stay as they are.

    differences: of two or more seeds. At least two; None for more than MOST_SEEDS, and where the mean is 0.
    """
    values = np.asarray(differences, dtype=float)
    mean, spread = abs(values.mean()), values.std(ddof=1)
    counts = np.arange(2, MOST_SEEDS + 1)
    degrees = counts - 1
    within = (student_t(degrees) + student_t(degrees, 1 - POWER)) * spread <= mean * np.sqrt(counts)
    return int(counts[within][0]) if mean > 0 and within.any() else None


def verdict(what: str, differences: Sequence[float], metric: str) -> str:
    """The sentence on `what`, such as "5 steps against eps 1e-4, MQAR": see HOW.

    differences: the metric of the one less that of the other, a seed each. The metric is better lower or higher.
    """
    known, values = METRICS[metric], np.asarray(differences, dtype=float)
    values = values[np.isfinite(values)]
    said = f"{what}, {known.label}"
    if len(values) < 2:
        return f"{said}: undecided with {counted(len(values), 'seed')} in common, of which there have to be two."
    mean, low, high = found = t_interval(values)
    digits = _digits(low, high, at_least=known.digits)
    size = f"{signed(mean, digits)}{signed_interval(low, high, digits)} over {counted(len(values), 'seed')}"
    if found.sign:
        better = (found.sign > 0) == (known.better == "higher")
        return f"{said}: decided, {'better' if better else 'worse'} by {size}."
    if not values.any():
        return f"{said}: alike in all of {counted(len(values), 'seed')}."
    seeds = seeds_needed(values)
    would = f"more than {MOST_SEEDS:,} seeds" if seeds is None else f"about {counted(seeds, 'seed')}"
    return f"{said}: undecided, {size}; it would take {would}."


def _digits(low: float, high: float, *, at_least: int) -> int:
    """So many that the ends of an interval are told apart from each other and from 0, as far as that takes no more than 6."""
    sizes = [abs(low), abs(high), high - low]
    # What is smaller by a million is rounding, or an interval without a width.
    told = [size for size in sizes if size > 1e-6 * max(sizes)]
    return min(6, max(at_least, 1 - math.floor(math.log10(min(told))))) if told else at_least
