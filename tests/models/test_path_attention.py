"""PaTH attention: the layer with its parts written out, decoding behind a start, what it costs and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.path_attention import PathAttention
from tests.models import built
from tests.models.tolerances import assert_near

MIXER = {
    "d_model": 8,
    "backend": "torch",
    "num_heads": 2,
    "key_dim": 4,
    "direction_rank": 3,
    "conv_width": 3,
    "strength_init": 0.5,
    "forget_gate_init": 0.9,
    "chunk_size": 4,
}


def build(**changes: Any) -> PathAttention:
    """A layer none of whose parameters is at a neutral value."""
    layer = built.mixer(PathAttention, {**MIXER, **changes}).double()
    generator = torch.Generator().manual_seed(0)
    layer.reset_parameters(generator)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return layer


def draw(length: int) -> Tensor:
    return torch.randn(2, length, 8, generator=torch.Generator().manual_seed(length), dtype=torch.float64)


@pytest.mark.parametrize("forget_gate_init", [None, 0.9])
@torch.no_grad()
def test_the_layer_is_the_published_one(forget_gate_init: float | None) -> None:
    layer, x, expected = build(forget_gate_init=forget_gate_init), draw(7), []
    q, k, v = (layer.query_key_value_projection.weight @ x.mT).mT.unflatten(-1, (3, 2, 4)).unbind(2)
    mapped = x @ (layer.direction_projection.weight @ layer.direction_bottleneck.weight).T
    # A convolution's last weight meets the latest input; ours are in order of age.
    kernel = layer.convolution.weight.flip(1).unsqueeze(1)
    w = F.silu(F.conv1d(F.pad(mapped.mT, (2, 0)), kernel, groups=8)).mT.unflatten(-1, (2, 4))
    w = w / w.norm(dim=-1, keepdim=True)
    beta = 2.0 * torch.sigmoid(layer.strength.projection(x))
    gate = torch.zeros_like(beta) if layer.forget_gate is None else layer.forget_gate.projection(x).sigmoid().log()
    for t in range(7):
        for head in range(2):
            product, decay, logits = torch.eye(4).double().expand(2, 4, 4), torch.zeros(2).double(), []
            for j in range(t, -1, -1):
                logits.append(torch.einsum("bi,bij,bj->b", q[:, t, head], product, k[:, j, head]) / math.sqrt(4) + decay)
                w_j = w[:, j, head]
                H = torch.eye(4).double() - beta[:, j, head, None, None] * w_j.unsqueeze(2) * w_j.unsqueeze(1)
                product, decay = product @ H, decay + gate[:, j, head]
            weights = torch.stack(logits, dim=1).softmax(1)
            expected.append((weights.unsqueeze(-1) * v[:, : t + 1, head].flip(1)).sum(1))
    o = torch.stack(expected, dim=1).view(2, 7, 8)
    assert_near(layer(x)[0], o @ layer.output_projection.weight.T, "float64")


@pytest.mark.parametrize("forget_gate_init", [None, 0.9])
@torch.no_grad()
def test_decoding_in_place_sees_no_document_before(forget_gate_init: float | None) -> None:
    """The documents of a batch began at other places, so that their tokens go to other slots."""
    layer, x = build(forget_gate_init=forget_gate_init), draw(15)
    starts = torch.zeros(2, 15, dtype=torch.bool)
    starts[0, 4] = starts[1, 9] = True
    expected, _ = layer(x, starts=starts)
    _, state = layer(x[:, :10], starts=starts[:, :10])
    assert state["position"].tolist() == [6, 1]
    reserved = layer.reserve(state, 5)
    for t in range(10, 15):
        assert_near(layer.step_(x[:, t], reserved), expected[:, t], "float64")


@torch.no_grad()
def test_keys_are_rewritten_in_float32_whatever_the_weights_are() -> None:
    layer, x = build().bfloat16(), draw(9).bfloat16()
    y, state = layer(x[:, :8])
    reserved = layer.reserve(state, 1)
    y_t = layer.step_(x[:, 8], reserved)
    assert y.dtype == y_t.dtype == torch.bfloat16
    assert (state["k"].dtype, state["decay"].dtype, state["v"].dtype) == (torch.float32, torch.float32, torch.bfloat16)
    assert (reserved["keys"].dtype, reserved["decays"].dtype, reserved["cache"].dtype) == (
        torch.float32,
        torch.float32,
        torch.bfloat16,
    )


@torch.no_grad()
def test_a_start_of_beta_at_1_takes_out_what_lies_along_w() -> None:
    layer = built.mixer(PathAttention, MIXER)
    layer.reset_parameters(torch.Generator().manual_seed(0))
    layer.strength.projection.weight.zero_()
    x = draw(5).float()
    inputs, _, _ = layer._inputs(x, layer.init_state(2)["conv"], None)
    assert_near(inputs["beta"], torch.ones(2, 5, 2), "float32")
    _, state = layer(x)
    assert_near((state["k"][:, :, :-1] * inputs["w"][:, -1].unsqueeze(2)).sum(-1), torch.zeros(2, 2, 4), "float32")


def test_flops_are_those_of_turning_and_reading_the_cache() -> None:
    """At token t of 5, t - 1 keys are turned and t are read, each by two contractions of a head."""
    layer = built.mixer(PathAttention, MIXER)
    linear = 3 * 8 * 8 + 8 * 3 + 3 * 8 + 8 * 3 + 2 * 8 * 2 + 8 * 8
    assert layer.forward_flops_per_token(5) == pytest.approx(2 * linear + 2 * 2 * 8 * (2.0 + 3.0))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_heads": 0}, "num_heads=0"),
        ({"key_dim": 0}, "key_dim=0"),
        ({"direction_rank": 0}, "direction_rank=0"),
        ({"conv_width": 0}, "conv_width=0"),
        ({"strength_init": 1.0}, "strength_init=1 "),
        ({"forget_gate_init": 0.0}, "forget_gate_init=0 "),
        ({"chunk_size": 0}, "chunk_size=0"),
    ],
)
def test_what_the_layer_refuses(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build(**changes)
