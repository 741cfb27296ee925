"""What a sentence decides about two arms of the same seeds, and how many seeds it says would tell them apart."""

from __future__ import annotations

import numpy as np
import pytest

from reports.kit.intervals import student_t
from reports.kit.verdicts import MOST_SEEDS, POWER, seeds_needed, verdict

ERROR, ACCURACY = "squared_error", "accuracy"


def test_a_difference_whose_interval_leaves_out_zero_is_decided_in_its_direction() -> None:
    worse = [0.02, 0.03, 0.04]
    said = verdict("1 step against eps 1e-4, MQAR", worse, ERROR)
    assert said == "1 step against eps 1e-4, MQAR, squared error: decided, worse by +0.0300 [+0.0052, +0.0548] over 3 seeds."
    assert ": decided, better by −0.0300 [−0.0548, −0.0052] over" in verdict("a", [-each for each in worse], ERROR)
    # What is better higher turns the words around, and not the numbers.
    assert ": decided, better by +0.0300 [" in verdict("a", worse, ACCURACY)


def test_a_difference_whose_interval_holds_zero_is_undecided_and_says_how_many_seeds_it_takes() -> None:
    differences = [-0.01, 0.02, 0.03]
    said = verdict("a against b", differences, ERROR)
    assert said == (
        "a against b, squared error: undecided, +0.013 [−0.038, +0.065] over 3 seeds; "
        f"it would take about {seeds_needed(differences)} seeds."
    )


def test_so_many_seeds_tell_with_the_chance_that_is_said() -> None:
    """By drawing them, from a normal distribution with the mean and spread that were seen."""
    differences = [-0.5, 1.5, 2.0, 0.2]
    seeds, generator = seeds_needed(differences), np.random.default_rng(0)
    mean, spread = np.mean(differences), np.std(differences, ddof=1)
    found = []
    for count in (seeds, seeds - 2):
        drawn = generator.normal(mean, spread, size=(20_000, count))
        error = drawn.std(axis=1, ddof=1) / np.sqrt(count)
        found.append(np.mean(np.abs(drawn.mean(axis=1)) > student_t(count - 1) * error))
    assert 5 < seeds < 30 and found[1] < POWER < found[0] + 0.01


def test_seeds_are_counted_in_units_of_the_spread() -> None:
    few, many = [1.0, 2.0, 4.0], [0.01, 1.0, -0.5]
    assert seeds_needed(few) == seeds_needed([100.0 * each for each in few]) == seeds_needed([-each for each in few])
    assert seeds_needed(few) < seeds_needed(many)
    assert seeds_needed([1.0, 1.0]) == 2
    assert seeds_needed([1.0, -1.0]) is seeds_needed([1.0, -1.0 + 1e-6]) is None
    assert verdict("a", [1.0, -1.0], ERROR).endswith(f"it would take more than {MOST_SEEDS:,} seeds.")


def test_without_two_seeds_in_common_nothing_is_decided() -> None:
    assert verdict("a", [0.1], ERROR) == "a, squared error: undecided with 1 seed in common, of which there have to be two."
    # A seed that diverged is none.
    assert "with 1 seed in common" in verdict("a", [0.1, float("nan")], ERROR)
    assert "with 0 seeds in common" in verdict("a", [], ERROR)


def test_what_is_alike_is_said_to_be() -> None:
    assert verdict("a", [0.0, 0.0, 0.0], ERROR) == "a, squared error: alike in all of 3 seeds."


@pytest.mark.parametrize(
    ("differences", "shown"),
    [
        ([2e-5, 3e-5, 4e-5], "+0.000030 [+0.000005, +0.000055]"),
        ([0.25, 0.25, 0.25], "+0.250 [+0.250, +0.250]"),
        ([20.0, 30.0, 40.0], "+30.000 [+5.159, +54.841]"),
    ],
)
def test_an_interval_has_the_digits_that_tell_it_from_zero(differences: list[float], shown: str) -> None:
    assert shown in verdict("a", differences, ERROR)
