"""The sLSTM cell against its definition without a stabiliser, and where that would overflow or divide 0 by 0."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from models.ops.slstm import SLSTMState, recurrent
from tests.models.tolerances import assert_near

B, H, V = 2, 3, 4

Tensors = dict[str, Tensor]


def draw(length: int) -> Tensors:
    """Input gates from exp(-6) to exp(6), and a state in the middle of a sequence."""
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(length), dtype=torch.float64)
    gates = normal(B, length, H, 4, V)
    gates[..., 0, :] *= 2.0
    weight, held = 0.7 * normal(H, V, 4 * V), [normal(B, H, V) for _ in range(4)]
    state = {"h": held[0], "c": held[1], "n": 1.0 + held[2].abs(), "m": held[3]}
    return {"gates": gates.flatten(-2), "weight": weight, **state}


def draw_starts(length: int) -> Tensor:
    return torch.rand(B, length, generator=torch.Generator().manual_seed(length)) < 0.25


def run(inputs: Tensors, starts: Tensor | None) -> list[Tensor]:
    """All h, and c and n at their own scale."""
    state = SLSTMState(*(inputs[name] for name in "hcn"), inputs["m"].detach())
    h, after = recurrent(gates=inputs["gates"], weight=inputs["weight"], starts=starts, state=state)
    assert torch.equal(after.h, h[:, -1])
    return [h, after.m.exp() * after.c, after.m.exp() * after.n]


def unstabilised(inputs: Tensors, starts: Tensor) -> list[Tensor]:
    """The equations of the paper head by head, c and n as large as they are."""
    scale = inputs["m"].detach().exp()
    rows, cells, normalisers = [], [], []
    for b in range(B):
        for head in range(H):
            h, c, n = (inputs[name][b, head] for name in "hcn")
            c, n, R = c * scale[b, head], n * scale[b, head], inputs["weight"][head]
            for t in range(inputs["gates"].shape[1]):
                if starts[b, t]:
                    h, c, n = (torch.zeros_like(x) for x in (h, c, n))
                i, f, z, o = (inputs["gates"][b, t, head] + R.T @ h).view(4, V)
                f = torch.sigmoid(f)
                c, n = f * c + i.exp() * torch.tanh(z), f * n + i.exp()
                h = torch.sigmoid(o) * c / n
                rows.append(h)
            cells.append(c)
            normalisers.append(n)
    h = torch.stack(rows).view(B, H, -1, V).transpose(1, 2)
    return [h, torch.stack(cells).view(B, H, V), torch.stack(normalisers).view(B, H, V)]


@pytest.mark.parametrize("length", [1, 7, 19])
def test_the_cell_is_the_unstabilised_definition(length: int) -> None:
    """In outputs, in the state and in the gradients into all that is given but m."""
    inputs, starts, results = draw(length), draw_starts(length), []
    leaves = [inputs[name].requires_grad_() for name in inputs if name != "m"]
    for outputs in (run(inputs, starts), unstabilised(inputs, starts)):
        weights = [torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).double() for y in outputs]
        loss = sum((y * weight).sum() for y, weight in zip(outputs, weights, strict=True))
        results.append([*outputs, *torch.autograd.grad(loss, leaves)])
    for actual, expected in zip(*results, strict=True):
        assert_near(actual, expected, "float64")


def fresh() -> Tensors:
    return {name: torch.zeros(B, H, V, dtype=torch.float64) for name in "hcnm"}


def test_a_factor_of_all_input_gates_cancels_where_its_exponential_overflows() -> None:
    loud, louder = draw(19) | fresh(), draw(19) | fresh()
    louder["gates"].view(B, 19, H, 4, V)[..., 0, :] += 800.0
    assert_near(run(louder, None)[0], run(loud, None)[0], "float64")


@pytest.mark.parametrize("start", [0, 5])
def test_the_first_token_is_read_however_silent_its_input_gate(start: int) -> None:
    """Against a stabiliser of 0 its exponential would be 0, and so would be what it is divided by."""
    inputs = {name: x.float() for name, x in (draw(9) | fresh()).items()}
    starts = torch.zeros(B, 9, dtype=torch.bool)
    starts[:, start] = True
    gates = inputs["gates"].view(B, 9, H, 4, V)
    gates[:, start, :, 0] = -200.0
    # A start resets what m says, too: one that stays would be far above.
    gates[:, :start, :, 0] = 50.0
    inputs["weight"].requires_grad_()
    h = run(inputs, starts)[0]
    expected = torch.sigmoid(gates[:, start, :, 3]) * torch.tanh(gates[:, start, :, 2])
    assert_near(h[:, start], expected, "float32")
    (gradient,) = torch.autograd.grad(h.sum(), [inputs["weight"]])
    assert h.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize(("gate", "value"), [(0, -200.0), (0, 200.0), (1, -200.0), (1, 200.0)])
def test_extremes_are_finite_and_near_those_in_float64(gate: int, value: float) -> None:
    inputs = draw(19) | fresh()
    inputs["gates"].view(B, 19, H, 4, V)[:, 3:12, :, gate] = value
    narrow = {name: x.float().requires_grad_(name != "m") for name, x in inputs.items()}
    h, *_ = run(narrow, None)
    leaves = [narrow["gates"], narrow["weight"]]
    assert all(x.isfinite().all() for x in (h, *torch.autograd.grad(h.sum(), leaves)))
    assert_near(h.double(), run({name: x.double() for name, x in narrow.items()}, None)[0], "float32")


def test_the_normaliser_is_at_least_1_once_something_is_written() -> None:
    inputs = draw(19) | fresh()
    for length in range(1, 20):
        state = SLSTMState(*(inputs[name] for name in "hcnm"))
        _, after = recurrent(gates=inputs["gates"][:, :length], weight=inputs["weight"], starts=None, state=state)
        assert (after.n >= 1.0).all()


def test_a_bfloat16_sequence_is_computed_in_the_float32_of_its_state() -> None:
    inputs = {name: x.float() for name, x in draw(9).items()}
    inputs["gates"], inputs["weight"] = inputs["gates"].bfloat16(), inputs["weight"].bfloat16()
    wide = {name: x.float() for name, x in inputs.items()}
    for actual, expected in zip(run(inputs, None), run(wide, None), strict=True):
        assert actual.dtype == torch.float32 and torch.equal(actual, expected)
