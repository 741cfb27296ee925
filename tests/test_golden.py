"""Losses stay what they were, and a state of the code is declared equal only where its own losses did."""

from __future__ import annotations

import json

import pytest

from suite.store.code_state import TABLE
from tests.golden import CASES, LOSSES, declared, differences, losses

GOLDEN = json.loads(LOSSES.read_text())


# The others are compared by `python -m tests.golden`, and by -m slow.
QUICK = ("mesanet mqar", "gated_deltanet mqar", "transformer mqar", "gla language")


@pytest.mark.parametrize("cases", [QUICK, pytest.param(tuple(CASES), marks=pytest.mark.slow)], ids=["quick", "all"])
def test_the_first_losses_are_the_golden_ones(cases):
    found = losses(cases)
    differing = {case: (found[case], GOLDEN.get(case)) for case in differences(found, GOLDEN)}
    assert not differing, "meant so: python -m tests.golden --renew"


def test_a_loss_that_differs_by_more_than_rounding_is_found():
    (case, *_) = GOLDEN
    values = GOLDEN[case]
    assert differences({case: [*values[:-1], values[-1] + 1e-5]}, GOLDEN) == [case]
    assert differences({case: values[:-1]}, GOLDEN) == differences({"new mqar": values}, GOLDEN)[:0] + [case]
    assert differences({case: [*values[:-1], values[-1] + 2e-6]}, GOLDEN) == []
    assert differences({case: [*values[:-1], float("nan")]}, GOLDEN) == [case]


def test_a_state_is_equal_to_the_one_before_unless_its_losses_differ():
    before = {"gla mqar": [["a"]], "hawk mqar": [["b"]], "hawk parity": [["c"]]}
    now = {"gla mqar": "A", "hawk mqar": "b", "hawk parity": "C", "mlstm mqar": "D"}
    assert declared(before, now, set()) == {
        "gla mqar": [["a", "A"]], "hawk mqar": [["b"]], "hawk parity": [["c", "C"]], "mlstm mqar": [["D"]],
    }  # fmt: skip
    assert declared(before, now, {"gla parity"})["hawk parity"] == [["c"], ["C"]]
    assert declared(before, now, {"hawk mqar"})["hawk parity"] == [["c"], ["C"]]
    assert declared(before, now, {"hawk mqar"})["gla mqar"] == [["a", "A"]]


def test_the_table_is_a_list_of_states_a_model_and_task():
    table = json.loads(TABLE.read_text())
    assert all(len(state) == 6 for groups in table.values() for group in groups for state in group)
    assert {name for name in CASES if not name.startswith("gla ")} <= set(table)
