"""RWKV-7's time mixing: the layer against the paper's equations token by token, its start, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.ops import diagonal_plus_low_rank
from models.rwkv7 import RWKV7, LowRank
from tests.models import built
from tests.models.tolerances import assert_near

B, D, H, K, V = 2, 10, 3, 4, 5
MIXER = {
    "d_model": D,
    "backend": "torch",
    "num_heads": H,
    "key_dim": K,
    "value_dim": V,
    "decay_rank": 2.5,
    "rate_rank": 2.5,
    "gate_rank": 5.0,
    "depth": 0.5,
    "norm_eps": 6.4e-4,
    "chunk_size": 4,
}


def build(**changes: Any) -> RWKV7:
    layer = built.mixer(RWKV7, {**MIXER, **changes})
    layer.reset_parameters(torch.Generator().manual_seed(0))
    return layer.double()


def stirred() -> RWKV7:
    """A layer none of whose parameters is at a neutral value."""
    layer, generator = build(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return layer


def draw(length: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """An input, starts in it, and a state in the middle of a sequence."""
    generator = torch.Generator().manual_seed(length)
    x, before, G = (torch.randn(s, generator=generator).double() for s in ((B, length, D), (B, D), (B, H, V, K)))
    return x, torch.rand(B, length, generator=generator) < 0.2, {"x": before, "G": G}


def low_rank(part: LowRank, x: Tensor) -> tuple[Tensor, Tensor]:
    """x W_1, and the matrix W_2 of what is computed from it."""
    return x @ part.bottleneck.weight.T, part.projection.weight.T


def written_out(layer: RWKV7, x: Tensor, starts: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The outputs and the last state of every sequence: head by head, both terms reading the state before its decay."""
    rows, states = [], []
    for b in range(B):
        before, G, outputs = state["x"][b], state["G"][b], []
        for t in range(x.shape[1]):
            if starts[b, t]:
                before, G = torch.zeros_like(before), torch.zeros_like(G)
            x_t = x[b, t]
            x_r, x_w, x_k, x_v, x_a, x_g = (x_t + mu * (before - x_t) for mu in layer.token_shift.weight)
            r, c, v = layer.query_projection.weight @ x_r, layer.key_projection.weight @ x_k, layer.value_projection.weight @ x_v
            (w_1, W_2), (a_1, A_2), (g_1, G_2) = (
                low_rank(part, y) for part, y in ((layer.decay, x_w), (layer.rate, x_a), (layer.gate, x_g))
            )
            w = torch.exp(-torch.sigmoid(torch.tanh(w_1) @ W_2 + layer.decay.projection.bias) / math.sqrt(math.e))
            a, g = torch.sigmoid(a_1 @ A_2 + layer.rate.projection.bias), torch.sigmoid(g_1) @ G_2
            kappa = (c * layer.removal_scale).view(H, K)
            kappa = kappa / kappa.norm(dim=1, keepdim=True)
            k = (c * (1.0 + (a - 1.0) * layer.rate_in_key)).view(H, K)
            r, v, w, a, rho = r.view(H, K), v.view(H, V), w.view(H, K), a.view(H, K), layer.bonus.view(H, K)
            after, y = [], []
            for h in range(H):
                erased = torch.outer(G[h] @ kappa[h], a[h] * kappa[h])
                after.append(G[h] * w[h] - erased + torch.outer(v[h], k[h]))
                o = after[h] @ r[h]
                o = (o - o.mean()) / torch.sqrt(o.var(unbiased=False) + 6.4e-4)
                o = o * layer.norm_weight.view(H, V)[h] + layer.norm_bias.view(H, V)[h]
                y.append(o + (r[h] * rho[h] * k[h]).sum() * v[h])
            G, before = torch.stack(after), x_t
            outputs.append(layer.output_projection.weight @ (torch.cat(y) * g))
        rows.append(torch.stack(outputs))
        states.append(G)
    return torch.stack(rows), torch.stack(states)


@pytest.mark.parametrize("length", [1, 2, 8, 13])
def test_the_layer_is_the_published_one(length: int) -> None:
    """In outputs, in the state and in the gradients into all parameters, the input and the state before."""
    layer, (x, starts, state) = stirred(), draw(length)
    if length == 1:
        starts[:] = torch.tensor([[False], [True]])
    leaves = {"input": x, **state}
    sources = [*(leaf.requires_grad_() for leaf in leaves.values()), *layer.parameters()]
    results = []
    for y, G in (layer_of(layer, x, starts, state), written_out(layer, x, starts, state)):
        weights = [torch.randn(z.shape, generator=torch.Generator().manual_seed(2)).double() for z in (y, G)]
        loss = (y * weights[0]).sum() + (G * weights[1]).sum()
        results.append([y, G, *torch.autograd.grad(loss, sources)])
    for actual, expected in zip(*results, strict=True):
        assert actual.isfinite().all()
        assert_near(actual, expected, "float64")


