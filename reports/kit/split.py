"""Whether a benchmark needs more than local context, computed from sliding windows (MesaNet, arXiv 2506.05233, sec. 4.2).

A benchmark is global when (1) the score rises with the window, SWA-4 < SWA-16 < SWA-64, and (2) no such window beats the
model that sees everything; otherwise it is local. Where scores of examples are known every comparison has an interval over
examples and seeds: one that is settled against a condition makes the benchmark local, and where there is none, one that is not
settled leaves it undecided. Means alone, such as a paper prints, decide by their order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from reports.kit.intervals import Interval, student_t, t_interval
from reports.kit.render import signed, signed_interval

VERDICTS = ("global", "local", "undecided")
Pair = tuple[str, str]


class Compared(NamedTuple):
    """How much better the second model of a pair scores than the first, and whether that is what a condition asks.

    sign: 1 where the condition holds, -1 where it does not, 0 where that is not settled.
    """

    interval: Interval
    sign: int


class Verdict(NamedTuple):
    """verdict: one of VERDICTS. reason: what settled it, or what did not. comparisons: by pair, those of rising windows first."""

    verdict: str
    reason: str
    comparisons: Mapping[Pair, Compared]


def pairs_of(windows: Sequence[str], full: str) -> tuple[list[Pair], list[Pair]]:
    """The pairs that the conditions compare: windows that grow, and every window with what sees everything."""
    return [*zip(windows, windows[1:], strict=False)], [(window, full) for window in windows]


def by_means(means: Mapping[str, float], *, windows: Sequence[str], full: str) -> Verdict:
    """The verdict on printed means, higher is better, without intervals: equal ones do not rise, nor do they beat each other."""
    if refused := _refused(means, windows, full):
        return refused
    rising, beating = pairs_of(windows, full)
    compared = {}
    for lower, upper in [*rising, *beating]:
        gain = means[upper] - means[lower]
        holds = gain > 0 if (lower, upper) in rising else gain >= 0
        compared[lower, upper] = Compared(Interval(gain, math.nan, math.nan), 1 if holds else -1)
    return _decided(compared)


def by_examples(scores: pd.DataFrame, *, windows: Sequence[str], full: str, chance: float = 0.0) -> Verdict:
    """The verdict on scores of examples by 95 % intervals over examples and seeds, see `crossed_interval`.

    scores: one row an example, columns (model, seed), higher is better. chance: the score of guessing; a full model that is
    not settled above it decides nothing, since what it did not learn does not say what a benchmark needs.
    """
    models = set(scores.columns.get_level_values(0))
    if refused := _refused(dict.fromkeys(models, 0.0), windows, full):
        return refused
    compared = {}
    for lower, upper in [pair for pairs in pairs_of(windows, full) for pair in pairs]:
        interval = crossed_interval(scores[upper], scores[lower])
        compared[lower, upper] = Compared(interval, interval.sign)
    nothing = pd.DataFrame(0.0, scores.index, scores[full].columns)
    own = crossed_interval(scores[full], nothing)
    if not own.low > chance:
        reason = f"{full} is not above chance, {chance:.3f}: {own.mean:.3f} [{own.low:.3f}, {own.high:.3f}]"
        return Verdict("undecided", reason, compared)
    return _decided(compared)


def _refused(known: Mapping[str, float], windows: Sequence[str], full: str) -> Verdict | None:
    """The verdict where there is nothing to compare."""
    if len(windows) < 2:
        return Verdict("undecided", "a score that rises with the window takes two windows or more", {})
    missing = [model for model in (*windows, full) if model not in known]
    return Verdict("undecided", f"no scores of {', '.join(missing)}", {}) if missing else None


def _decided(compared: Mapping[Pair, Compared]) -> Verdict:
    for verdict, what, sign in (("local", "against", -1), ("undecided", "unsettled", 0)):
        found = {pair: each.interval for pair, each in compared.items() if each.sign == sign}
        # What is alike on every example is no question of more of them, and enough.
        alike = {pair: interval for pair, interval in found.items() if interval.low == interval.high}
        if found:
            said = "; ".join(comparison_text(*pair, *interval) for pair, interval in (alike or found).items())
            return Verdict(verdict, f"{what}: {said}", compared)
    return Verdict("global", f"all {len(compared)} comparisons agree", compared)


def comparison_text(lower: str, upper: str, mean: float, low: float, high: float) -> str:
    """A comparison in words: "transformer − swa64 = +0.120 [+0.100, +0.140]"."""
    if low == high == 0:
        return f"{upper} = {lower} on every example"
    return f"{upper} − {lower} = {signed(mean, 3)}{signed_interval(low, high, 3)}"


def crossed_interval(upper: pd.DataFrame, lower: pd.DataFrame) -> Interval:
    """The mean difference of two models and its 95 % interval over examples and over seeds, both drawn from many.

    upper, lower: scores, a row an example, the same for both, and a column a seed. Seeds are paired where both have the same.
    The squared half widths of t intervals are added (as Cochran and Cox do for two means): over examples, and over seeds less
    what is the chance of examples too. It holds the difference in 95 % with three seeds or more, and in 90 % at worst with
    two. With one seed of each model it is the paired t interval over examples, which knows nothing of seeds.
    """
    differences = (upper.mean(axis=1) - lower.mean(axis=1)).to_numpy()
    of_examples = t_interval(differences)
    # Models that are alike on every example have no difference that more seeds would show.
    if not differences.any():
        return of_examples
    is_paired = set(upper.columns) == set(lower.columns)
    of_seeds = [upper - lower[upper.columns]] if is_paired else [upper, lower]
    half = math.hypot(of_examples.half_width, *(_half_of_seeds(scores.to_numpy()) for scores in of_seeds))
    return Interval(of_examples.mean, of_examples.mean - half, of_examples.mean + half)


def _half_of_seeds(scores: np.ndarray) -> float:
    """Half the 95 % interval that seeds alone give the mean of scores [examples, seeds]; 0 of one seed."""
    examples, seeds = scores.shape
    if min(examples, seeds) < 2:
        return 0.0
    means = scores.mean(axis=0)
    rest = scores - means - scores.mean(axis=1, keepdims=True) + scores.mean()
    shared = (rest**2).sum() / ((examples - 1) * (seeds - 1)) / examples
    return float(student_t(seeds - 1)) * math.sqrt(max(means.var(ddof=1) - shared, 0.0) / seeds)
