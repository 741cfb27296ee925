from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from conf.settings import Refusal
from tasks.in_context_regression import InContextRegression
from tasks.synthetic.least_squares import kalman, ridge
from tasks.task import Scored, Vectors
from tests.tasks.composed import build

ARGUMENTS = {
    "input_dim": 3,
    "output_dim": 2,
    "seq_len": 16,
    "noise": 0.3,
    "drift": 0.0,
    "segment_len": None,
    "num_validation": 30,
    "num_test": 40,
}
VARIANTS = {"noise": {}, "drift": {"drift": 0.4}, "piecewise": {"segment_len": 6}, "both": {"drift": 0.2, "segment_len": 5}}


def task(**changes) -> InContextRegression:
    return build("in_context_regression", **(ARGUMENTS | changes))


def values(rows, metric, *names):
    return {
        tuple(row.slice[n] for n in names): row.value for row in rows if row.metric == metric and set(row.slice) == set(names)
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_token_is_the_pair_before_it_and_the_question(variant):
    made = task(**VARIANTS[variant])
    batch = made.batch("train", range(5))
    assert made.interface == Vectors(8, 2) and batch.tokens.shape == (5, 16, 8) and batch.targets.shape == (5, 16, 2)
    assert batch.tokens.dtype == batch.targets.dtype == torch.float32 and batch.asked.all() and batch.asked.shape == (5, 16)
    for i in range(5):
        x, y = (torch.from_numpy(part) for part in made.example("train", i))
        assert torch.equal(batch.targets[i], y) and torch.equal(batch.tokens[i, :, 5:], x)
        assert torch.equal(batch.tokens[i, 1:, :3], x[:-1]) and torch.equal(batch.tokens[i, 1:, 3:5], y[:-1])
        assert (batch.tokens[i, 0, :5] == 0).all()
        assert x.norm(dim=-1).tolist() == pytest.approx([math.sqrt(3)] * 16)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_target_has_the_variance_that_is_declared(variant):
    made = task(**VARIANTS[variant], num_test=2000)
    variance = made.batch("test", range(2000)).targets.square().mean((0, 2))
    assert variance.tolist() == pytest.approx([made.guessing_loss] * 16, rel=0.12)


def least_squares_map(made, low, high, i):
    x, y = made.example("train", i)
    return np.linalg.lstsq(x[low:high], y[low:high], rcond=None)[0]


def test_a_map_stays_is_drawn_afresh_or_drifts():
    quiet = {"noise": 1e-6, "seq_len": 12}
    stays, afresh = task(**quiet), task(**quiet, segment_len=6)
    assert np.allclose(least_squares_map(stays, 0, 6, 1), least_squares_map(stays, 6, 12, 1), atol=1e-4)
    assert not np.allclose(least_squares_map(afresh, 0, 6, 1), least_squares_map(afresh, 6, 12, 1), atol=0.1)
    assert afresh.restarts.tolist() == [t in (0, 6) for t in range(12)]
    # A coordinate of y_t and y_s agree as far as W has stayed: with x = x_s = x_t that is sqrt(1 - drift^2)^|t - s|.
    drifting = task(drift=0.6, noise=1e-6, input_dim=1, output_dim=1, num_test=4000)
    x, y = (np.stack(part)[..., 0] for part in zip(*(drifting.example("test", i) for i in range(4000)), strict=True))
    maps = x * y
    correlation = [float((maps[:, 0] * maps[:, lag]).mean()) for lag in (0, 1, 2, 4)]
    assert correlation == pytest.approx([0.8**lag for lag in (0, 1, 2, 4)], abs=0.07)


def posterior_mean(x, y, t, *, noise, drift, restarts):
    """By conditioning one joint Gaussian of y_0 ... y_t, position after position and without a recursion."""
    first = np.flatnonzero(restarts[: t + 1])[-1]
    past = np.arange(first, t)
    lags = np.abs(past[:, None] - past[None, :])
    keep = math.sqrt(1 - drift**2)
    covariance = keep**lags * (x[past] @ x[past].T) / x.shape[1] + noise**2 * np.eye(len(past))
    with_target = keep ** (t - past) * (x[past] @ x[t]) / x.shape[1]
    return with_target @ np.linalg.solve(covariance, y[past])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_oracle_is_the_posterior_mean(variant):
    made = task(**VARIANTS[variant])
    batch = made.batch("test", range(4))
    answers = made.oracle(batch).numpy()
    for i in range(4):
        x, y = (part.astype(float) for part in made.example("test", i))
        settings = {"noise": made.noise, "drift": made.drift, "restarts": made.restarts}
        expected = [posterior_mean(x, y, t, **settings) for t in range(16)]
        assert answers[i] == pytest.approx(np.array(expected), abs=1e-10)


@pytest.mark.parametrize("variant", ["noise", "piecewise"])
def test_ridge_with_the_best_lambda_is_the_oracle_where_nothing_drifts(variant):
    made = task(**VARIANTS[variant])
    batch = made.batch("test", range(40))
    assert torch.allclose(made.ridge(batch), made.oracle(batch), rtol=0, atol=1e-10)


def test_another_lambda_or_drift_is_worse():
    made = task(drift=0.4, num_test=400)
    batch = made.batch("test", range(400))
    x, y = (part.double().numpy() for part in (made.problem(batch).queries, batch.targets))
    best = float(np.square(made.oracle(batch).numpy() - y).mean())
    for drift in (0.0, 0.2, 0.7):
        assert np.square(kalman(x, y, noise=made.noise, drift=drift, restarts=made.restarts) - y).mean() > best
    made = task(num_test=400)
    x, y = (
        part.double().numpy()
        for part in (made.problem(made.batch("test", range(400))).queries, made.batch("test", range(400)).targets)
    )
    best = np.square(ridge(x, y, regularizer=made.regularizer, restarts=made.restarts) - y).mean()
    for factor in (0.1, 10.0):
        assert np.square(ridge(x, y, regularizer=factor * made.regularizer, restarts=made.restarts) - y).mean() > best


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_oracle_sees_no_later_pair_and_not_its_own_target(variant):
    made = task(**VARIANTS[variant])
    batch = made.batch("test", range(3))
    changed = made.batch("test", range(3))
    changed.tokens[:, 9:] += 1.0
    assert torch.equal(made.oracle(batch)[:, :8], made.oracle(changed)[:, :8])
    assert not torch.equal(made.oracle(batch)[:, 9:], made.oracle(changed)[:, 9:])


def test_a_model_that_is_told_is_reset_behind_the_first_question_on_every_map():
    """There the token holds a first pair of the new W; with a draw that ends in such a question nothing follows it."""
    untold, told = task(segment_len=5), task(segment_len=5, restarts_told=True)
    batch = told.batch("test", [3, 1])
    assert untold.batch("test", [3, 1]).starts is None and torch.equal(batch.tokens, untold.batch("test", [3, 1]).tokens)
    assert batch.starts.shape == (2, 16) and [t for t in range(16) if batch.starts[1, t]] == [1, 6, 11]
    # The pair that is read where the state is reset is the first of its W.
    for t in (6, 11):
        assert not told.restarts[t] and told.restarts[t - 1]
        assert torch.equal(batch.tokens[:, t, :3], batch.tokens[:, t - 1, 5:])


def test_nobody_is_told_of_a_map_that_is_never_redrawn():
    with pytest.raises(Refusal, match="restarts_told"):
        task(restarts_told=True)


def test_rows_of_a_model_and_of_the_references_stand_in_the_same_slices():
    made = task()
    batch = made.batch("test", range(40))
    error = (made.ridge(batch) - batch.targets).square().mean(-1)
    measured = made.measure("test", [Scored(batch, error, made.ridge(batch))])
    known = made.references("test", reach=None)
    for names in ((), ("position",), ("position_low", "position_high")):
        assert values(measured, "squared_error", *names) == pytest.approx(values(known, "ridge_error", *names), abs=1e-9)
        assert values(known, "zero_error", *names).keys() == values(known, "bayes_error", *names).keys()
    assert values(known, "zero_error")[()] == pytest.approx(1.09, rel=0.15)
    assert {row.count for row in known} == {40} and (12, 16) in values(known, "ridge_error", "position_low", "position_high")
