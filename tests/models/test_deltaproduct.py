"""DeltaProduct: its equations, its order of micro-steps and the rotations that delta steps with beta up to 2 are."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from models.deltanet import DeltaNet
from models.deltaproduct import DeltaProduct
from tests.models import by_hand
from tests.models.by_hand import D_MODEL, HEADS, KEYS, VALUES, B, normal
from tests.models.tolerances import assert_near

SETTINGS = {"num_householder": 2, "negative_eigenvalues": True, "output_gate": "swish"}


def build(**changes: Any) -> DeltaProduct:
    return by_hand.build(DeltaProduct, **{**SETTINGS, **changes})


def step(
    layer: DeltaProduct, x_t: Tensor, q: Tensor, k: Tensor, v: Tensor, state: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Micro-step j has the keys, values and betas of row j of [n, H, ...]; one decay comes before them all."""
    betas = by_hand.gate(layer.input_gate, x_t).view(B, -1, HEADS, 1) * (2.0 if layer.settings.negative_eigenvalues else 1.0)
    G = state["G"] if layer.decay is None else state["G"] * by_hand.decay(layer.decay, x_t)[..., None]
    for k_j, v_j, beta_j in zip(k.unbind(1), v.unbind(1), betas.unbind(1), strict=True):
        G = G + torch.einsum("bhv,bhk->bhvk", beta_j * (v_j - torch.einsum("bhvk,bhk->bhv", G, k_j)), k_j)
    return torch.einsum("bhvk,bhk->bhv", G, q), {"G": G}


@pytest.mark.parametrize("length", [1, 7, 19])
@pytest.mark.parametrize(
    "changes",
    [{"num_householder": 1}, {}, {"num_householder": 3}, {"negative_eigenvalues": False}, {"decay_rates": None}],
    ids=str,
)
def test_the_layer_is_its_equations(changes: dict[str, Any], length: int) -> None:
    by_hand.assert_layer_is(build(**changes), step, length=length)


@pytest.mark.parametrize("begins", [(0,), (3, 4), (8, 18)])
@pytest.mark.parametrize("num_householder", [2, 3])
def test_a_document_starts_from_nothing(num_householder: int, begins: tuple[int, ...]) -> None:
    by_hand.assert_layer_is(build(num_householder=num_householder), step, length=19, begins=begins)


@torch.no_grad()
def test_one_step_is_gated_deltanet() -> None:
    layer, x = build(num_householder=1, negative_eigenvalues=False), normal(B, 19, D_MODEL, seed=2)
    plain = by_hand.build(DeltaNet, output_gate="swish")
    plain.load_state_dict(layer.state_dict())
    assert_near(layer(x)[0], plain(x)[0], "float64")


def turned(layer: DeltaProduct, keys: Tensor, beta: float) -> Tensor:
    """What becomes of the state I when one token writes nothing along these keys [n, K]: the product of its steps."""
    n = len(keys)
    q = torch.zeros(1, 1, HEADS, KEYS, dtype=torch.float64)
    k = keys.view(1, n, 1, KEYS).expand(1, n, HEADS, KEYS)
    nothing, log_decay = torch.zeros(1, n, HEADS, KEYS, dtype=torch.float64), torch.zeros(1, 1, HEADS, dtype=torch.float64)
    betas = torch.full((1, n, HEADS), beta, dtype=torch.float64)
    state = {"G": torch.eye(KEYS, dtype=torch.float64).expand(1, HEADS, KEYS, KEYS)}
    return layer.recurrence(q=q, k=k, v=nothing, log_decay=log_decay, beta=betas, state=state)[1]["G"][0, 0]


@torch.no_grad()
def test_two_reflections_are_a_rotation() -> None:
    """By twice the angle between the keys, as SO(3), in which A5 lies, needs two of them."""
    angle = 0.7
    keys = torch.zeros(2, KEYS, dtype=torch.float64)
    keys[0, 0], keys[1, :2] = 1.0, torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    expected = torch.eye(KEYS, dtype=torch.float64)
    expected[:2, :2] = torch.tensor([[math.cos(2 * angle), math.sin(2 * angle)], [-math.sin(2 * angle), math.cos(2 * angle)]])
    assert_near(turned(build(value_dim=KEYS), keys, 2.0), expected, "float64")


@torch.no_grad()
def test_n_reflections_are_a_permutation_of_n_plus_one() -> None:
    """Each swaps two elements: e_i - e_j is turned round, what is orthogonal to it stays."""
    basis = torch.eye(KEYS, dtype=torch.float64)
    keys = torch.stack([basis[j] - basis[j + 1] for j in range(3)]) / math.sqrt(2.0)
    moved = turned(build(value_dim=KEYS, num_householder=3), keys, 2.0)
    cycle = basis[:, [1, 2, 3, 0, 4, 5]]
    assert_near(moved, cycle, "float64")


@torch.no_grad()
def test_betas_reach_two_only_where_negative_eigenvalues_are_asked_for() -> None:
    x = 100.0 * normal(B, 19, D_MODEL, seed=2)
    assert build().beta(x).shape == (B, 38, HEADS)
    assert build().beta(x).max() > 1.9 and build(negative_eigenvalues=False).beta(x).max() <= 1.0


def test_copies_cost_parameters() -> None:
    """(n - 1) keys and values more a head, their convolutions and betas."""

    def parameters(n: int) -> int:
        return sum(p.numel() for p in build(num_householder=n).parameters())

    keys_and_values, width = HEADS * (KEYS + VALUES), 3
    each = keys_and_values * (D_MODEL + width) + HEADS * (D_MODEL + 1)
    assert parameters(3) - parameters(2) == parameters(2) - parameters(1) == each


def test_what_the_layer_refuses() -> None:
    with pytest.raises(ValueError, match="num_householder=0"):
        build(num_householder=0)
