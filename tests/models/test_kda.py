"""Kimi Delta Attention: its equations, its decay and what it is without channels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from models.components import STEP_SIZES, MambaDecay
from models.deltanet import DeltaNet
from models.kda import KDA
from models.ops import delta_rule
from tests.models import by_hand
from tests.models.by_hand import D_MODEL, HEADS, KEYS, VALUES, B, normal
from tests.models.tolerances import assert_near

SETTINGS = {"decay_rank": 3, "decay_bound": None, "negative_eigenvalues": False, "output_gate_rank": 4}


def build(**changes: Any) -> KDA:
    return by_hand.build(KDA, **{**SETTINGS, **changes})


def step(layer: KDA, x_t: Tensor, q: Tensor, k: Tensor, v: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """What was written decays, channel by channel; what the rest returns for the key is moved towards the value."""
    k, v, beta = k[:, 0], v[:, 0], by_hand.gate(layer.input_gate, x_t)[..., None]
    if layer.settings.negative_eigenvalues:
        beta = 2.0 * beta
    G = state["G"] * decay(layer, x_t)[:, :, None, :]
    returned = torch.einsum("bhvk,bhk->bhv", G, k)
    G = G + torch.einsum("bhv,bhk->bhvk", beta * (v - returned), k)
    return torch.einsum("bhvk,bhk->bhv", G, q), {"G": G}


def decay(layer: KDA, x_t: Tensor) -> Tensor:
    bound, part = layer.settings.decay_bound, layer.decay
    if bound is None:
        return by_hand.decay(part, x_t)
    hidden = x_t if part.bottleneck is None else x_t @ part.bottleneck.weight.T
    logits = (hidden @ part.projection.weight.T + part.step_size_bias).view(B, HEADS, KEYS)
    return torch.exp(-bound / (1.0 + torch.exp(-torch.exp(part.log_rate)[:, None] * logits)))


@pytest.mark.parametrize("length", [1, 7, 19])
@pytest.mark.parametrize(
    "changes", [{}, {"negative_eigenvalues": True}, {"decay_bound": 5.0, "decay_rates": [1, 1]}, {"decay_rank": None}], ids=str
)
def test_the_layer_is_its_equations(changes: dict[str, Any], length: int) -> None:
    by_hand.assert_layer_is(build(**changes), step, length=length)


@pytest.mark.parametrize("begins", [(0,), (3, 4), (8, 18)])
def test_a_document_starts_from_nothing(begins: tuple[int, ...]) -> None:
    by_hand.assert_layer_is(build(), step, length=19, begins=begins)


@torch.no_grad()
def test_channels_that_decay_alike_are_gated_deltanet() -> None:
    layer, x = build(), normal(B, 19, D_MODEL, seed=2)
    inputs = layer.recurrence_inputs(x, layer.init_state(B), starts=None).inputs
    alike = {**inputs, "log_decay": inputs["log_decay"][..., :1].expand_as(inputs["log_decay"])}
    G = normal(B, HEADS, VALUES, KEYS, seed=3)
    o, after = layer.recurrence(**alike, state={"G": G})
    expected, state = delta_rule.recurrent(**{**inputs, "log_decay": inputs["log_decay"][..., 0]}, state=G)
    assert_near(o, expected, "float64")
    assert_near(after["G"], state, "float64")


@torch.no_grad()
def test_the_state_decays_before_it_is_read_with_the_key() -> None:
    """With beta = 1 and a unit key the value is what the state returns for the key, however much was forgotten."""
    layer = build()
    k, v = by_hand.unit(normal(B, 1, HEADS, KEYS, seed=4)), normal(B, 1, HEADS, VALUES, seed=5)
    log_decay = -3.0 * torch.rand(B, 1, HEADS, KEYS, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    G = normal(B, HEADS, VALUES, KEYS, seed=3)
    ones = torch.ones(B, 1, HEADS, dtype=torch.float64)
    o, _ = layer.recurrence(q=k, k=k, v=v, log_decay=log_decay, beta=ones, state={"G": G})
    assert_near(o, v, "float64")


@torch.no_grad()
def test_q_has_no_factor_and_norm_eps_alone_tells() -> None:
    """K^-1/2 on q, which the authors have, is a norm_eps K times as large."""
    layer, x = build(norm_eps=1e-3), normal(B, 19, D_MODEL, seed=2)
    y, _ = layer(x)
    scaled = build(norm_eps=1e-3 / KEYS)
    scaled.load_state_dict(layer.state_dict())
    original, scaled.mix = scaled.mix, lambda inputs, state: (original(inputs, state)[0] / math.sqrt(KEYS), state)
    assert_near(scaled(x)[0], y, "float64")


@pytest.mark.parametrize("channels", [None, 64])
@torch.no_grad()
def test_rates_and_step_sizes_start_in_their_ranges(channels: int | None) -> None:
    part = MambaDecay(d_model=8, num_heads=500, channels=channels, rank=None, bound=None, rates=(0.0, 16.0))
    part.reset_parameters(torch.Generator().manual_seed(0))
    rates, step_sizes = part.log_rate.double().exp(), torch.nn.functional.softplus(part.step_size_bias.double())
    assert 0.0 < rates.min() < 0.5 and 15.5 < rates.max() <= 16.00001 and rates.mean() == pytest.approx(8.0, abs=0.7)
    low, high = STEP_SIZES
    assert low * 0.999 < step_sizes.min() < 1.05 * low and 0.97 * high < step_sizes.max() < high * 1.001
    # Half of what is log-uniform lies below the geometric mean.
    assert (step_sizes < math.sqrt(low * high)).double().mean() == pytest.approx(0.5, abs=0.06)


@torch.no_grad()
def test_a_rate_of_zero_is_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The generator may give exactly 0, and a rate of 0 has no logarithm."""
    monkeypatch.setattr(torch, "rand", lambda shape, generator: torch.zeros(shape))
    part = MambaDecay(d_model=1, num_heads=4, channels=None, rank=None, bound=None, rates=(0.0, 16.0))
    part.reset_parameters(torch.Generator().manual_seed(0))
    assert part.log_rate.isfinite().all()


