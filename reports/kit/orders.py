"""How often an order of models holds: draws of their means, as far as seeds and examples leave them open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

DRAWS = 4000
"""So many that a share is known to a hundredth."""


class Spread(NamedTuple):
    """The covariance [M, M] of the means of M models that one source of chance makes, and its degrees of freedom."""

    covariance: np.ndarray
    degrees: int


def of_seeds(values: pd.DataFrame) -> list[Spread]:
    """The spread of the seeds that all models have; nothing of fewer than two. values: a row a seed, a column a model."""
    common = values.dropna()
    if len(common) < 2:
        return []
    return [Spread(np.atleast_2d(np.cov(common.to_numpy().T)) / len(common), len(common) - 1)]


def of_examples(tables: Sequence[pd.DataFrame]) -> list[Spread]:
    """The spread of the examples of benchmarks whose plain mean a score is. tables: each a row an example, a column a model."""
    known = [table.dropna() for table in tables]
    if not known or min(map(len, known)) < 2:
        return []
    covariance = sum(np.atleast_2d(np.cov(table.to_numpy().T)) / len(table) for table in known) / len(known) ** 2
    return [Spread(np.asarray(covariance), min(map(len, known)) - 1)]


def drawn_means(means: np.ndarray, spreads: Sequence[Spread], *, seed: int) -> np.ndarray:
    """Draws [DRAWS, M] of the means: each source adds a multivariate Student's t of its covariance."""
    rng = np.random.default_rng(seed)
    drawn = np.tile(np.asarray(means, dtype=float), (DRAWS, 1))
    for covariance, degrees in spreads:
        # Few seeds make a covariance that is not of full rank, of which a Cholesky factor would not exist.
        values, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(np.clip(values, 0.0, None))
        scale = np.sqrt(degrees / rng.chisquare(degrees, (DRAWS, 1)))
        drawn += rng.standard_normal((DRAWS, len(means))) @ root.T * scale
    return drawn


def ahead_of_next(means: pd.Series, spreads: Sequence[Spread], *, better: str) -> pd.DataFrame:
    """One row a model, the best first: `model`, `mean`, `rank` from 1, and the shares of draws `ahead` and `held`.

    ahead: in which it is before the next, NaN for the last. held: in which it has its rank. Both are NaN where nothing is
    known of chance. Equal means have one rank.

    means: by model, in the order of the spreads' columns. better: "lower" or "higher".
    """
    sign = -1.0 if better == "higher" else 1.0
    drawn = sign * drawn_means(means.to_numpy(), spreads, seed=0)
    order = np.argsort(sign * means.to_numpy(), kind="stable")
    ranks = np.argsort(np.argsort(drawn, axis=1, kind="stable"), axis=1, kind="stable")
    rows = []
    for place, i in enumerate(order):
        behind = order[place + 1] if place + 1 < len(order) else None
        rank = int((sign * means < sign * means.iloc[i]).sum())
        ahead = np.nan if behind is None or not spreads else float((drawn[:, i] < drawn[:, behind]).mean())
        held = float((ranks[:, i] == rank).mean()) if spreads else np.nan
        rows.append({"model": means.index[i], "mean": means.iloc[i], "rank": rank + 1, "ahead": ahead, "held": held})
    return pd.DataFrame(rows)
