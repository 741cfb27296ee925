"""Intervals against published quantiles and against their promise: 95 % of them hold the truth."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from reports.kit.intervals import bootstrap_intervals, seed_interval, share_interval, standard_error, student_t, t_interval
from reports.kit.rows import over_runs
from reports.kit.tables import spread
from reports.pages.mesa.regularization import broken
from reports.pages.mesa.training_steps import _ahead


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


@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0000003], [1.2, 1.3, 1.4], [0.99, 1.0, 1.02]])
def test_a_mean_beyond_its_limits_lies_within_its_interval(values: list[float]) -> None:
    # Rounding puts a cosine above 1, and a bar of a negative length cannot be drawn.
    mean, low, high = seed_interval(np.array(values), "readout_cosine")
    assert low < mean <= high == max(mean, 1.0)


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
    # Two of few documents reach the second column: Student's t with one degree of freedom.
    assert (low[1], high[1]) == pytest.approx((6 - 12.706205, 6 + 12.706205))


@pytest.mark.parametrize("documents", [2, 3, 5, 8, 12])
def test_intervals_over_few_documents_keep_their_level(documents: int) -> None:
    values = np.random.default_rng(0).normal(size=(documents, 4000))
    _, low, high = bootstrap_intervals(values, resamples=300, seed=1)
    assert 0.93 < np.mean((low < 0) & (high > 0)) < 0.97


def correlated(*, documents: int, repeats: int, icc: float) -> tuple[np.ndarray, np.ndarray]:
    """Windows [N, repeats] of mean 0 and variance 1, of which a document has 1 to 15, and the document of each."""
    generator = np.random.default_rng(0)
    document = np.repeat(np.arange(documents), generator.integers(1, 16, documents))
    own, shared = generator.normal(size=(len(document), repeats)), generator.normal(size=(documents, repeats))
    return np.sqrt(1 - icc) * own + np.sqrt(icc) * shared[document], document


def coverage(low: np.ndarray, high: np.ndarray, truth: float = 0.0) -> float:
    return float(np.mean((low < truth) & (truth < high)))


@pytest.mark.parametrize("documents", [20, 62])
def test_documents_are_drawn_where_windows_correlate(documents: int) -> None:
    values, document = correlated(documents=documents, repeats=500, icc=0.1)
    _, low, high = bootstrap_intervals(values, resamples=1000, seed=1, clusters=document)
    assert 0.92 <= coverage(low, high) < 0.98
    _, low, high = bootstrap_intervals(values, resamples=1000, seed=1)
    assert coverage(low, high) < 0.9


def test_clusters_of_one_are_no_clusters() -> None:
    values = np.random.default_rng(0).normal(size=(30, 3))
    values[3, 1] = np.nan
    plain, clustered = (bootstrap_intervals(values, resamples=200, seed=0, clusters=c) for c in (None, np.arange(30)))
    assert np.array_equal(plain, clustered)
    mean, low, _ = bootstrap_intervals(values, resamples=200, seed=0, clusters=np.zeros(30))
    assert mean == pytest.approx(np.nanmean(values, axis=0)) and np.isnan(low).all()


@pytest.mark.parametrize(
    ("values", "metric", "low", "high"),
    [
        # 4.302653 * 0.1 / sqrt(3) = 0.248
        ((0.1, 0.2, 0.3), "squared_error", 0.0, 0.448),
        ((1.0, 1.1, 1.2), "perplexity", 1.0, 1.348),
        ((0.0, 0.1, 0.2), "indefinite", 0.0, 0.348),
        ((2.0, 2.1, 2.2), "nll", 1.852, 2.348),
    ],
)
def test_an_interval_stays_within_the_limits_of_its_metric(values, metric: str, low: float, high: float) -> None:
    interval = seed_interval(np.array(values), metric)
    assert (interval.low, interval.high) == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))
    assert seed_interval(np.array(values), metric, difference=True) == t_interval(np.array(values))


def printed(values, metric: str, **place) -> str:
    row = over_runs(pd.DataFrame({"value": values, "arm": "a"}), ["arm"], metric=metric).iloc[0]
    return spread(row, digits=3, **place)


@pytest.mark.parametrize(
    ("values", "metric", "text"),
    [
        # Learnt or not: the seeds themselves; alike, they are the mean.
        ((0.9051, 0.817, 0.1331), "accuracy", " (0.905; 0.817; 0.133)"),
        ((1.0, 1.0, 1.0), "accuracy", ""),
        ((0.631, 0.7), "exact_match", " (0.631; 0.700)"),
        ((0.5,), "accuracy", ""),
        ((1.0,) * 6 + (0.2,) * 2, "accuracy", " (learnt by 6 of 8 [0.41, 0.93])"),
        # Two seeds, a symmetric interval, and one that a limit cuts.
        ((2.0, 2.1), "nll", " (2.000; 2.100)"),
        ((2.0, 2.1, 2.2), "nll", " ±\N{NO-BREAK SPACE}0.248"),
        ((0.1, 0.2, 0.3), "squared_error", " [0.000, 0.448]"),
    ],
)
def test_what_stands_behind_a_mean_over_seeds(values, metric: str, text: str) -> None:
    assert printed(values, metric) == text


def test_halfway_from_chance_is_learnt() -> None:
    values = (0.6,) * 5 + (0.9,)
    assert printed(values, "accuracy", chance=0.5).startswith(" (learnt by 1 of 6")
    assert printed(values, "accuracy").startswith(" (learnt by 6 of 6")


def test_the_share_that_learnt_is_held_by_its_interval() -> None:
    """80 % of seeds learn: a t interval over three holds their mean in half of the cases."""
    generator = np.random.default_rng(0)
    for seeds in (8, 10, 20):
        learnt = generator.binomial(seeds, 0.8, size=2000)
        ends = np.array([share_interval(int(k), seeds) for k in learnt])
        assert coverage(ends[:, 0], ends[:, 1], 0.8) > 0.93
    assert share_interval(0, 4)[0] == 0.0 and share_interval(4, 4)[1] == 1.0
    three = np.where(generator.random((2000, 3)) < 0.8, 1.0, 0.2) + generator.normal(0, 1e-3, (2000, 3))
    plain = [t_interval(values) for values in three]
    assert coverage(*np.array([(i.low, i.high) for i in plain]).T, 0.84) < 0.6
    assert all(np.isnan(seed_interval(values, "accuracy").low) for values in three[:10])


@pytest.mark.parametrize("arms", [2, 3, 5, 8])
def test_two_ways_of_training_that_are_one_are_seldom_told_apart(arms: int) -> None:
    generator, told = np.random.default_rng(0), 0
    for _ in range(600):
        shared, own = generator.normal(size=(3, 1)), generator.normal(size=(3, arms))
        said = _ahead(pd.DataFrame(shared + own), dict.fromkeys(range(arms), "x"), 1.0, "Best", "NLL", "nll")
        told += "does not tell them apart" not in said
    assert told / 600 <= 0.07


@pytest.mark.parametrize("floors", [pytest.param(2, marks=pytest.mark.slow), 5])
def test_floors_that_are_one_are_seldom_told_apart(floors: int) -> None:
    generator, told = np.random.default_rng(0), 0
    for _ in range(150):
        values = generator.normal(size=(3, 1)) + generator.normal(size=(3, floors))
        rows = [
            over_runs(pd.DataFrame({"value": column, "cap": "c"}), ["cap"], metric="nll").iloc[0].to_dict()
            | {"regularizer_floor": float(floor), "metric": "nll", "without": "", "by_seed": dict(enumerate(column))}
            for floor, column in enumerate(values.T)
        ]
        (said,) = broken({"nll": pd.DataFrame(rows)})
        told += said.count(",") < floors - 1 + ("best" not in said)
    assert told / 150 <= 0.07


def test_who_is_ahead_of_two_equal_models_is_seldom_decided() -> None:
    values = np.random.default_rng(0).normal(size=(2000, 3))
    found = [seed_interval(row, "nll", difference=True) for row in values]
    assert np.mean([interval.low > 0 or interval.high < 0 for interval in found]) <= 0.07
