"""Power laws through a few points, with intervals: L = a x^-b + c (Kaplan et al., arXiv 2001.08361; Hoffmann et al., 2203.15556).

For a given exponent the law is linear in a and c, so least squares has a closed form; the exponent is where the squares are
least, by the parabola through the best of a grid and its neighbours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from reports.kit.intervals import RESAMPLES, Z, student_t

LEAST, WITH_OFFSET = 3, 5
"""Points from which a law is fitted: without an offset c, which is then 0, and with one."""
EXPONENTS = np.geomspace(0.005, 4.0, 500)
SEED = 0


@dataclass(frozen=True)
class Law:
    """L = a (x / scale)^-b + c, with 95 % intervals of b and c, NaN where there is none. points: different values of x.

    has_offset: whether c was fitted, or is 0 for want of points. resampled: "seeds" within each value of x, or whole "points".
    at_edge: whether b is the least or the greatest of the grid, which says that the points show no power law.
    """

    a: float
    b: float
    c: float
    scale: float
    b_ends: tuple[float, float]
    c_ends: tuple[float, float]
    points: int
    has_offset: bool
    resampled: str
    at_edge: bool

    def at(self, x: np.ndarray) -> np.ndarray:
        return self.a * (np.asarray(x, dtype=float) / self.scale) ** -self.b + self.c


def fit(x: np.ndarray, each: list[np.ndarray]) -> Law | None:
    """The law through the means of the seeds at every x; None for fewer than LEAST values of x.

    x [N]: different, above 0. each: the losses of the seeds at each x. The interval draws seeds again where every x has two or
    more, and whole points otherwise; draws with fewer different points than the law has parameters are left out. What is drawn
    of few seeds differs less than they do, by sqrt(1 - 1 / n), and no more than a normal variable: both are made good, by
    Student's t with the degrees of freedom of all points together (Hesterberg 2015, sec. 5.3).
    """
    x = np.asarray(x, dtype=float)
    if len(x) < LEAST:
        return None
    has_offset, scale = len(x) >= WITH_OFFSET, float(np.exp(np.log(x).mean()))
    means = np.array([values.mean() for values in each])
    a, b, c = _least_squares(x / scale, np.ones((1, len(x))), means[None, :], has_offset=has_offset)
    weights, drawn, resampled = _draws(each, means, 3 if has_offset else 2)
    _, bs, cs = _least_squares(x / scale, weights, drawn, has_offset=has_offset)
    at_edge = b[0] in (EXPONENTS[0], EXPONENTS[-1])
    c_ends = _ends(cs) if has_offset else (math.nan, math.nan)
    return Law(a[0], b[0], c[0], scale, _ends(bs), c_ends, len(x), has_offset, resampled, bool(at_edge))


def _draws(each: list[np.ndarray], means: np.ndarray, parameters: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Weights and losses [R, N] of the points drawn again, and what was drawn."""
    generator, count = np.random.default_rng(SEED), len(each)
    if all(len(values) > 1 for values in each):
        drawn = np.stack([generator.choice(values, (RESAMPLES, len(values))).mean(1) for values in each], axis=1)
        counts = np.array([len(values) for values in each])
        wider = np.sqrt(counts / (counts - 1)) * student_t(int((counts - 1).sum())) / Z
        return np.ones((RESAMPLES, count)), means + wider * (drawn - means), "seeds"
    weights = generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(float)
    weights = weights[(weights > 0).sum(1) >= parameters]
    return weights, np.broadcast_to(means, weights.shape), "points"


def _least_squares(
    x: np.ndarray, weights: np.ndarray, losses: np.ndarray, *, has_offset: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """a, b, c [R] of the least weighted squares, a and c not below 0. x [N], weights and losses [R, N]."""
    powers = x[None, :] ** -EXPONENTS[:, None]
    sums = weights @ powers.T, weights @ (powers**2).T, (weights * losses) @ powers.T
    total, of_loss = weights.sum(1), (weights * losses).sum(1)
    a, c = _linear(*sums, total[:, None], of_loss[:, None], has_offset=has_offset)
    first, second, mixed = sums
    # But for the squares of the losses, which no exponent changes.
    squares = -2 * a * mixed - 2 * c * of_loss[:, None] + a**2 * second + 2 * a * c * first + c**2 * total[:, None]
    b = _lowest(squares)
    own = x[None, :] ** -b[:, None]
    sums = (weights * own).sum(1), (weights * own**2).sum(1), (weights * losses * own).sum(1)
    a, c = _linear(*sums, total, of_loss, has_offset=has_offset)
    return a, b, c


def _linear(
    first: np.ndarray, second: np.ndarray, mixed: np.ndarray, total: np.ndarray, of_loss: np.ndarray, *, has_offset: bool
) -> tuple[np.ndarray, np.ndarray]:
    """a and c for given powers p, by the weighted sums of p, p^2, p times the loss, 1 and the loss."""
    a = mixed / second
    c = np.zeros_like(a)
    if has_offset:
        spread = second * total - first**2
        with np.errstate(divide="ignore", invalid="ignore"):
            free = (mixed * total - first * of_loss) / spread
        offset = (of_loss - free * first) / total
        fits = (spread > 1e-12 * second * total) & (offset >= 0) & (free >= 0)
        a, c = np.where(fits, free, a), np.where(fits, offset, c)
    return a, c


def _lowest(squares: np.ndarray) -> np.ndarray:
    """The exponents [R] at which the squares [R, B] over the grid are least, between its points; at its ends, the end."""
    best = squares.argmin(1)
    inner = best.clip(1, len(EXPONENTS) - 2)
    rows = np.arange(len(best))
    before, at, behind = (squares[rows, inner + step] for step in (-1, 0, 1))
    bend = before - 2 * at + behind
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = np.where(bend > 0, (before - behind) / (2 * bend), 0.0)
    between = EXPONENTS[inner] * (EXPONENTS[1] / EXPONENTS[0]) ** moved.clip(-0.5, 0.5)
    return np.where(best == inner, between, EXPONENTS[best])


def _ends(values: np.ndarray) -> tuple[float, float]:
    if not len(values):
        return math.nan, math.nan
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
