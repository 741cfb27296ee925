"""Every op's chunked form equals its recurrent form, which is the definition, and both stay finite at the extremes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.ops import decayed_linear_attention, delta_rule, gla, mlstm
from models.ops.decay import chunk_decays
from tests.models.tolerances import assert_near

B, H, K, V = 2, 3, 5, 4
LENGTHS = (1, 7, 8, 19)
CHUNK_SIZE = 8

Tensors = dict[str, Tensor]
Run = Callable[[Tensors], list[Tensor]]


class Op(NamedTuple):
    """draw: inputs for a length, each a leaf. Both forms map these inputs to [o, *state]."""

    name: str
    draw: Callable[[int], Tensors]
    recurrent: Run
    chunked: Run


def draw_gated(length: int) -> Tensors:
    generator = torch.Generator().manual_seed(length)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    return {
        "q": normal(B, length, H, K),
        "k": F.normalize(normal(B, length, H, K), dim=-1),
        "v": normal(B, length, H, V),
        "log_decay": F.logsigmoid(normal(B, length, H)),
        "beta": normal(B, length, H).sigmoid(),
        "G": normal(B, H, V, K),
    }


def draw_vector_gated(length: int) -> Tensors:
    """A forget gate for every key dimension, and nothing that weighs what is written."""
    drawn = draw_gated(length)
    del drawn["beta"]
    logits = torch.randn(B, length, H, K, generator=torch.Generator().manual_seed(length + 1), dtype=torch.float64)
    return {**drawn, "log_decay": F.logsigmoid(logits)}


def draw_mlstm(length: int) -> Tensors:
    """Unbounded input gates, and a state in the middle of a sequence."""
    drawn = draw_gated(length)
    generator = torch.Generator().manual_seed(length + 1)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    log_beta = 4.0 * torch.logit(drawn.pop("beta"))
    return {**drawn, "log_beta": log_beta, "z": normal(B, H, K), "m": normal(B, H).abs()}


def matrix_state(form: Callable[..., tuple[Tensor, Tensor]]) -> Run:
    """A form whose state is G alone."""

    def run(inputs: Tensors) -> list[Tensor]:
        return list(form(**{name: x for name, x in inputs.items() if name != "G"}, state=inputs["G"]))

    return run


def normalised_state(form: Callable[..., tuple[Tensor, mlstm.MLSTMState]]) -> Run:
    """A form whose state is (G, z, m). m is only a scale: the state compared is exp(m) times what is held."""

    def run(inputs: Tensors) -> list[Tensor]:
        state = mlstm.MLSTMState(inputs["G"], inputs["z"], inputs["m"].detach())
        o, state = form(**{name: x for name, x in inputs.items() if name not in state._fields}, state=state)
        scale = state.m.exp().unsqueeze(-1)
        return [o, scale.unsqueeze(-1) * state.G, scale * state.z]

    return run


def op(name: str, draw: Callable[[int], Tensors], wrap: Callable[..., Run], module) -> Op:
    return Op(name, draw, wrap(module.recurrent), wrap(partial(module.chunked, chunk_size=CHUNK_SIZE)))


OPS = [
    op("decayed_linear_attention", draw_gated, matrix_state, decayed_linear_attention),
    op("delta_rule", draw_gated, matrix_state, delta_rule),
    op("gla", draw_vector_gated, matrix_state, gla),
    op("mlstm", draw_mlstm, normalised_state, mlstm),
]
FORMS = [pytest.param(form, op.draw, id=f"{op.name}-{n}") for op in OPS for n, form in enumerate((op.recurrent, op.chunked))]

EXTREMES = {
    "no_decay": ("log_decay", 0.0),
    "reset_everywhere": ("log_decay", float("-inf")),
    "strong_decay": ("log_decay", -200.0),
    "nothing_written": ("beta", 0.0),
    "everything_written": ("beta", 1.0),
    "silent_input": ("log_beta", -200.0),
    "loud_input": ("log_beta", 10.0),
    "zero_keys": ("k", 0.0),
    "equal_keys": ("k", K**-0.5),
    "large_values": ("v", 1e4),
}


def gradients(form: Run, inputs: Tensors) -> tuple[list[Tensor], Tensors]:
    """Outputs, and the gradient into every input of a fixed random weighting of all of them."""
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    outputs = form(leaves)
    generator = torch.Generator().manual_seed(0)
    loss = sum((y * torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y)).sum() for y in outputs)
    names = [name for name in leaves if name != "m"]
    return outputs, dict(zip(names, torch.autograd.grad(loss, [leaves[name] for name in names]), strict=True))


def assert_same(ours: Op, inputs: Tensors, kind: str) -> None:
    """Outputs, final states and gradients of both forms agree."""
    (expected, expected_gradients), (actual, actual_gradients) = (gradients(f, inputs) for f in (ours.recurrent, ours.chunked))
    for x, y in zip(actual, expected, strict=True):
        assert_near(x, y, kind)
    for name, gradient in expected_gradients.items():
        assert_near(actual_gradients[name], gradient, kind)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("ours", OPS, ids=lambda op: op.name)
def test_chunked_equals_recurrent(ours: Op, length: int) -> None:
    assert_same(ours, ours.draw(length), "float64")


@pytest.mark.parametrize(
    ("ours", "extreme"),
    [(o, e) for o, e in itertools.product(OPS, EXTREMES) if EXTREMES[e][0] in o.draw(1)],
    ids=lambda x: x if isinstance(x, str) else x.name,
)
def test_extremes_are_finite_and_agree(ours: Op, extreme: str) -> None:
    inputs = ours.draw(19)
    name, value = EXTREMES[extreme]
    # Not everywhere, so that within a chunk the extreme meets the ordinary on both sides.
    inputs[name][:, 2:12] = value
    inputs = {name: x.float() for name, x in inputs.items()}
    for form in (ours.recurrent, ours.chunked):
        outputs, into = gradients(form, inputs)
        assert all(x.isfinite().all() for x in (*outputs, *into.values()))
    assert_same(ours, {name: x.double() for name, x in inputs.items()}, "float64")


@pytest.mark.parametrize(("form", "draw"), FORMS)
@pytest.mark.parametrize("start", [3, CHUNK_SIZE])
def test_a_reset_forgets_what_came_before(form: Run, draw: Callable[[int], Tensors], start: int) -> None:
    inputs = draw(19)
    inputs["log_decay"][:, start] = float("-inf")
    over_time = {name: x[:, start:] for name, x in inputs.items() if x.shape[:2] == (B, 19)}
    fresh = {name: torch.zeros_like(x) for name, x in inputs.items() if name not in over_time}
    # A fresh state has nothing to forget: its first forget gate must not matter.
    over_time["log_decay"] = over_time["log_decay"].clone()
    over_time["log_decay"][:, 0] = -0.5
    o, *state = form(inputs)
    fresh_o, *fresh_state = form({**over_time, **fresh})
    assert_near(o[:, start:], fresh_o, "float64")
    for x, y in zip(state, fresh_state, strict=True):
        assert_near(x, y, "float64")


@pytest.mark.parametrize(("form", "draw"), FORMS)
def test_gradients_match_finite_differences(form: Run, draw: Callable[[int], Tensors]) -> None:
    inputs = {name: x[:1, :1] if name in ("G", "z", "m") else x[:1, :, :1] for name, x in draw(9).items()}
    names = [name for name in inputs if name != "m"]
    leaves = [inputs[name].clone().requires_grad_() for name in names]

    def given(*xs: Tensor) -> tuple[Tensor, ...]:
        return tuple(form({**inputs, **dict(zip(names, xs, strict=True))}))

    assert torch.autograd.gradcheck(given, leaves, fast_mode=True)


def test_chunk_decays_multiply_the_gates_between() -> None:
    gates = torch.tensor([0.5, 0.9, 0.0, 0.7, 1.0], dtype=torch.float64)
    decays = chunk_decays(gates.log())
    expected = [[float(s <= t) * gates[s + 1 : t + 1].prod().item() for s in range(5)] for t in range(5)]
    torch.testing.assert_close(decays.within, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(decays.from_start, gates.cumprod(0))
    torch.testing.assert_close(decays.to_end, decays.within[-1])


def test_chunk_decays_are_exact_behind_a_strong_decay() -> None:
    log_decay = torch.tensor([-200.0] * 40 + [-1e-3])
    assert chunk_decays(log_decay).within[-1, -2].item() == pytest.approx(0.9990005, abs=1e-7)


@pytest.mark.parametrize("ours", OPS, ids=lambda op: op.name)
def test_a_bfloat16_sequence_is_computed_in_the_float32_of_its_state(ours: Op) -> None:
    inputs = {name: x.bfloat16() if name in ("q", "k", "v") else x.float() for name, x in ours.draw(9).items()}
    for actual, expected in zip(ours.chunked(inputs), ours.recurrent(inputs), strict=True):
        assert actual.dtype == expected.dtype == torch.float32
        assert_near(actual, expected, "float32")
