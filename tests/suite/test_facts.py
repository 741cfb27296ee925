"""The facts by which runs that differ in their mixer are told apart."""

from __future__ import annotations

import pytest
import torch

from suite.compute.interface import build_backbone
from suite.evaluation.studies.subject import Subject
from suite.evaluation.studies.workloads import Cell, state_bytes
from suite.plan import MIXER_FACTS, mixer_facts, plan, task_of

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


@pytest.mark.parametrize(
    ("model", "wide", "narrow"),
    [
        # tiny, T = 128, two blocks: k and v of 2 heads of 32, and a counter of tokens, of which 4 bytes count.
        ("transformer", 131_080, 65_544),
        ("swa4", 3_080, 1_544),
        # A sum over the sequence stays wide.
        ("gla", 19_456, 19_456),
    ],
)
def test_state_is_counted_as_it_is_held(model: str, wide: int, narrow: int) -> None:
    for autocast, expected in (("none", wide), ("bfloat16", narrow)):
        (run,) = plan([f"model={model}", "task=language", "compute.device=cpu", f"train.autocast={autocast}", "eval=none"])
        assert (run.facts["state_bytes"], run.facts["state_counted"]) == (expected, "as held")


@pytest.mark.slow
def test_a_match_by_state_is_by_the_bytes_held() -> None:
    request = ["model=gla", "task=mqar", "match.by=state", "match.reference=swa16", "match.tolerance=0.2", "eval=none"]
    wide, narrow = (plan([*request, f"train.autocast={autocast}"])[0] for autocast in ("none", "bfloat16"))
    # 15 tokens of k and v in two heads of 32 are half as many bytes in bfloat16, and a linear RNN's heads smaller.
    assert wide.cost.state_bytes == pytest.approx(15_368, rel=0.2)
    assert narrow.cost.state_bytes == pytest.approx(7_688, rel=0.2)


def test_the_roofline_moves_the_bytes_held() -> None:
    (run,) = plan(["model=transformer", "task=efficiency", "train.autocast=bfloat16", "train.steps=0", "eval=none"])
    model = build_backbone(run.interface, run.config.model, run.config.size, backend="torch")
    cell = Cell(Subject(model, task_of(run.config), run.config, torch.device("cpu")), 2, 64)
    assert state_bytes([cell.model], cell) == 2 * model.state_bytes(64, torch.bfloat16) == 2 * 2 * (2 * 2 * 64 * 64 + 4)
