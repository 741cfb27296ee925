"""Intervals against published quantiles and against their promise: 95 % of them hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from reports.statistics import bootstrap_intervals, standard_error, student_t, t_interval


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.7062), (2, 4.3027), (9, 2.2622), (10, 2.2281), (30, 2.0423), (120, 1.9799)]
)
def test_student_t_is_the_published_quantile(degrees: int, quantile: float) -> None:
    assert student_t(degrees) == pytest.approx(quantile, abs=5e-5)


def test_t_interval_of_three_seeds() -> None:
    interval = t_interval(np.array([1.0, 2.0, 3.0]))
    assert interval == pytest.approx((2.0, 2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))


def test_one_value_has_no_interval() -> None:
    interval = t_interval(np.array([0.5]))
    assert interval.mean == 0.5
    assert np.isnan(interval.low) and np.isnan(interval.high)
    assert np.isnan(standard_error(np.array([0.5])))


def test_bootstrap_covers_the_truth_at_its_level() -> None:
    generator = np.random.default_rng(0)
    repeats, documents = 300, 60
    # Columns are independent repeats of one experiment whose true mean is 1.
    values = generator.exponential(1.0, size=(documents, repeats))
    _, low, high = bootstrap_intervals(values, resamples=1000, seed=1)
    covered = np.mean((low < 1) & (high > 1))
    assert 0.90 < covered < 0.98


def test_bootstrap_is_paired_across_columns() -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=(40, 1)), 2, axis=1)
    _, low, high = bootstrap_intervals(values, resamples=500, seed=0)
    assert low[0] == low[1] and high[0] == high[1]


def test_bootstrap_leaves_out_documents_that_end_earlier() -> None:
    values = np.array([[1.0, 5.0], [2.0, np.nan], [3.0, 7.0]])
    mean, low, high = bootstrap_intervals(values, resamples=500, seed=0)
    assert mean == pytest.approx([2.0, 6.0])
    assert low[1] >= 5 and high[1] <= 7