def layer_of(layer: RWKV7, x: Tensor, starts: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    y, after = layer(x, state, starts=starts)
    assert torch.equal(after["x"], x[:, -1])
    return y, after["G"]


@torch.no_grad()
def test_a_decay_leaves_more_than_half_of_a_channel_whatever_its_logit() -> None:
    layer = build()
    layer.decay.start_at(torch.linspace(-1e4, 1e4, H * K))
    decay = layer.log_decay(draw(5)[0]).exp()
    assert decay.min() == pytest.approx(math.exp(-math.exp(-0.5))) and decay.max() == pytest.approx(1.0)


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_shifts_and_gates_start_where_the_authors_start_a_layer_of_that_depth(depth: float) -> None:
    layer = build(depth=depth)
    names = ("query", "decay", "key", "value", "rate", "gate")
    powers = dict(zip(names, (0.2, 0.9, 0.7, 0.7, 0.9, 0.2), strict=True))
    for row, name in zip(layer.token_shift.weight, names, strict=True):
        assert_near(row, torch.tensor([1 - (n / D) ** (powers[name] * (1 - depth)) for n in range(D)]).double(), "float32")
    for n in range(H * K):
        u = ((n % K) - (K - 1) / 2) / ((K - 1) / 2)
        z, linear = u * abs(u), n / (H * K - 1) - 0.5
        w_0 = -6 + 6 * (n / (H * K - 1)) ** (1 + depth**0.3) + 0.5 + 2.5 * z
        assert layer.decay.projection.bias[n].item() == pytest.approx(w_0, abs=1e-6)
        assert layer.rate.projection.bias[n].item() == pytest.approx(-0.19 + 0.3 * z + 0.4 * linear, abs=1e-6)
        assert layer.removal_scale[n].item() == pytest.approx(0.71 - 0.1 * linear, abs=1e-6)
    assert (layer.rate_in_key - 1.02).abs().max() < 1e-6 and (layer.bonus + 0.04).abs().max() < 1e-6


def test_low_ranks_start_at_zero_and_matrices_in_their_ranges() -> None:
    layer = build(key_dim=40, value_dim=40)
    for part in (layer.decay, layer.rate, layer.gate):
        W_2 = part.projection.weight
        assert not part.bottleneck.weight.any()
        assert_near(W_2.T @ W_2, 0.01 * torch.eye(W_2.shape[1]).double(), "float32")
    for linear, bound in ((layer.query_projection, 0.5), (layer.key_projection, 0.05), (layer.value_projection, 0.5)):
        assert linear.weight.abs().max().item() == pytest.approx(bound / math.sqrt(D), rel=1e-2)
    # The authors' 0 would leave all else without a gradient at first.
    assert layer.output_projection.weight.std().item() == pytest.approx((H * 40) ** -0.5, rel=0.1)


@pytest.mark.parametrize(("d_model", "ranks"), [(64, (32, 32, 32)), (768, (64, 64, 128)), (1536, (96, 96, 192))])
def test_ranks_follow_the_root_of_d_model(d_model: int, ranks: tuple[int, ...]) -> None:
    with torch.device("meta"):
        layer = built.mixer(RWKV7, {**MIXER, "d_model": d_model})
    assert tuple(part.bottleneck.out_features for part in (layer.decay, layer.rate, layer.gate)) == ranks


@torch.no_grad()
def test_writing_again_with_a_rate_of_1_replaces_what_a_key_returned() -> None:
    """With a = 1, no decay and the removal key along the key it is a delta rule of strength 1."""
    generator = torch.Generator().manual_seed(0)
    k = F.normalize(torch.randn(1, 1, H, K, generator=generator).double(), dim=-1)
    v, G = torch.randn(1, 1, H, V, generator=generator).double(), torch.randn(1, H, V, K, generator=generator).double()
    keys = {"q": k, "k": k, "e": k, "a": k, "log_decay": torch.zeros_like(k)}
    o, _ = diagonal_plus_low_rank.recurrent(**keys, v=v, state=G, floor=0.0)
    assert_near(o, v, "float64")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_heads": 0}, "num_heads=0"),
        ({"decay_rank": 0.0}, "decay_rank=0 "),
        ({"depth": 1.5}, "depth=1.5"),
        ({"norm_eps": 0.0}, "norm_eps=0 "),
        ({"chunk_size": 0}, "chunk_size=0"),
    ],
)
def test_what_the_layer_refuses(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build(**changes)
