"""The published GLA block against its equations, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from models.gla import GatedLinearAttention
from tests.models import built
from tests.models.tolerances import assert_near

SETTINGS = {
    "d_model": 12,
    "backend": "torch",
    "num_heads": 2,
    "value_dim": 6,
    "key_ratio": 0.5,
    "decay_rank": 4,
    "decay_temperature": 16.0,
    "norm_eps": 1e-6,
    "chunk_size": 4,
}


def build(**changes: Any) -> GatedLinearAttention:
    layer = built.mixer(GatedLinearAttention, {**SETTINGS, **changes}).double()
    layer.reset_parameters(torch.Generator().manual_seed(0))
    return layer


@torch.no_grad()
def test_the_layer_is_the_paper_s() -> None:
    layer, x = build(), torch.randn(9, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    layer.decay_projection.bias.fill_(0.3)
    layer.gate_projection.bias.fill_(-0.2)
    outputs, S = [], torch.zeros(2, 3, 6, dtype=torch.float64)
    for x_t in x:
        q, k = (layer.query_key_projection.weight @ x_t).view(2, 2, 3)
        v = (layer.value_projection.weight @ x_t).view(2, 6)
        alpha = (layer.decay_projection.weight @ layer.decay_bottleneck.weight @ x_t + 0.3).sigmoid().pow(1 / 16).view(2, 3)
        S = alpha.unsqueeze(-1) * S + k.unsqueeze(-1) * v.unsqueeze(-2)
        o = F.rms_norm(torch.einsum("hk,hkv->hv", q, S), (6,), eps=1e-6)
        r = F.silu(layer.gate_projection.weight @ x_t - 0.2)
        outputs.append(layer.output_projection.weight @ (r * o.flatten()))
    y, state = layer(x.unsqueeze(0))
    assert_near(y[0], torch.stack(outputs), "float64")
    assert_near(state["G"][0], S.mT, "float64")


@torch.no_grad()
def test_a_gate_starts_near_one() -> None:
    """sigmoid(0)^(1/16) is 0.958, and a logit of a few leaves it there."""
    x = torch.randn(1, 50, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    alpha = build().log_decay(x).exp()
    assert alpha.min() > 0.7 and alpha.mean() == pytest.approx(0.5 ** (1 / 16), abs=0.02)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"key_ratio": 0.4}, "key_ratio=0.4"),
        ({"key_ratio": 0.0}, "key_ratio=0 is"),
        ({"decay_rank": 0}, "decay_rank=0"),
        ({"decay_temperature": 0.0}, "decay_temperature=0 is"),
        ({"num_heads": 0}, "num_heads=0"),
        ({"chunk_size": 0}, "chunk_size=0"),
    ],
)
def test_what_the_layer_refuses(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build(**changes)