@torch.no_grad()
def test_a_bounded_decay_forgets_no_more_than_its_bound() -> None:
    layer = build(decay_bound=5.0, decay_rates=[1, 1])
    log_decay = layer.log_decay(1000.0 * normal(B, 19, D_MODEL, seed=2))
    assert -5.0 <= log_decay.min() < -4.99 and log_decay.max() > -0.01
    fresh = by_hand.build(KDA, **{**SETTINGS, "decay_bound": 5.0, "decay_rates": [1, 1]})
    fresh.reset_parameters(torch.Generator().manual_seed(0))
    assert fresh.decay.log_rate.eq(0.0).all()


@torch.no_grad()
def test_any_decay_is_safe_in_float32() -> None:
    """Rates so large that a chunk's decay is beyond what float32 can hold the inverse of."""
    layer, x = build().float(), normal(B, 40, D_MODEL, seed=2).float()
    layer.decay.log_rate.fill_(math.log(200.0))
    layer.decay.step_size_bias.fill_(1.0)
    state = layer.init_state(B)
    stepped = []
    for t in range(40):
        y, state = layer.step(x[:, t], state)
        stepped.append(y)
    assert_near(layer(x)[0], torch.stack(stepped, dim=1), "float32")


def test_mamba_s_decay_is_a_value_of_the_frame() -> None:
    layer = by_hand.build(DeltaNet)
    x = normal(B, 19, D_MODEL, seed=2)
    expected = torch.stack([by_hand.decay(layer.decay, x[:, t])[..., 0] for t in range(19)], dim=1)
    assert_near(layer.log_decay(x).exp(), expected, "float64")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"decay_rates": None}, "decay_rates=null"),
        ({"decay_rates": [4, 1]}, r"decay_rates=\[4.0,1.0\] .* the lower first"),
        ({"decay_rates": [-1, 1]}, r"decay_rates=\[-1,1\] .* from 0"),
        ({"decay_rates": [0, 0]}, r"decay_rates=\[0,0\] .* lists of numbers from 0 to 1e\+38 and numbers above 0, up to 1e\+38"),
        ({"decay_rates": 4}, "decay_rates=4 is not a list"),
        ({"forget_gate_init": 0.9}, "forget_gate_init=0.9 .* null with decay_rates"),
        ({"decay_rank": 0}, "decay_rank=0"),
        ({"affine_keys": True, "negative_eigenvalues": True}, "affine_keys=true .* false with negative_eigenvalues"),
        ({"decay_bound": 0.0}, "decay_bound=0"),
    ],
    ids=str,
)
def test_what_the_layer_refuses(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build(**changes)
