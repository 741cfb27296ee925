"""Models told apart by the steps of their training, evaluated with others."""

from __future__ import annotations

import itertools

import pytest
from invented import solver_rows

from reports.kit.parts import Frames, NoData, load_frames
from reports.kit.tables import Column
from reports.pages.mesa.training_steps import by_evaluated_steps, by_trained_steps, by_training, trained_table, training_names

COLUMN = Column(metric="nll", task="language", stage="train", split="validation")


MIXER = "model.mixer."
STEPS, TOLERANCE, GRADIENT = (f"{MIXER}solver.{name}" for name in ("max_steps", "tolerance", "gradient"))


def ask(store, varied: dict, *, seed: int, nll: float, offset: float = 0.0) -> None:
    stages = {
        "train": [store.row("nll", nll, "validation")],
        "solver": solver_rows(store, seed=seed, metric="nll", offset=offset),
    }
    store.run("mesanet", "language", seed=seed, stages=stages, varied=varied)


@pytest.fixture
def trained(store) -> Frames:
    """Every seed is better by a tenth; 5 steps lose 0.02, or 0.03 in the second seed, the tolerance gains 0.01."""
    for seed in (0, 1):
        for steps, tolerance, loss in ((30, 0.0, 0.0), (5, 0.0, 0.02 + 0.01 * seed), (30, 1e-4, -0.01)):
            ask(store, {STEPS: steps, TOLERANCE: tolerance}, seed=seed, nll=1.5 - 0.1 * seed + loss)
    store.request()
    return load_frames(store.root, "quick")


def test_differences_are_paired_by_seed(trained) -> None:
    drawing = by_trained_steps(trained, column=COLUMN, steps=30)
    (axes,) = drawing.figure.axes
    as_trained, with_thirty = (container[0] for container in axes.containers)
    assert as_trained.get_xydata().tolist() == [[5, pytest.approx(0.025)], [30, 0]]
    # The same rows for all: with 30 steps in evaluation nothing is left to tell them apart.
    assert with_thirty.get_ydata() == pytest.approx([0, 0])
    assert "trained with eps 1e-4" in {line.get_label() for line in axes.lines}
    assert drawing.data["n"].unique().tolist() == [2]


def test_the_table_says_which_training_is_clearly_worse(trained, store) -> None:
    table = trained_table(trained, column=COLUMN, steps=30)
    assert [row[0].text for row in table.rows] == ["5 steps", "30 steps", "eps 1e-4"]
    assert table.rows[2][1].text == "−0.0100"
    # Two seeds, 0.005 from their mean each: the interval holds zero.
    assert table.notes[0] == "Evaluated as trained, worse by a whole interval: none."


def test_without_the_reference_there_is_nothing_to_compare_with(trained) -> None:
    with pytest.raises(NoData, match="trained at 25 fixed steps"):
        by_trained_steps(trained, column=COLUMN, steps=25)


def test_a_run_without_a_solver_is_no_part_of_it(store) -> None:
    store.run("gla", "language", stages={"train": [store.row("nll", 1.0, "validation")]})
    store.request()
    with pytest.raises(NoData, match="whose solver takes"):
        by_trained_steps(load_frames(store.root, "quick"), column=COLUMN, steps=30)


@pytest.fixture
def varied(store) -> Frames:
    """A training with random steps that is better by half a nat, for each of two gradients."""
    for seed, (random_steps, gradient, offset) in itertools.product(
        (0, 1), ((None, "implicit", 0.0), (30, "implicit", -0.5), (30, "unrolled", -0.25))
    ):
        varied = {STEPS: 30, TOLERANCE: 0.0, f"{MIXER}random_steps": random_steps, GRADIENT: gradient}
        ask(store, varied, seed=seed, nll=1.0, offset=offset)
    store.request()
    return load_frames(store.root, "quick")


def test_arms_are_named_by_what_differs(varied) -> None:
    assert set(varied.cells["arm"]) == {
        "MESANET, steps not random",
        "MESANET, random steps up to 30, implicit gradient",
        "MESANET, random steps up to 30, unrolled gradient",
    }


def test_a_line_a_training_and_the_best_at_few_steps_named(varied) -> None:
    (axes,) = by_evaluated_steps(varied, task="language", metric="nll").figure.axes
    assert [container.get_label() for container in axes.containers] == [
        "0 to 30 steps, implicit gradient",
        "0 to 30 steps, unrolled gradient",
        "30 steps, implicit gradient",
    ]
    table = by_training(varied, task="language", metric="nll", few=5, steps=30)
    assert table.header == ("trained with", "0 steps", "1 step", "2 steps", "5 steps", "10 steps", "30 steps")
    assert table.notes[0].startswith("Best at 5 steps in evaluation: trained with 0 to 30 steps, implicit gradient, NLL")
    assert table.notes[0].endswith("second, 0.2500 away [+0.2500, +0.2500]: 0 to 30 steps, unrolled gradient.")
    # All arms lose the same with fewer steps.
    assert table.notes[2].startswith("Loses least from 30 to 5 in evaluation: trained with")
    assert "0.0000 away" in table.notes[2]


def test_two_arms_that_would_be_named_alike_keep_their_labels(store) -> None:
    varied = {STEPS: 5, TOLERANCE: 0.0, GRADIENT: "implicit"}
    for lr in (0.001, 0.002):
        ask(store, {"train.lr": lr} | varied, seed=0, nll=1.0)
    ask(store, {"train.lr": 0.001} | varied | {STEPS: 30, TOLERANCE: 1e-4}, seed=0, nll=1.0)
    store.request()
    assert set(training_names(load_frames(store.root, "quick"), "language").values()) == {
        "MESANET, learning rate 0.001, solver steps 5",
        "MESANET, learning rate 0.002",
        "eps 1e-4, implicit gradient",
    }
