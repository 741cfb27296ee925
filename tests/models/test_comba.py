"""Comba: its equations, what it reads before the state decays, and that its authors' kernels leave no d in the state."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from models.comba import Comba
from models.deltanet import DeltaNet
from tests.models import by_hand
from tests.models.by_hand import D_MODEL, HEADS, KEYS, VALUES, B, normal
from tests.models.tolerances import assert_near

SETTINGS = {"unit_length": "first", "feedback_init": 1.0, "correction_init": 1.0}
FLA = {"unit_length": "last", "feature_map": "silu"}


def build(**changes: Any) -> Comba:
    return by_hand.build(Comba, **{**SETTINGS, **changes})


def step(
    layer: Comba, x_t: Tensor, q: Tensor, k: Tensor, v: Tensor, state: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    k, v, beta = k[:, 0], v[:, 0], by_hand.gate(layer.input_gate, x_t)[..., None]
    p = k / (1.0 + torch.exp(-layer.feedback))[:, None]
    q = q - layer.correction[:, None] * p
    if layer.settings.unit_length == "last":
        q, k, p = by_hand.unit(q), by_hand.unit(k), by_hand.unit(p)
    returned = torch.einsum("bhvk,bhk->bhv", state["G"], p)
    G = state["G"] * by_hand.decay(layer.decay, x_t)[..., None] + torch.einsum("bhv,bhk->bhvk", beta * (v - returned), k)
    return torch.einsum("bhvk,bhk->bhv", G, q), {"G": G}


both_forms = pytest.mark.parametrize("changes", [{}, FLA], ids=["meant", "fla"])


@both_forms
@pytest.mark.parametrize("length", [1, 7, 19])
def test_the_layer_is_its_equations(changes: dict[str, Any], length: int) -> None:
    by_hand.assert_layer_is(build(**changes), step, length=length)


@both_forms
@pytest.mark.parametrize("begins", [(0,), (3, 4), (8, 18)])
def test_a_document_starts_from_nothing(changes: dict[str, Any], begins: tuple[int, ...]) -> None:
    by_hand.assert_layer_is(build(**changes), step, length=19, begins=begins)


@pytest.mark.parametrize("log_decay", [-0.1, -39.0, -41.0, -200.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_what_is_erased_is_read_before_the_state_decays(log_decay: float, dtype: torch.dtype) -> None:
    """G k = gamma G k + beta (v - G p) k^T k, however strong the decay; a read behind it would leave v of beta = 1."""
    layer, G = build().to(dtype), normal(B, HEADS, VALUES, KEYS, seed=3).to(dtype)
    k, v = by_hand.unit(normal(B, 1, HEADS, KEYS, seed=4)).to(dtype), normal(B, 1, HEADS, VALUES, seed=5).to(dtype)
    inputs = {"q": k, "k": k, "v": v, "beta": torch.ones(B, 1, HEADS, dtype=dtype)}
    strong = torch.full((B, 1, HEADS), log_decay, dtype=dtype)
    _, after = layer.recurrence(**inputs, log_decay=strong, state={"G": G})
    returned = torch.einsum("bhvk,bhk->bhv", G, k[:, 0])
    expected = math.exp(log_decay) * returned + v[:, 0] - torch.sigmoid(layer.feedback)[:, None] * returned
    assert_near(torch.einsum("bhvk,bhk->bhv", after["G"], k[:, 0]), expected, str(dtype).removeprefix("torch."))


@torch.no_grad()
def test_any_decay_is_safe_in_float32() -> None:
    """Chunks and steps agree where one token decays by more than float32 can hold the inverse of, and the next by nothing."""
    layer = build()
    x = normal(B, 40, D_MODEL, seed=2)
    inputs = layer.recurrence_inputs(x, layer.init_state(B), starts=None).inputs
    strong = torch.arange(40).remainder(3).eq(1)
    inputs["log_decay"] = torch.where(strong[None, :, None], -200.0, -1e-3).double().expand(B, 40, HEADS)
    narrow = {name: each.float() for name, each in inputs.items()}
    o, G = build().float().recurrence(**narrow, state={"G": torch.ones(B, HEADS, VALUES, KEYS)})
    S, rows = torch.ones(B, HEADS, VALUES, KEYS, dtype=torch.float64), []
    for t in range(40):
        k, p = inputs["k"][:, t], inputs["k"][:, t] * torch.sigmoid(layer.feedback)[:, None]
        missed = inputs["v"][:, t] - torch.einsum("bhvk,bhk->bhv", S, p)
        S = inputs["log_decay"][:, t].exp()[..., None, None] * S
        S = S + torch.einsum("bhv,bhk->bhvk", inputs["beta"][:, t, :, None] * missed, k)
        rows.append(torch.einsum("bhvk,bhk->bhv", S, inputs["q"][:, t] - layer.correction[:, None] * p))
    assert_near(o.double(), torch.stack(rows, dim=1), "float32")
    assert_near(G["G"].double(), S, "float32")


def state_after(layer: Comba, feedback: float) -> Tensor:
    layer.feedback.fill_(feedback)
    return layer(normal(B, 19, D_MODEL, seed=2))[1]["G"]


@torch.no_grad()
def test_with_unit_length_last_no_d_is_in_the_state() -> None:
    """The unit vector of sigmoid(d) k is that of k; with unit length first it is not."""
    for changes, same in ((FLA, True), ({}, False)):
        one, other = state_after(build(**changes), 1.0), state_after(build(**changes), -1.0)
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-9) is same


@torch.no_grad()
def test_without_decay_feedback_and_correction_it_is_deltanet() -> None:
    layer, x = build(decay_rates=None), normal(B, 19, D_MODEL, seed=2)
    layer.feedback.fill_(50.0)
    layer.correction.zero_()
    plain = by_hand.build(DeltaNet, decay_rates=None)
    plain.load_state_dict({name: x for name, x in layer.state_dict().items() if name in plain.state_dict()})
    assert_near(layer(x)[0], plain(x)[0], "float64")


@torch.no_grad()
def test_with_unit_length_last_the_length_of_q_and_k_decides_the_read_out() -> None:
    """q - D p is formed of lengths that the unit vectors don't have: a longer key is corrected for more."""
    layer = build(**FLA)
    inputs = layer.recurrence_inputs(normal(B, 19, D_MODEL, seed=2), layer.init_state(B), starts=None).inputs
    longer = {**inputs, "k": 3.0 * inputs["k"]}
    (o, G), (other, other_G) = (layer.recurrence(**each, state=layer.init_state(B)) for each in (inputs, longer))
    assert_near(G["G"], other_G["G"], "float64")
    assert (o - other).norm() > 0.1 * o.norm()


def test_what_the_layer_refuses() -> None:
    with pytest.raises(ValueError, match="feature_map=silu_l2 .* silu with unit_length=last"):
        build(unit_length="last")
