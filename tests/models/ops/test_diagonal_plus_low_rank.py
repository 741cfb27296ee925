"""RWKV-7's rule against its definition, written out in matrices: outputs, states and all gradients."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.ops import diagonal_plus_low_rank
from tests.models.tolerances import assert_near

B, H, K, V = 2, 3, 5, 4
UNKNOWN = float("-inf")

Tensors = dict[str, Tensor]
Form = Callable[..., tuple[Tensor, Tensor]]
FORMS = {
    "recurrent": partial(diagonal_plus_low_rank.recurrent, floor=UNKNOWN),
    "chunked": partial(diagonal_plus_low_rank.chunked, floor=UNKNOWN, chunk_size=8),
}

each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


def draw(length: int) -> Tensors:
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(length), dtype=torch.float64)
    e = F.normalize(normal(B, length, H, K), dim=-1)
    drawn = {"q": normal(B, length, H, K), "k": normal(B, length, H, K), "v": normal(B, length, H, V)}
    drawn |= {"e": e, "a": normal(B, length, H, K).sigmoid() * e}
    return drawn | {"log_decay": -0.6 * normal(B, length, H, K).sigmoid(), "state": normal(B, H, V, K)}


def defined(*, q: Tensor, k: Tensor, v: Tensor, e: Tensor, a: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """G (D - e a^T) + v k^T, one sequence and head at a time."""
    outputs, after = [], []
    for b, h in itertools.product(range(B), range(H)):
        G, rows = state[b, h], []
        for q_t, k_t, v_t, e_t, a_t, log_t in zip(*(x[b, :, h] for x in (q, k, v, e, a, log_decay)), strict=True):
            kept = torch.where(log_t.isneginf(), torch.zeros_like(G), G)
            G = kept @ (torch.diag(log_t.exp()) - torch.outer(e_t, a_t)) + torch.outer(v_t, k_t)
            rows.append(G @ q_t)
        outputs.append(torch.stack(rows))
        after.append(G)
    return torch.stack(outputs).unflatten(0, (B, H)).movedim(2, 1), torch.stack(after).view(B, H, V, K)


def results(form: Form, inputs: Tensors) -> list[Tensor]:
    """Outputs, and the gradient into every input of a fixed random weighting of all of them."""
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    outputs, generator = form(**leaves), torch.Generator().manual_seed(0)
    loss = sum((y * torch.randn(y.shape, generator=generator, dtype=torch.float64)).sum() for y in outputs)
    return [*outputs, *torch.autograd.grad(loss, list(leaves.values()))]


@each_form
@pytest.mark.parametrize("length", [1, 7, 8, 19])
@pytest.mark.parametrize("reset", ["nowhere", "in all channels", "in some channels"])
def test_outputs_states_and_gradients_are_the_definition_s(reset: str, length: int, form: Form) -> None:
    inputs = draw(length)
    if reset != "nowhere":
        inputs["log_decay"][:, length // 2, :, : K if reset == "in all channels" else 2] = float("-inf")
    for actual, expected in zip(results(form, inputs), results(defined, inputs), strict=True):
        assert_near(actual, expected, "float64")


@each_form
def test_a_reset_forgets_a_state_however_large(form: Form) -> None:
    inputs = draw(19)
    inputs["log_decay"][:, 5] = float("-inf")
    inputs["state"] = 1e30 * inputs["state"]
    later = {name: x[:, 5:] for name, x in inputs.items() if name != "state"}
    o, state = form(**inputs)
    fresh_o, fresh_state = form(**later, state=torch.zeros_like(state))
    assert_near(o[:, 5:], fresh_o, "float64")
    assert_near(state, fresh_state, "float64")
