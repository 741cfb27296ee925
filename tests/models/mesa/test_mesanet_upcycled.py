"""Mesa that is gated linear attention up to a step of its training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.backends import Loaded
from models.ops import decayed_linear_attention
from tests.models.mesa.mesanet_cases import LAYER, B, build_layer, draw_x

FROM = 5
RICHARDSON = {**LAYER["solver"], "name": "richardson", "max_steps": 1, "initial": "query", "gradient": "unrolled"}


def outputs(layer, x: Tensor, step: int) -> Tensor:
    layer.begin_step(seed=0, step=step)
    return layer(x)[0]


@pytest.mark.parametrize("solver", [LAYER["solver"], {**LAYER["solver"], "name": "cholesky"}, RICHARDSON])
def test_before_its_step_it_is_gated_linear_attention_with_that_gradient(solver: dict) -> None:
    layer, x = build_layer(solve_from=FROM, solver=solver).double().train(), draw_x(21)
    inputs = layer.recurrence_inputs(x, layer.init_state(B), starts=None).inputs
    op = {name: inputs[name] for name in ("q", "k", "v", "log_decay", "beta")}
    o, _ = decayed_linear_attention.recurrent(**op, state=layer.init_state(B)["G"])
    y = outputs(layer, x, FROM - 1)
    expected = layer._output(o, None, x.dtype)
    torch.testing.assert_close(y, expected)
    parameters = dict(layer.named_parameters())
    unsolved = [name for name in ("regularizer_logit", "step_size_logit") if name in parameters]
    gradients = dict(zip(parameters, torch.autograd.grad(y.square().sum(), list(parameters.values())), strict=True))
    others = [name for name in parameters if name not in unsolved]
    of_attention = torch.autograd.grad(expected.square().sum(), [parameters[name] for name in others])
    for name, gradient in zip(others, of_attention, strict=True):
        torch.testing.assert_close(gradients[name], gradient)
    assert unsolved and all(gradients[name].eq(0.0).all() for name in unsolved)


@torch.no_grad()
def test_from_its_step_on_and_in_evaluation_it_solves() -> None:
    layer, x = build_layer(solve_from=FROM).double().train(), draw_x(21)
    usual = build_layer().double()(x)[0]
    assert not torch.allclose(outputs(layer, x, FROM - 1), usual)
    assert torch.equal(outputs(layer, x, FROM), usual)
    layer.eval()
    assert torch.equal(outputs(layer, x, 0), usual) and layer.draws


@torch.no_grad()
def test_a_kernel_is_left_out_before_its_step() -> None:
    """Kernels differentiate a solution, which q is not."""
    asked = []

    def computes(inputs, *, state, solver):
        asked.append(solver)
        return inputs.v, state

    layer, x = build_layer(solve_from=FROM).train(), draw_x(21).float()
    layer.kernel = Loaded(computes, None, 1, None)
    outputs(layer, x, FROM - 1)
    assert not asked
    outputs(layer, x, FROM)
    assert asked == [layer.solver]
