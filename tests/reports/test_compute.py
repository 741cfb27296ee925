"""Whether stopping early helps at equal cost: on invented losses it must find what was put in, and nothing else."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from invented import DOCUMENTS, TOLERANCES, solver_rows

from reports.kit.parts import Frames, NoData, load_frames
from reports.kit.solver import SETTING
from reports.pages.mesa.compute import Evaluated, _less_fixed, answer, at_equal_cost, equal_cost, evaluated, fixed_or_stopped

BOTH = ["solver_steps", "solver_chunk_steps"]


def found(*, steps: tuple[float, ...], stopped_at: float, gain: float, noise: float = 0.0, decay: float = 0.5) -> Evaluated:
    """Fixed steps that lose decay ** steps, and one tolerance that loses as much at its average steps, less a gain."""
    costs = np.array([*steps, stopped_at])
    table = pd.DataFrame([("cg", "diagonal", k, 0.0) for k in steps] + [("cg", "diagonal", 30, 1e-2)], columns=SETTING)
    generator = np.random.default_rng(0)
    documents = generator.uniform(1, 3, size=(1, 3, DOCUMENTS))
    nll = documents + decay ** costs[:, None, None]
    nll[-1] += generator.normal(-gain, noise, size=nll.shape[1:])
    return Evaluated(table, nll, np.broadcast_to(costs[:, None, None], nll.shape))


def test_at_a_measured_cost_the_difference_is_exact() -> None:
    (row,) = equal_cost(found(steps=(0, 1, 2, 3, 4), stopped_at=3.0, gain=0.01)).to_dict("records")
    assert (row["least"], row["most"]) == (pytest.approx(-0.01), pytest.approx(-0.01))
    assert row["verdict"] == "helps"


@pytest.mark.parametrize(("gain", "verdict"), [(0.0, "undecided"), (0.1, "helps"), (-0.1, "hurts")])
def test_no_gain_is_found_in_the_convexity_of_the_curve(gain: float, verdict: str) -> None:
    (row,) = equal_cost(found(steps=(0, 1, 2, 3, 4), stopped_at=2.5, gain=gain)).to_dict("records")
    # The straight line from two steps to three lies above the curve, by the least; those drawn on lie below, by the most.
    assert row["least"] == pytest.approx(0.5**2.5 - (0.25 + 0.125) / 2 - gain)
    assert row["most"] == pytest.approx(0.5**2.5 - max(0.25 - 0.125, 0.125 + 0.0625 / 2) - gain)
    assert row["verdict"] == verdict


def test_points_that_bend_the_wrong_way_leave_the_same_doubt() -> None:
    cost, nll = np.array([0.0, 1.0, 2.0, 3.0, 1.5]), np.array([1.1, 1.0, 0.0, -1.2, 0.5])
    # At 1.5 steps the line between 1 and 2 has 0.5; the one through 0 and 1, drawn on, has 0.95, above it.
    assert _less_fixed(nll, cost, 4, np.arange(4)) == pytest.approx((0.0, 0.45))


def test_a_gain_within_the_noise_is_undecided() -> None:
    (row,) = equal_cost(found(steps=(0, 1, 2, 3, 4), stopped_at=3.0, gain=1e-4, noise=0.1)).to_dict("records")
    assert row["verdict"] == "undecided"
    assert row["least_low"] < 0 < row["most_high"]


def test_the_interval_covers_the_gain_of_many_documents() -> None:
    (row,) = equal_cost(found(steps=(0, 1, 2, 3, 4), stopped_at=3.0, gain=0.05, noise=0.1)).to_dict("records")
    # Seeds and documents are drawn apart: about 0.1 / sqrt(120) to either side, and more for three seeds.
    assert row["least_low"] < -0.05 < row["least_high"]
    assert 0.01 < row["least_high"] - row["least_low"] < 0.08


@pytest.mark.parametrize("clusters", [pytest.param(None, marks=pytest.mark.slow), 20])
def test_no_difference_is_seldom_a_verdict(monkeypatch, clusters: int | None) -> None:
    """Three seeds that differ in what they gain, about zero: a bootstrap over three of them said helps or hurts in 28 %."""
    monkeypatch.setattr("reports.pages.mesa.compute.RESAMPLES", 200)
    generator, verdicts = np.random.default_rng(1), []
    documents = None if clusters is None else np.repeat(np.arange(clusters), DOCUMENTS // clusters)
    for _ in range(400):
        plain = found(steps=(0, 1, 2, 3, 4), stopped_at=3.0, gain=0.0)
        plain.nll[-1] += generator.normal(0, 0.01, size=(3, 1)) + generator.normal(0, 0.01, size=(3, DOCUMENTS))
        if clusters:
            # What all seeds find in one document.
            plain.nll[-1] += generator.normal(0, 0.02, size=clusters)[documents]
        verdicts.append(equal_cost(plain._replace(documents=documents))["verdict"].iloc[0])
    assert set(verdicts) <= {"helps", "hurts", "undecided"}
    assert np.mean([verdict != "undecided" for verdict in verdicts]) <= 0.07


def test_one_seed_has_no_verdict() -> None:
    one = found(steps=(0, 1, 2, 3, 4), stopped_at=3.0, gain=0.1)
    (row,) = equal_cost(one._replace(nll=one.nll[:, :1], cost=one.cost[:, :1])).to_dict("records")
    assert row["verdict"] == "no interval" and row["least"] == pytest.approx(-0.1)


def test_a_cost_beyond_the_fixed_steps_has_no_comparison() -> None:
    comparison = equal_cost(found(steps=(0, 1, 2), stopped_at=9.0, gain=0.0))
    assert comparison["verdict"].tolist() == ["no interval"]
    assert np.isnan(comparison["least"]).all()
    assert "it can not be compared at 1" in answer(comparison, "solver_steps")


@pytest.fixture
def studied(store) -> Frames:
    for seed, (task, metric) in itertools.product((0, 1), (("language", "nll"), ("mqar", "accuracy"))):
        store.run("mesanet", task, seed=seed, stages={"solver": solver_rows(store, seed=seed, metric=metric)})
    store.request()
    return load_frames(store.root, "quick")


def test_settings_from_other_starts_are_no_part_of_it(studied) -> None:
    both = evaluated(studied, task="language", cost="solver_steps")
    assert set(both.settings["initial"]) == {"diagonal"}
    assert both.nll.shape == both.cost.shape == (len(both.settings), 2, DOCUMENTS)
    at = both.settings.index[(both.settings["max_steps"] == 2) & (both.settings["tolerance"] == 0)]
    assert both.cost[at].mean() == 2.0


def test_a_run_without_all_its_evaluations_does_not_count(store) -> None:
    rows = [row for row in solver_rows(store, seed=1, metric="nll") if row["slice"]["max_steps"] != 5]
    store.run("mesanet", "language", seed=0, stages={"solver": solver_rows(store, seed=0, metric="nll")})
    store.run("mesanet", "language", seed=1, stages={"solver": rows})
    store.request()
    both = evaluated(load_frames(store.root, "quick"), task="language", cost="solver_steps")
    assert both.nll.shape[1:] == (1, DOCUMENTS)
    assert 5 in set(both.settings["max_steps"])


def test_the_table_answers_for_every_unit_of_cost(studied) -> None:
    table = at_equal_cost(studied, task="language", costs=BOTH)
    assert [row[0].text for row in table.rows] == ["eps 1e-2", "eps 1e-4"] * 2
    assert [row[2].text for row in table.rows] == ["3.00", "9.00", "4.50", "13.50"]
    assert table.notes[0].startswith(
        "Does adaptivity itself help, where a token costs its own steps? Of 2 tolerances, it is undecided"
    )
    assert "the steps of its chunk's slowest" in table.notes[1]


def test_intervals_are_over_documents_where_the_store_knows_them(store) -> None:
    for seed in range(3):
        rows = solver_rows(store, seed=seed, metric="nll")
        for row in rows:
            row |= {"groups": [i // 4 for i in range(DOCUMENTS)]} if "examples" in row else {}
        store.run("mesanet", "language", seed=seed, stages={"solver": rows})
    store.request()
    frames = load_frames(store.root, "quick")
    assert evaluated(frames, task="language", cost="solver_steps").documents.tolist() == [i // 4 for i in range(DOCUMENTS)]
    said = f"t over 3 seeds and bootstrap over {DOCUMENTS // 4} documents ({DOCUMENTS} windows), added in quadrature."
    assert said in at_equal_cost(frames, task="language", costs=BOTH).notes[-1]
    assert said in fixed_or_stopped(frames, task="language", steps=30, costs=BOTH).notes[-1]


def test_both_curves_and_their_difference_are_drawn(studied) -> None:
    drawing = fixed_or_stopped(studied, task="language", steps=30, costs=BOTH)
    assert len(drawing.figure.axes) == 4
    fixed, stopped = drawing.figure.axes[0].lines[:2]
    assert fixed.get_xdata().tolist() == [1, 2, 5, 10, 30]
    assert stopped.get_xdata().tolist() == sorted(TOLERANCES.values())
    assert set(drawing.data["kind"]) == {"curve", "comparison"}


def test_fixed_steps_alone_are_nothing_to_compare(store) -> None:
    rows = [row for row in solver_rows(store, seed=0, metric="nll") if row["slice"]["tolerance"] == 0]
    store.run("mesanet", "language", stages={"solver": rows})
    store.request()
    with pytest.raises(NoData, match="fixed steps and with tolerances"):
        at_equal_cost(load_frames(store.root, "quick"), task="language", costs=BOTH)
