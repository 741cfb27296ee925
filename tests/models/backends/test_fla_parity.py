"""Every op of the fla backend against its float64 definition, on a GPU: outputs, final states and all gradients.

The other backends have the like in test_mamba_ssm.py, test_rglru_triton.py and test_triton_mesa.py. A test is one kernel in one
dtype and runs all lengths, which share what is compiled: that takes minutes at the first use of a kernel. Run with -n 16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.backends import fla
from models.ops import decayed_linear_attention, delta_rule, gla, mesa, mlstm
from models.ops.solvers import ConjugateGradients

pytestmark = pytest.mark.gpu

B, H, DIM = 2, 2, 64
OTHER_DIMS = (16, 32, 128)
LENGTHS = {torch.bfloat16: (1, 63, 64, 65, 500, 1000), torch.float32: (1, 65, 500)}

Tensors = dict[str, Tensor]
Run = Callable[[Tensors], Sequence[Tensor]]


class Case(NamedTuple):
    """draw: inputs for a length, in a dtype, with heads of a size. Both runs map these to [o, *state].

    bound: permitted error with bfloat16 q, k and v.
    """

    draw: Callable[..., Tensors]
    definition: Run
    kernel: Run
    bound: float


def draw_gated(length: int, dtype: torch.dtype, dim: int = DIM) -> Tensors:
    """Forget gates of about 0.95, with a reset for one head in the first chunk and for all in the second."""
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(length))
    q, k = (F.normalize(normal(B, length, H, dim), dim=-1).to(dtype) for _ in "qk")
    log_decay = F.logsigmoid(normal(B, length, H) + 3.0)
    log_decay[0, 20:21, 0] = log_decay[:, 100:101] = float("-inf")
    drawn = {"q": q, "k": k, "v": normal(B, length, H, dim).to(dtype), "log_decay": log_decay}
    return {**drawn, "beta": normal(B, length, H).sigmoid(), "G": normal(B, H, dim, dim)}


def draw_vector_gated(length: int, dtype: torch.dtype, dim: int = DIM) -> Tensors:
    drawn = draw_gated(length, dtype, dim)
    del drawn["beta"]
    of_keys = F.logsigmoid(torch.randn(B, length, H, dim, generator=torch.Generator().manual_seed(length + 1)) + 3.0)
    return {**drawn, "log_decay": of_keys + drawn["log_decay"].unsqueeze(-1)}


def draw_mlstm(length: int, dtype: torch.dtype, dim: int = DIM) -> Tensors:
    drawn = draw_gated(length, dtype, dim)
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(length + 1))
    log_beta = torch.logit(drawn.pop("beta"))
    return {**drawn, "log_beta": log_beta, "z": normal(B, H, dim), "m": normal(B, H).abs()}


def draw_mesa(length: int, dtype: torch.dtype, dim: int = DIM) -> Tensors:
    drawn = draw_gated(length, dtype, dim)
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(length + 1))
    root = normal(B, H, dim, dim) / dim**0.5
    return {**drawn, "H": root @ root.mT, "regularizer": 0.5 + F.softplus(normal(H, dim))}


def matrix_state(form: Callable[..., tuple[Tensor, Tensor]]) -> Run:
    def run(inputs: Tensors) -> Sequence[Tensor]:
        return form(**{name: x for name, x in inputs.items() if name != "G"}, state=inputs["G"])

    return run


def normalised_state(form: Callable[..., tuple[Tensor, mlstm.MLSTMState]]) -> Run:
    """m is only a scale: the state compared is exp(m) times what is held."""

    def run(inputs: Tensors) -> Sequence[Tensor]:
        state = mlstm.MLSTMState(inputs["G"], inputs["z"], inputs["m"].detach())
        o, state = form(**{name: x for name, x in inputs.items() if name not in state._fields}, state=state)
        scale = state.m.exp().unsqueeze(-1)
        return o, scale.unsqueeze(-1) * state.G, scale * state.z

    return run


def two_states(form: Callable[..., tuple[Tensor, mesa.MesaState]]) -> Run:
    """H is symmetric, so only the symmetric part of the gradient into it has a meaning."""

    def run(inputs: Tensors) -> Sequence[Tensor]:
        state = mesa.MesaState(inputs["G"], (inputs["H"] + inputs["H"].mT) / 2.0)
        o, state = form(mesa.Inputs(**{name: x for name, x in inputs.items() if name not in state._fields}), state=state)
        return o, state.G, state.H

    return run


# bfloat16 rounds by 2e-3 in the mean, and a kernel rounds its inputs, the weights of a chunk, the state before it and the output.
# The delta rule also multiplies by an inverse, and Mesa's kernel solves in float16. mlstm divides by a sum, which in two of the
# draws cancels at some token: a plain computation with these same roundings is off by the same 8.0e-2 there.
FIXED = ConjugateGradients(max_steps=30, tolerance=0.0, stop="right_hand_side", initial="zero", gradient="implicit")
CASES = {
    "decayed_linear_attention": Case(
        draw_gated, matrix_state(decayed_linear_attention.recurrent), matrix_state(fla.decayed_linear_attention), 0.01
    ),
    "gla": Case(draw_vector_gated, matrix_state(gla.recurrent), matrix_state(fla.gla), 0.01),
    "delta_rule": Case(draw_gated, matrix_state(delta_rule.recurrent), matrix_state(fla.delta_rule), 0.02),
    "mlstm": Case(draw_mlstm, normalised_state(mlstm.recurrent), normalised_state(fla.mlstm), 0.1),
    "mesa": Case(draw_mesa, two_states(mesa.recurrent), two_states(partial(fla.mesa, solver=FIXED)), 0.02),
}
# TF32, in which products of float32 are taken, has 3 bits more; Mesa's float16 has as many.
SHARE_OF_BOUND = {torch.bfloat16: 1.0, torch.float32: 0.25}


@pytest.fixture(autouse=True)
def able() -> None:
    if reason := fla.obstacle():
        pytest.skip(reason)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """In norm; NaN where either is."""
    return ((actual.double() - expected).norm() / expected.norm().clamp(min=1e-6)).item()


def results(run: Run, inputs: Tensors) -> Tensors:
    """o, the state, and the gradient into every input of a fixed random weighting of them."""
    leaves = {name: x.cuda().requires_grad_(name != "m") for name, x in inputs.items()}
    outputs = run(leaves)
    generator = torch.Generator().manual_seed(0)
    # The cotangent of bfloat16 outputs is rounded to it: both get numbers that it holds.
    loss = sum((y.double() * torch.randn(y.shape, generator=generator).bfloat16().cuda()).sum() for y in outputs)
    names = [name for name in leaves if name != "m"]
    gradients = torch.autograd.grad(loss, [leaves[name] for name in names])
    named = {f"output {i}": y.detach() for i, y in enumerate(outputs)}
    return named | {f"gradient into {name}": x for name, x in zip(names, gradients, strict=True)}


def assert_equals_definition(name: str, dtype: torch.dtype, lengths: Sequence[int], dim: int) -> None:
    case, wrong = CASES[name], []
    for length in lengths:
        inputs = case.draw(length, dtype, dim)
        expected = results(case.definition, {key: x.double() for key, x in inputs.items()})
        for what, actual in results(case.kernel, inputs).items():
            error = relative_error(actual, expected[what])
            if not error < SHARE_OF_BOUND[dtype] * case.bound:
                wrong.append(f"T={length} {what}: {error:.1e}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("dtype", LENGTHS, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("name", CASES)
def test_a_kernel_equals_the_definition(name: str, dtype: torch.dtype) -> None:
    assert_equals_definition(name, dtype, LENGTHS[dtype], DIM)


@pytest.mark.parametrize("dim", OTHER_DIMS)
@pytest.mark.parametrize("name", CASES)
def test_it_does_with_heads_of_other_sizes(name: str, dim: int) -> None:
    # Sizes for which the table of kernels has fla's Mesa.
    if name == "mesa" and dim not in (64, 128):
        pytest.skip("fla's Mesa is not chosen for this size")
    assert_equals_definition(name, torch.bfloat16, (65, 500), dim)


@pytest.mark.parametrize("name", [name for name in CASES if name != "mesa"])
@torch.no_grad()
def test_decoding_equals_the_definition(name: str) -> None:
    """64 single tokens in a row, computed in float32 from bfloat16 q, k and v, which the keys of two ops are folded into."""
    case, dtype = CASES[name], torch.bfloat16
    inputs = {key: x.cuda() for key, x in case.draw(64, dtype).items()}
    expected = case.definition({key: x.double() for key, x in inputs.items()})
    held = {key: inputs.pop(key) for key in ("G", "z", "m") if key in inputs}
    if name == "mlstm":
        state = mlstm.MLSTMState(**held)
        step = fla.mlstm
    else:
        state, step = held["G"], getattr(fla, name)
    outputs = []
    for t in range(64):
        o, state = step(**{key: x[:, t : t + 1] for key, x in inputs.items()}, state=state)
        outputs.append(o)
    assert relative_error(torch.cat(outputs, dim=1), expected[0]) < case.bound
    if name != "mlstm":
        assert relative_error(state, expected[1]) < case.bound
