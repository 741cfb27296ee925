"""Kaczmarz linear attention: its equations, its step and what unit keys make of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.deltanet import DeltaNet
from models.kaczmarz import Kaczmarz
from tests.models import by_hand
from tests.models.by_hand import D_MODEL, HEADS, KEYS, VALUES, B, normal
from tests.models.tolerances import assert_near


def build(**changes: Any) -> Kaczmarz:
    return by_hand.build(Kaczmarz, **{"feature_map": "silu", "step_eps": 1e-6, "output_gate": "swish", **changes})


def step(
    layer: Kaczmarz, x_t: Tensor, q: Tensor, k: Tensor, v: Tensor, state: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    k, v, eta = k[:, 0], v[:, 0], by_hand.gate(layer.input_gate, x_t)[..., None]
    G = state["G"] * by_hand.decay(layer.decay, x_t)[..., None]
    missed = v - torch.einsum("bhvk,bhk->bhv", G, k)
    G = G + torch.einsum("bhv,bhk->bhvk", eta / ((k * k).sum(-1, keepdim=True) + layer.settings.step_eps) * missed, k)
    return torch.einsum("bhvk,bhk->bhv", G, q), {"G": G}


@pytest.mark.parametrize("length", [1, 7, 19])
@pytest.mark.parametrize("step_eps", [1e-6, 0.5])
def test_the_layer_is_its_equations(step_eps: float, length: int) -> None:
    by_hand.assert_layer_is(build(step_eps=step_eps), step, length=length)


@pytest.mark.parametrize("begins", [(0,), (3, 4), (8, 18)])
def test_a_document_starts_from_nothing(begins: tuple[int, ...]) -> None:
    by_hand.assert_layer_is(build(), step, length=19, begins=begins)


@torch.no_grad()
def test_with_unit_keys_it_is_gated_deltanet() -> None:
    layer, x = build(feature_map="silu_l2", step_eps=1e-12), normal(B, 19, D_MODEL, seed=2)
    plain = by_hand.build(DeltaNet, output_gate="swish")
    plain.load_state_dict(layer.state_dict())
    assert_near(layer(x)[0], plain(x)[0], "float64")


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
@torch.no_grad()
def test_a_whole_step_solves_for_the_token_however_long_its_key_is(scale: float) -> None:
    layer = build(step_eps=1e-12, convolution="none", feature_map="identity")
    layer.input_gate.projection.bias.fill_(50.0)
    layer.query_key_projection.weight.mul_(scale)
    inputs = layer.recurrence_inputs(normal(B, 1, D_MODEL, seed=2), layer.init_state(B), starts=None).inputs
    state = {"G": normal(B, HEADS, VALUES, KEYS, seed=3)}
    o, _ = layer.recurrence(**inputs | {"q": inputs["k"]}, state=state)
    assert_near(o, inputs["v"], "float64")


@torch.no_grad()
def test_a_key_of_zero_writes_nothing_and_is_no_division_by_zero() -> None:
    layer, x = build(), normal(B, 3, D_MODEL, seed=2)
    layer.query_key_projection.weight.zero_()
    _, after = layer(x, {**layer.init_state(B), "G": normal(B, HEADS, VALUES, KEYS, seed=3)})
    decay = torch.stack([by_hand.decay(layer.decay, x[:, t]) for t in range(3)]).prod(0)
    assert_near(after["G"], decay[..., None] * normal(B, HEADS, VALUES, KEYS, seed=3), "float64")


def test_a_step_needs_an_eps() -> None:
    with pytest.raises(ValueError, match="step_eps=0"):
        build(step_eps=0.0)
