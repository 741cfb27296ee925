"""MesaNet's mixer: its gates and Lambda, what its solver does, and what is declared about it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.components import linear_flops_per_token
from models.mesa.mixer import Mesa
from models.ops import mesa
from tests.models.mesa.mesanet_cases import LAYER, B, H, build_layer, draw_x
from tests.models.tolerances import assert_near


def test_the_regularizer_starts_at_one_and_stays_above_its_floor() -> None:
    layer = build_layer()
    torch.testing.assert_close(layer.regularizer, torch.ones(H, 16))
    with torch.no_grad():
        layer.regularizer_logit.fill_(-100.0)
    torch.testing.assert_close(layer.regularizer, torch.full((H, 16), 0.25))


def test_the_forget_gate_is_capped_where_the_input_gate_is_open() -> None:
    x = torch.randn(B, 9, 24, generator=torch.Generator().manual_seed(0))
    capped, free = (build_layer(forget_cap=cap).gates(x) for cap in (0.9975, None))
    expected = free["log_decay"].exp() * (1 - 0.0025 * capped["beta"] ** 2)
    torch.testing.assert_close(capped["log_decay"].exp(), expected)


@torch.no_grad()
def test_flops_are_those_counted_at_the_steps_used() -> None:
    layer = build_layer()
    state = layer.init_state(1)
    x = torch.randn(1, 40, 24, generator=torch.Generator().manual_seed(0))
    _, state = layer(x[:, :-1], state)
    with FlopCounterMode(display=False) as counter:
        layer.step(x[:, -1], state)
    assert counter.get_total_flops() + linear_flops_per_token(layer.convolution) == layer.forward_flops_per_token(1)
    x = torch.randn(1, 40, 24, generator=torch.Generator().manual_seed(0))
    steps = layer.observe(x, spectrum=False)["steps"].flatten().tolist()
    declared, at_most = layer.forward_flops_per_token(40), layer.solver.flops(16)
    used = sum(layer.solver.flops(16, taken) for taken in steps) / len(steps)
    assert 0 < min(steps) < max(steps) == layer.solver.max_steps
    assert layer.measured_flops_per_token(x) == pytest.approx(declared - H * (at_most - used))


@torch.no_grad()
def test_a_solve_that_takes_all_of_its_steps_is_measured_as_declared() -> None:
    """The true residual is looked at after an early stop alone."""
    layer, x = build_layer(solver={**LAYER["solver"], "max_steps": 1}), draw_x(40).float()
    assert (layer.observe(x, spectrum=False)["steps"] == 1).all()
    assert layer.measured_flops_per_token(x) == layer.forward_flops_per_token(40)


@torch.no_grad()
def test_a_single_token_is_observed_as_it_is_decoded() -> None:
    """Where the preconditioner is the matrix itself, so that no step is left to take."""
    settings = {**LAYER["solver"], "name": "preconditioned_cg", "max_steps": 30, "tolerance": 1e-4}
    layer, x = build_layer(solver=settings), draw_x(20).float()
    _, state = layer(x[:, :19])
    assert (layer.observe(x[:, 19:], state, spectrum=False)["steps"] == 0).all()
    assert (layer.observe(x, spectrum=False)["steps"][:, 19] > 0).any()


@torch.no_grad()
def test_a_solution_that_is_no_number_has_no_residual_of_zero() -> None:
    layer, x = build_layer(), draw_x(9)[:1].float()
    x[:, 4] = float("nan")
    assert layer.observe(x, spectrum=False)["residual"][:, 4:].isnan().all()


@torch.no_grad()
def test_a_layer_traces_what_its_forward_pass_does() -> None:
    layer = build_layer(solver={**LAYER["solver"], "max_steps": 30, "tolerance": 1e-3}).double()
    x = torch.randn(B, 19, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = layer.observe(x, spectrum=False)
    assert whole["steps"].shape == whole["residual"].shape == (B, 19, H)
    assert (whole["residual"] <= 1e-3).all() and whole["steps"].min() >= 1
    _, state = layer(x[:, :11])
    assert torch.equal(layer.observe(x[:, 11:], state, spectrum=False)["steps"], whole["steps"][:, 11:])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"forget_cap": 1.5}, "1.5"),
        ({"regularizer_floor": -0.1}, "-0.1"),
        ({"regularizer_init": 0.25}, "0.25"),
        ({"solver": {**LAYER["solver"], "name": "conjugate"}}, "conjugate"),
        ({"solver": {**LAYER["solver"], "max_steps": -1}}, "-1"),
        ({"solver": {**LAYER["solver"], "tolerance": 1.0}}, "tolerance=1 "),
        ({"solver": {**LAYER["solver"], "stop": "never"}}, "never"),
        ({"random_steps": 0}, "random_steps=0"),
        ({"random_steps": 3, "solver": {**LAYER["solver"], "name": "cholesky"}}, "no steps"),
        ({"random_steps": "many"}, "random_steps=many"),
        ({"decode": "inverse"}, "inverse"),
        ({"refresh": 4}, "refresh=4"),
        ({"decode": "sherman_morrison", "refresh": 0}, "refresh=0"),
        ({"decode": "sherman_morrison", "signed_decay": True}, "signed_decay"),
        ({"decode": "sherman_morrison", "solver": {**LAYER["solver"], "initial": "previous_token"}}, "previous_token"),
        ({"signed_decay": True, "forget_gate_init": 1.0}, "forget_gate_init=1 "),
        ({"forget_gate_init": -0.5}, "forget_gate_init=-0.5.*without signed_decay"),
    ],
)
def test_a_wrong_value_is_named(changes: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        build_layer(**changes)


def test_a_signed_gate_starts_where_it_is_told() -> None:
    for gamma in (-0.5, 0.0, 0.98):
        layer = build_layer(signed_decay=True, forget_gate_init=gamma, forget_cap=None)
        gates = layer.gates(torch.zeros(1, 1, 24))
        expected = torch.full((1, 1, H), max(abs(gamma), 1e-6)).log()
        torch.testing.assert_close(gates["log_decay"], expected, rtol=1e-5, atol=1e-6)
        assert gates["sign"].unique().tolist() == [-1.0 if gamma < 0 else 1.0]


def test_a_signed_gate_is_the_hyperbolic_tangent_capped_in_magnitude() -> None:
    layer, x = build_layer(signed_decay=True, forget_gate_init=0.0).double(), draw_x(50)
    gates = layer.gates(x)
    gamma = torch.tanh(layer.forget_gate(x)) * (1.0 - 0.0025 * gates["beta"].square())
    assert_near(gates["sign"] * gates["log_decay"].exp(), gamma, "float64")
    assert (gamma < 0).any() and (gamma > 0).any()


def test_the_gradient_through_a_signed_gate_is_that_of_its_value() -> None:
    """Finite at 0 too, where its logarithm is -inf and its gradient is cut off."""
    layer = build_layer(signed_decay=True, forget_gate_init=0.0, chunk_size=32).double()
    with torch.no_grad():
        layer.forget_gate.projection.weight[0].zero_()  # the first head is at 0 throughout
    bias, x = layer.forget_gate.projection.bias, draw_x(9)
    (gradient,) = torch.autograd.grad(layer(x)[0].sum(), bias)
    assert gradient.isfinite().all()

    def difference(head: int, size: float = 1e-6) -> float:
        values = []
        for step in (size, -size):
            with torch.no_grad():
                bias[head] += step
                values.append(layer(x)[0].sum().item())
                bias[head] -= step
        return (values[0] - values[1]) / (2.0 * size)

    assert gradient[1].item() == pytest.approx(difference(1), rel=1e-4)


def turn(**changes: object) -> tuple[Mesa, Tensor]:
    """A layer that keeps (gamma near 1) until a token at 13 that turns (gamma near -1), and the sequence [B, 19, 24]."""
    layer = build_layer(signed_decay=True, forget_gate_init=0.95, **changes)
    with torch.no_grad():
        layer.forget_gate.projection.weight.zero_()
        layer.forget_gate.projection.weight[:, 0] = -10.0
    x = draw_x(1).float().expand(B, 19, 24).clone()
    x[..., 0] = 0.0
    x[:, 13, 0] = 1.0
    return layer, x


@pytest.mark.parametrize("solver", ["cg", "preconditioned_cg", "chebyshev", "cholesky"])
def test_a_loss_of_definiteness_is_observed_and_finite(solver: str) -> None:
    """A run of one key against a small Lambda."""
    layer, x = turn(solver={**LAYER["solver"], "name": solver, "max_steps": 30})
    seen = layer.observe(x, spectrum=True)
    assert (seen["gamma"][:, :13] > 0).all() and (seen["smallest"][:, :13] > 0).all()
    assert (seen["gamma"][:, 13] < 0).all() and (seen["smallest"][:, 13] <= 0).all()
    x.requires_grad_()
    o, state = layer(x)
    (gradient,) = torch.autograd.grad(o.sum(), x)
    assert o.isfinite().all() and gradient.isfinite().all() and all(y.isfinite().all() for y in state.values())


def test_a_large_regularizer_keeps_the_definiteness_that_a_small_one_loses() -> None:
    """Lambda at 50 (App. I) outweighs an H of 13 tokens."""
    layer, x = turn(regularizer_floor=49.0, regularizer_init=50.0)
    assert layer.observe(x, spectrum=True)["smallest"].min() > 40.0


@pytest.mark.parametrize("length", [1, 19])
@torch.no_grad()
def test_a_signed_layer_is_the_definition_with_signed_gates(length: int) -> None:
    layer = build_layer(signed_decay=True, forget_gate_init=-0.9, regularizer_floor=49.0, regularizer_init=50.0).double()
    layer.solver = replace(layer.solver, max_steps=30)
    _, before = layer(draw_x(7, seed=1))
    inputs = layer.recurrence_inputs(draw_x(length), before, starts=None).inputs
    assert (inputs["sign"] < 0).any()
    o, _ = layer.recurrence(**inputs, state=before)
    held = mesa.MesaState(before["G"], before["H"])
    assert_near(o, mesa.recurrent(mesa.Inputs(**inputs, regularizer=layer.regularizer), state=held)[0], "float64")


@torch.no_grad()
def test_what_is_observed_is_what_the_layer_does() -> None:
    layer, x = build_layer(solver={**LAYER["solver"], "max_steps": 30}).double(), draw_x(19)
    starts = torch.zeros(B, 19, dtype=torch.bool)
    starts[:, 7] = True
    seen = layer.observe(x, starts=starts, spectrum=True)
    gates = layer.gates(x)
    assert all(value.shape == (B, 19, H) for value in seen.values())
    assert torch.equal(seen["beta"], gates["beta"]) and (seen["gamma"][:, 7] == 0.0).all()
    assert torch.equal(seen["gamma"][:, 8:], gates["log_decay"][:, 8:].exp())
    assert_near(seen["regularizer"], torch.ones_like(seen["beta"]), "float64")
    _, state = layer(x, starts=starts)
    eigenvalues = torch.linalg.eigvalsh(state["H"] + torch.diag_embed(layer.regularizer))
    assert_near(seen["smallest"][:, -1], eigenvalues[..., 0], "float64")
    assert_near(seen["largest"][:, -1], eigenvalues[..., -1], "float64")
    assert layer.observe(x, spectrum=False).keys() == seen.keys() - {"smallest", "largest"}


@torch.no_grad()
def test_at_no_steps_from_the_query_it_is_gated_linear_attention() -> None:
    layer, x = build_layer(solver={**LAYER["solver"], "max_steps": 0, "initial": "query"}).double(), draw_x(19)
    inputs = layer.recurrence_inputs(x, layer.init_state(B), starts=None).inputs
    o, state = layer.recurrence(**inputs, state=layer.init_state(B))
    assert_near(o[:, -1].unsqueeze(-1), state["G"] @ inputs["q"][:, -1].unsqueeze(-1), "float64")
