"""The facts by which runs that differ in their mixer are told apart."""

from __future__ import annotations

import pytest

from suite.plan import MIXER_FACTS, mixer_facts, plan

MESA = {"forget_gate_init": 0.98, "forget_cap": None, "solver": {"max_steps": 30, "tolerance": 1e-4}}


def test_a_fact_is_the_first_mixers_that_has_it() -> None:
    found = mixer_facts({"pattern": ["a", "b"], "a": {"forget_gate_init": 0.5}, "b": MESA})
    assert (found["forget_gate_init"], found["solver_max_steps"], found["solver_tolerance"]) == (0.5, 30, 1e-4)


def test_a_fact_that_no_mixer_has_or_that_is_null_is_none() -> None:
    found = mixer_facts({"pattern": ["a"], "a": MESA, "unused": {"regularizer_floor": 1.0}})
    assert set(found) == set(MIXER_FACTS)
    assert (found["forget_cap"], found["regularizer_floor"], found["random_steps"]) == (None, None, None)


@pytest.mark.parametrize(
    ("override", "fact", "value"),
    [
        ("model.mixer.forget_gate_init=0.5", "forget_gate_init", 0.5),
        ("model.mixer.forget_cap=null", "forget_cap", None),
        ("model.mixer.solver.max_steps=5", "solver_max_steps", 5),
        ("model.mixer.solver.gradient=unrolled", "solver_gradient", "unrolled"),
        ("model.mixer.random_steps=10", "random_steps", 10),
    ],
)
def test_what_is_varied_is_in_every_cell_and_result(override: str, fact: str, value: object) -> None:
    (run,) = plan(["model=mesanet", "task=mqar", override])
    assert (run.cell[fact], run.facts[fact]) == (value, value)
