"""The published Mamba2 block: its recurrence against one written out, its layer against one written out, its start."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.components import linear_maps
from models.mamba2 import Mamba2
from models.ops import ssd
from tests.models import built
from tests.models.tolerances import assert_near

MIXER = {
    "d_model": 12,
    "backend": "torch",
    "expand": 2,
    "key_dim": 5,
    "value_dim": 6,
    "num_groups": 2,
    "conv_width": 4,
    "step_size_min": 1e-3,
    "step_size_max": 0.1,
    "decay_rate_min": 1.0,
    "decay_rate_max": 16.0,
    "norm_eps": 1e-5,
    "chunk_size": 8,
}
B, H, G, K, V = 2, 4, 2, 5, 6


def draw(length: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length)
    normal = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes(length)]
    q, k, v, dt, A, state = normal
    return {"q": q, "k": k, "v": v, "dt": F.softplus(dt), "A": -A.exp(), "state": state}


def shapes(length: int) -> list[tuple[int, ...]]:
    return [(B, length, G, K), (B, length, G, K), (B, length, H, V), (B, length, H), (H,), (B, H, V, K)]


def draw_starts(length: int) -> Tensor:
    return torch.rand(B, length, generator=torch.Generator().manual_seed(length)) < 0.2


def written_out(*, q: Tensor, k: Tensor, v: Tensor, dt: Tensor, A: Tensor, starts: Tensor, state: Tensor):
    """The recurrence in loops over every head, from the paper's equation alone."""
    y, last = torch.empty_like(v), torch.empty_like(state)
    for b in range(B):
        for head in range(H):
            h, group = state[b, head], head // (H // G)
            for t in range(v.shape[1]):
                h = torch.zeros_like(h) if starts[b, t] else torch.exp(dt[b, t, head] * A[head]) * h
                h = h + dt[b, t, head] * torch.outer(v[b, t, head], k[b, t, group])
                y[b, t, head] = h @ q[b, t, group]
            last[b, head] = h
    return y, last


@pytest.mark.parametrize("length", [1, 7, 8, 19])
def test_both_forms_are_the_recurrence(length: int) -> None:
    inputs, starts = draw(length), draw_starts(length)
    expected = written_out(**inputs, starts=starts)
    for actual in (ssd.recurrent(**inputs, starts=starts), ssd.chunked(**inputs, starts=starts, chunk_size=8)):
        for x, y in zip(actual, expected, strict=True):
            assert_near(x, y, "float64")


def stirred() -> Mamba2:
    """A layer none of whose parameters is at a neutral value."""
    mixer = built.mixer(Mamba2, MIXER).double()
    mixer.reset_parameters(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return mixer


@torch.no_grad()
def test_the_layer_is_the_published_one() -> None:
    """Its parts in the published order, each by a module or formula of its own."""
    mixer, width = stirred(), 24
    x = torch.randn(B, 9, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    z, channels, dt = mixer.input_projection(x).split([width, width + 2 * G * K, H], dim=-1)
    convolution = nn.Conv1d(channels.shape[-1], channels.shape[-1], 4, groups=channels.shape[-1], padding=3, dtype=torch.float64)
    # A convolution's last weight meets the latest input; ours are in order of age.
    convolution.weight.copy_(mixer.convolution.weight.flip(1).unsqueeze(1))
    convolution.bias.copy_(mixer.convolution_bias)
    channels = F.silu(convolution(channels.mT)[..., :9].mT)
    v, k, q = channels.split([width, G * K, G * K], dim=-1)
    v, k, q = v.reshape(B, 9, H, V), k.reshape(B, 9, G, K), q.reshape(B, 9, G, K)
    dt, A = F.softplus(dt + mixer.step_size_bias), -mixer.log_decay_rate.exp()
    state, no_starts = torch.zeros(B, H, V, K, dtype=torch.float64), torch.zeros(B, 9, dtype=torch.bool)
    y, h = written_out(q=q, k=k, v=v, dt=dt, A=A, starts=no_starts, state=state)
    y = (y + mixer.skip[:, None] * v).reshape(B, 9, width) * F.silu(z)
    groups = y.reshape(B, 9, G, -1)
    y = (groups / (groups.square().mean(-1, keepdim=True) + 1e-5).sqrt()).reshape(B, 9, width) * mixer.norm.weight.flatten()
    actual, state = mixer(x)
    assert_near(actual, mixer.output_projection(y), "float64")
    assert_near(state["h"], h, "float64")


def test_step_sizes_and_decay_rates_start_in_their_ranges() -> None:
    mixer = built.mixer(Mamba2, MIXER | {"d_model": 1200, "num_groups": 1})
    mixer.reset_parameters(torch.Generator().manual_seed(0))
    dt, rates = F.softplus(mixer.step_size_bias), mixer.log_decay_rate.exp()
    assert 0.001 <= dt.min().item() < 0.0015 and 0.09 < dt.max().item() <= 0.1
    # Log-uniform: half of them lie below the geometric mean.
    assert dt.median().item() == pytest.approx(0.01, rel=0.2)
    assert 1.0 <= rates.min().item() < 1.5 and 15.5 < rates.max().item() <= 16.0
    assert rates.mean().item() == pytest.approx(8.5, rel=0.1)


def test_its_linear_maps_are_those_in_and_out() -> None:
    mixer = built.mixer(Mamba2, MIXER)
    assert linear_maps(mixer) == [mixer.input_projection, mixer.output_projection]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value_dim": 5}, "value_dim=5 is out of range, permitted are divisors of the width 24"),
        ({"value_dim": 0}, "value_dim=0"),
        ({"num_groups": 3}, "num_groups=3 is out of range, permitted are divisors of the number of heads 4"),
        ({"num_groups": 0}, "num_groups=0"),
        ({"expand": 0}, "expand=0"),
        ({"key_dim": 0}, "key_dim=0"),
        ({"conv_width": 0}, "conv_width=0"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"step_size_min": 0.0}, "step_size_min=0 is"),
        ({"step_size_min": 0.2}, "step_size_min=0.2.*up to step_size_max"),
        ({"decay_rate_min": 0.0}, "decay_rate_min=0 is"),
        ({"decay_rate_max": 0.5}, "decay_rate_min=1.*up to decay_rate_max"),
    ],
)
def test_values_out_of_range_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built.mixer(Mamba2, MIXER | changes)
