"""The best answers to in-context regression, in float64: what can be known of y_t from x_t and the pairs before.

x: [N, T, n]; y: [N, T, m] = W_t x_t + noise e_t. restarts: [T] bool, True where W_t is drawn afresh; position 0 is always.
"""

from __future__ import annotations

import numpy as np


def ridge(x: np.ndarray, y: np.ndarray, *, regularizer: float, restarts: np.ndarray) -> np.ndarray:
    """Predictions [N, T, m] by the normal equations over the pairs since the last restart, all of one weight.

        y_t ~ (sum_s y_s x_s^T) (sum_s x_s x_s^T + regularizer I)^-1 x_t,   restart <= s < t

    With W drawn as N(0, 1/n) and noise^2 n for the regularizer that is the posterior mean.
    """
    answers = np.zeros_like(y)
    penalty = regularizer * np.eye(x.shape[2])
    for t in range(x.shape[1]):
        first = np.flatnonzero(restarts[: t + 1])[-1] if restarts[: t + 1].any() else 0
        past, seen = x[:, first:t], y[:, first:t]
        coefficients = np.linalg.solve(past.mT @ past + penalty, past.mT @ seen)
        answers[:, t] = (x[:, t : t + 1] @ coefficients)[:, 0]
    return answers


def kalman(x: np.ndarray, y: np.ndarray, *, noise: float, drift: float, restarts: np.ndarray) -> np.ndarray:
    """The posterior mean of y_t [N, T, m] where W drifts: Kalman's filter (1960), no answer can have a smaller error.

        W_t = sqrt(1 - drift^2) W_{t-1} + drift F_t,   F_t and every fresh W with entries of N(0, 1/n)

    Without a drift it is `ridge` with its best regularizer.
    """
    num_examples, length, dim = x.shape
    prior = np.eye(dim) / dim
    answers = np.zeros_like(y)
    for t in range(length):
        if t == 0 or restarts[t]:
            mean, covariance = np.zeros((num_examples, y.shape[2], dim)), np.tile(prior, (num_examples, 1, 1))
        else:
            mean, covariance = np.sqrt(1 - drift**2) * mean, (1 - drift**2) * covariance + drift**2 * prior
        x_t = x[:, t, :, None]
        answers[:, t] = (mean @ x_t)[..., 0]
        spread = covariance @ x_t
        gain = spread / (x_t.mT @ spread + noise**2)
        mean = mean + (y[:, t] - answers[:, t])[..., None] @ gain.mT
        covariance = covariance - gain @ spread.mT
    return answers
