"""Which entries of a table are marked as best and second best, and why others are not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from reports.kit.intervals import student_t, t_interval
from suite.metrics import METRICS

SETTING = "task_setting"
"""The column of a summary that says how an arm's task was set and on which text: only what is alike in it is compared."""
RULE = (
    "Marked is what its seeds tell apart from the next: by a 95 % t interval of their difference, paired where the seeds are the "
    "same (Welch otherwise), that does not hold 0; of a score that a seed has learnt or not, by four seeds each without overlap."
)
REASONS = {
    "seed": "one seed each",
    "noise": "the first two are not told apart",
    "count": "all alike",
    "clock": "the clock of a machine that others may use",
}


def ranks(summary: pd.DataFrame, metric: str, *, within: str) -> dict[str, str]:
    """Which arms have the "best" and "second" mean of those alike in `within`, as printed: equal numbers rank alike."""
    better, digits = METRICS[metric].better, METRICS[metric].digits
    ranked: dict[str, str] = {}
    for _, compared in _compared(summary, within) if better else ():
        means = compared.set_index("arm")["mean"].dropna().round(digits)
        ordered = np.sort(means.unique())[:: -1 if better == "higher" else 1]
        if len(means) > 1:
            names = dict(zip(ordered, ("best", "second"), strict=False))
            ranked |= means[means.isin(names)].map(names).to_dict()
    return ranked


def marks(summary: pd.DataFrame, metric: str, *, within: str) -> dict[str, str]:
    """Those of `ranks` that mean something: a best that is `settled` against every other arm, and then a second that is."""
    ranked = ranks(summary, metric, within=within)
    kept: dict[str, str] = {}
    for _, compared in _compared(summary, within):
        rows = {row["arm"]: row for row in compared.to_dict("records") if not math.isnan(row["mean"])}
        firsts = {name: [arm for arm in rows if ranked.get(arm) == name] for name in ("best", "second")}
        behind = list(rows)
        for name, arms in firsts.items():
            behind = [arm for arm in behind if arm not in arms]
            # Alike as printed, but of seeds that may differ: what is counted alone is the same for good.
            shared = len(arms) > 1 and METRICS[metric].decided_by != "count"
            ahead = all(settled(rows[arm], rows[other], metric) for arm in arms for other in _next(behind, rows, metric))
            if not arms or shared or not ahead or METRICS[metric].decided_by == "clock":
                break
            kept |= dict.fromkeys(arms, name)
    return kept


def settled(first: Mapping[str, Any], second: Mapping[str, Any], metric: str) -> bool:
    """Whether one row of a summary is better than another by more than chance, see RULE. What is counted is exact.

    A row has `each`, the values of its seeds, and, where it is known, `of_seeds`, which seeds these are.
    """
    known = METRICS[metric]
    if known.decided_by == "count":
        return True
    values, others = (np.asarray(row["each"], dtype=float) for row in (first, second))
    if known.decided_by == "clock" or min(len(values), len(others)) < 2:
        return False
    if known.learnt_or_not:
        # Two-sided chance of lying apart when nothing differs: Mann and Whitney.
        chance = 2 / math.comb(len(values) + len(others), len(values))
        return bool(values.min() > others.max() or values.max() < others.min()) and chance <= 0.05
    seeds, other_seeds = (tuple(row.get("of_seeds", ())) for row in (first, second))
    if seeds and set(seeds) == set(other_seeds):
        pairs = dict(zip(other_seeds, others, strict=True))
        return t_interval(values - np.array([pairs[seed] for seed in seeds])).sign != 0
    return bool(abs(values.mean() - others.mean()) > _welch(values, others))


def _welch(values: np.ndarray, others: np.ndarray) -> float:
    """Half the 95 % interval of the difference of two means, of unequal variances (Welch 1947)."""
    parts = [each.var(ddof=1) / len(each) for each in (values, others)]
    if not sum(parts) > 0:
        return 0.0
    degrees = sum(parts) ** 2 / sum(part**2 / (len(each) - 1) for part, each in zip(parts, (values, others), strict=True))
    return float(student_t(degrees)) * math.sqrt(sum(parts))


def _next(behind: Sequence[str], rows: Mapping[str, Mapping[str, Any]], metric: str) -> list[str]:
    """The best of those that are behind; nothing of none."""
    sign = -1 if METRICS[metric].better == "higher" else 1
    return sorted(behind, key=lambda arm: sign * rows[arm]["mean"])[:1]


def _compared(summary: pd.DataFrame, within: str) -> list[tuple[Any, pd.DataFrame]]:
    keys = [within, *([SETTING] if SETTING in summary else [])]
    return list(summary.groupby(keys, dropna=False))


def marks_notes(columns: Iterable[tuple[str, pd.DataFrame, str]], *, within: str) -> list[str]:
    """What the marks of a table mean, and which of its columns have none, by why. columns: title, summary and metric."""
    found: dict[str, list[str]] = {}
    ruled = False
    for title, summary, metric in columns:
        if not ranks(summary, metric, within=within):
            continue
        decided_by, is_marked = METRICS[metric].decided_by, bool(marks(summary, metric, within=within))
        ruled |= is_marked and decided_by == "training"
        if not is_marked:
            reason = decided_by if decided_by in REASONS else "seed" if summary["n"].max() < 2 else "noise"
            found.setdefault(reason, []).append(title)
    said = [f"{', '.join(titles)} ({REASONS[reason]})" for reason, titles in found.items()]
    rule = [RULE] if ruled or "noise" in found else []
    return [*rule, *([f"No best is marked in {'; '.join(said)}."] if said else [])]
