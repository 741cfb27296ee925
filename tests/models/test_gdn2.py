"""Gated DeltaNet-2: its equations, what is left of it with one gate, and the norm of its transitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.gdn2 import GatedDeltaNet2
from models.kda import KDA
from models.ops import generalized_delta_rule
from tests.models import by_hand
from tests.models.by_hand import D_MODEL, HEADS, KEYS, VALUES, B, normal
from tests.models.test_kda import decay
from tests.models.tolerances import assert_near

SETTINGS = {
    "decay_rank": 3,
    "decay_bound": None,
    "negative_eigenvalues": False,
    "output_gate_rank": 4,
    "input_gate_init": None,
}


def build(**changes: Any) -> GatedDeltaNet2:
    return by_hand.build(GatedDeltaNet2, **{**SETTINGS, **changes})


def step(
    layer: GatedDeltaNet2, x_t: Tensor, q: Tensor, k: Tensor, v: Tensor, state: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """b says how much of each channel of the key is erased, w how much of each channel of the value is written."""
    k, v = k[:, 0], v[:, 0]
    b = torch.sigmoid(x_t @ layer.erase_projection.weight.T).view(B, HEADS, KEYS)
    w = torch.sigmoid(x_t @ layer.write_projection.weight.T).view(B, HEADS, VALUES)
    if layer.settings.negative_eigenvalues:
        b = 2.0 * b
    G = state["G"] * decay(layer, x_t)[:, :, None, :]
    erased = torch.einsum("bhvk,bhk->bhv", G, b * k)
    G = G - torch.einsum("bhv,bhk->bhvk", erased, k) + torch.einsum("bhv,bhk->bhvk", w * v, k)
    return torch.einsum("bhvk,bhk->bhv", G, q), {"G": G}


@pytest.mark.parametrize("length", [1, 7, 19])
@pytest.mark.parametrize("changes", [{}, {"negative_eigenvalues": True}], ids=str)
def test_the_layer_is_its_equations(changes: dict[str, Any], length: int) -> None:
    by_hand.assert_layer_is(build(**changes), step, length=length)


@pytest.mark.parametrize("begins", [(0,), (3, 4), (8, 18)])
def test_a_document_starts_from_nothing(begins: tuple[int, ...]) -> None:
    by_hand.assert_layer_is(build(), step, length=19, begins=begins)


@torch.no_grad()
def test_one_gate_for_both_is_kda() -> None:
    layer, kda, x = build(), by_hand.build(KDA, **SETTINGS | {"input_gate_init": 0.5}), normal(B, 19, D_MODEL, seed=2)
    inputs = layer.recurrence_inputs(x, layer.init_state(B), starts=None).inputs
    beta = kda.beta(x)
    one = {"erase": beta.unsqueeze(-1).expand_as(inputs["erase"]), "write": beta.unsqueeze(-1).expand_as(inputs["write"])}
    state = {"G": normal(B, HEADS, VALUES, KEYS, seed=3)}
    o, after = layer.mix(inputs | one, state)
    shared = {name: inputs[name] for name in ("q", "k", "v", "log_decay")}
    expected, expected_after = kda.recurrence(**shared, beta=beta, state=state)
    assert_near(o, expected, "float64")
    assert_near(after["G"], expected_after["G"], "float64")


@torch.no_grad()
def test_doubling_b_leaves_w() -> None:
    plain, doubled, x = build(), build(negative_eigenvalues=True), normal(B, 19, D_MODEL, seed=2)
    doubled.load_state_dict(plain.state_dict())
    gates, others = plain.gates(x), doubled.gates(x)
    assert torch.equal(others["erase"], 2.0 * gates["erase"]) and torch.equal(others["write"], gates["write"])
    assert others["erase"].max() > 1.0 >= others["write"].max()


@torch.no_grad()
def test_a_transition_may_lengthen_though_its_eigenvalues_do_not() -> None:
    """I - (b * k) k^T is not symmetric: 1 - sum(b k^2) in [0, 1] does not bound its norm by 1."""
    b, k = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.tensor([0.6, 0.8], dtype=torch.float64)
    G = torch.tensor([[0.8, 0.6]], dtype=torch.float64).mul(1.0).view(1, 1, 1, 2)
    e, a, nothing = (x.view(1, 1, 1, -1) for x in (b * k, k, torch.zeros(1, dtype=torch.float64)))
    zero = torch.zeros(1, 1, 1, dtype=torch.float64)
    _, after = generalized_delta_rule.recurrent(q=a, e=e, a=a, u=nothing, log_decay=zero, erase=None, write=None, state=G)
    transition = torch.eye(2, dtype=torch.float64) - torch.outer(b * k, k)
    assert_near(after.view(2), G.view(2) @ transition, "float64")
    eigenvalues = torch.linalg.eigvals(transition).abs()
    assert eigenvalues.max() <= 1.0 + 1e-12 < torch.linalg.matrix_norm(transition, 2)


def test_it_has_no_beta() -> None:
    with pytest.raises(ValueError, match="input_gate_init=0.5"):
        build(input_gate_init=0.5)
