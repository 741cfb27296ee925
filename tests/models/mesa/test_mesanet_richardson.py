"""Mesa solved by a learned step, and trained with a solver that is stopped short: parameters, their start, and gradients."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from conf.settings import Refusal
from models.backbone.language_model import LanguageModel
from models.mesa.layers import mesa_replaced
from models.mesa.mixer import Mesa
from models.ops import mesa
from tests.models.mesa.mesanet_cases import LAYER, B, H, build_layer, build_model, draw_tokens, draw_x

SHORT = {"stop": "right_hand_side", "tolerance": 0.0, "gradient": "unrolled"}
RICHARDSON = {"name": "richardson", "max_steps": 1, "initial": "query", **SHORT}
SOLVERS = {
    "diagonal": {"name": "cg", "max_steps": 0, "initial": "diagonal", **SHORT},
    "richardson 1": RICHARDSON,
    **{f"cg {n}": {"name": "cg", "max_steps": n, "initial": "diagonal", **SHORT} for n in (1, 2, 5)},
}


def test_a_layer_has_a_step_size_a_head_with_this_solver_alone() -> None:
    usual, own = (dict(build_layer(solver=solver).named_parameters()) for solver in (LAYER["solver"], RICHARDSON))
    assert own.keys() - usual.keys() == {"step_size_logit"} and usual.keys() <= own.keys()
    torch.testing.assert_close(F.softplus(own["step_size_logit"]), torch.full((H,), 0.07))
    assert build_layer(solver=RICHARDSON, step_size_init=0.5).step_size_logit[0].item() == pytest.approx(
        math.log(math.expm1(0.5))
    )


def test_the_step_size_starts_below_the_bound_for_keys_that_are_all_one() -> None:
    """The largest eigenvalue that unit keys can lead to, at the gates' start, after 1000 tokens: none that shrinks is left."""
    layer, x = build_layer(solver=RICHARDSON).double(), torch.zeros(1, 1000, 24, dtype=torch.float64)
    gates = layer.gates(x)
    k = F.normalize(torch.ones(1, 1000, H, 16, dtype=torch.float64), dim=-1)
    inputs = mesa.Inputs(k, k, k, gates["log_decay"], gates["beta"], layer.regularizer)
    zeros = torch.zeros(1, H, 16, 16, dtype=torch.float64)
    largest = mesa.trace(
        inputs, state=mesa.MesaState(zeros, zeros), solver=layer.solver_in_use(1), chunk_size=50, spectrum=True
    ).largest[0, -1]
    assert (largest > 20.0).all() and (layer.solver_in_use(1).step_size * largest < 2.0).all()


@torch.no_grad()
def test_every_head_takes_its_own_steps_in_every_sequence() -> None:
    layer, x = build_layer(solver={**RICHARDSON, "max_steps": 3}).double(), draw_x(19)
    layer.step_size_logit.copy_(torch.tensor([-3.0, -1.0]))
    inputs = layer.recurrence_inputs(x, layer.init_state(B), starts=None).inputs
    o, _ = layer.recurrence(**inputs, state=layer.init_state(B))
    for b, h in itertools.product(range(B), range(H)):
        alone = build_layer(num_heads=1, solver={**RICHARDSON, "max_steps": 3}).double()
        alone.step_size_logit.copy_(layer.step_size_logit[h : h + 1])
        own = {name: None if y is None else y[b : b + 1, :, h : h + 1] for name, y in inputs.items()}
        torch.testing.assert_close(alone.recurrence(**own, state=alone.init_state(1))[0], o[b : b + 1, :, h : h + 1])


def loss_of(model: LanguageModel, tokens: Tensor) -> Tensor:
    logits, _ = model(tokens[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def assert_differentiates(model: LanguageModel, *, tolerance: float) -> None:
    """The gradient of the loss, along a drawn direction of all parameters, against a difference quotient."""
    tokens, parameters = draw_tokens(33), list(model.parameters())
    generator = torch.Generator().manual_seed(1)
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
    gradients = torch.autograd.grad(loss_of(model, tokens), parameters)
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
    losses, size = [], 1e-6
    with torch.no_grad():
        for sign in (1, -1):
            moved = copy.deepcopy(model)
            for p, d in zip(moved.parameters(), direction, strict=True):
                p.add_(sign * size * d)
            losses.append(loss_of(moved, tokens))
    torch.testing.assert_close(slope, (losses[0] - losses[1]) / (2 * size), rtol=tolerance, atol=0.0)


def stirred(solver: dict) -> LanguageModel:
    model, generator = build_model(solver=solver), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_stopped_short_is_trained_by_the_gradient_of_its_steps(name: str) -> None:
    """The whole model, step sizes among its parameters."""
    model = stirred(SOLVERS[name])
    assert_differentiates(model, tolerance=1e-6)
    steps = {p for n, p in model.named_parameters() if n.endswith("step_size_logit")}
    assert len(steps) == (2 if name == "richardson 1" else 0)
    gradients = torch.autograd.grad(loss_of(model, draw_tokens(33)), list(steps)) if steps else []
    assert all((gradient != 0.0).all() for gradient in gradients)


@pytest.mark.parametrize("name", [name for name in SOLVERS if name.startswith(("diagonal", "cg"))])
def test_the_gradient_of_a_solution_is_another_one_where_a_solver_is_stopped_short(name: str) -> None:
    unrolled, implicit = (stirred({**SOLVERS[name], "gradient": gradient}) for gradient in ("unrolled", "implicit"))
    pairs = [torch.autograd.grad(loss_of(model, draw_tokens(33)), list(model.parameters())) for model in (unrolled, implicit)]
    difference = sum((a - b).square().sum() for a, b in zip(*pairs, strict=True)).sqrt()
    size = sum(a.square().sum() for a in pairs[0]).sqrt()
    assert difference > 1e-4 * size
    assert difference < 0.5 * size


def test_a_converged_solve_is_trained_by_the_gradient_of_its_solution() -> None:
    converged = {**LAYER["solver"], "max_steps": 60, "tolerance": 1e-4, "gradient": "implicit"}
    assert_differentiates(stirred({**converged, "tolerance": 1e-12}), tolerance=1e-6)
    assert_differentiates(stirred(converged), tolerance=1e-2)


def test_a_layer_trained_by_another_solver_can_not_be_solved_by_it() -> None:
    model, tokens = build_model(), draw_tokens(9)
    with (
        pytest.raises(Refusal, match=r"^solver\.name=richardson .*permitted are cg, .* trained by another solver$"),
        mesa_replaced(model, {"solver": {"name": "richardson", "gradient": "unrolled"}}),
    ):
        raise AssertionError("never entered")
    learned = build_model(solver=RICHARDSON)
    before = learned(tokens)[0]
    with mesa_replaced(learned, {"solver": {"name": "cholesky"}}):
        assert not torch.allclose(learned(tokens)[0], before)
    assert torch.equal(learned(tokens)[0], before)


def test_no_kernel_computes_it() -> None:
    assert "triton" in Mesa.backends(build_layer(key_dim=64, value_dim=64).settings)
    assert Mesa.backends(build_layer(key_dim=64, value_dim=64, solver=RICHARDSON).settings) == ("torch",)
