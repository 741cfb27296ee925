"""The published Mamba-3 block: the layer against its equations written out, what a start cuts, phases and its start."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.components import linear_maps
from models.mamba3 import Mamba3, heavy_tail, phases_of, rotated
from models.mixer import State
from tests.models import built
from tests.models.tolerances import assert_near

MIXER = {
    "d_model": 12,
    "backend": "torch",
    "expand": 2,
    "key_dim": 8,
    "value_dim": 6,
    "num_groups": 2,
    "rotated_share": 0.5,
    "decay_map": "softplus",
    "decay_floor": 1e-4,
    "output_norm": False,
    "step_size_min": 1e-3,
    "step_size_max": 0.1,
    "norm_eps": 1e-5,
    "chunk_size": 8,
}
B, H, G, N, P, WIDTH = 2, 4, 2, 8, 6, 24


def stirred(**changes) -> Mamba3:
    """A layer none of whose parameters is at a neutral value, with steps and turns large enough to matter."""
    mixer = built.mixer(Mamba3, MIXER | changes).double()
    mixer.reset_parameters(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        mixer.step_size_bias.add_(2.0)
    return mixer


def draw(mixer: Mamba3, length: int) -> tuple[Tensor, State]:
    """An input and a state in the middle of a sequence."""
    generator = torch.Generator().manual_seed(length)
    x = torch.randn(B, length, 12, generator=generator, dtype=torch.float64)
    state = {key: torch.randn(value.shape, generator=generator).double() for key, value in mixer.init_state(B).items()}
    return x, state | {"phi": torch.remainder(state["phi"], 2.0 * math.pi)}


def turn(x: Tensor, phi: Tensor) -> Tensor:
    """The first channels as complex numbers, one a pair, times exp(i phi)."""
    first = torch.view_as_complex(x[: 2 * len(phi)].reshape(-1, 2)) * torch.polar(torch.ones_like(phi), phi)
    return torch.cat([torch.view_as_real(first).flatten(), x[2 * len(phi) :]])


def written_out(mixer: Mamba3, x: Tensor, starts: Tensor, state: State) -> tuple[Tensor, State]:
    """The layer in loops over every head and token, from the paper's equations alone."""
    settings, outputs, last = mixer.settings, [], []
    sizes = [WIDTH, WIDTH, G * N, G * N, H, H, H, mixer.num_angles]
    for b in range(len(x)):
        S, phi, k_before, x_before = (list(state[key][b]) for key in ("S", "phi", "k", "x"))
        for t in range(x.shape[1]):
            z, v, keys, queries, dt, a, blend, theta = (mixer.input_projection.weight @ x[b, t]).split(sizes)
            ys = []
            for h in range(H):
                if starts[b, t]:
                    S[h], phi[h] = torch.zeros_like(S[h]), torch.zeros_like(phi[h])
                    k_before[h], x_before[h] = torch.zeros_like(k_before[h]), torch.zeros_like(x_before[h])
                group = slice(h // (H // G) * N, (h // (H // G) + 1) * N)
                step = torch.log1p(torch.exp(dt[h] + mixer.step_size_bias[h]))
                if settings.decay_map == "softplus":
                    rate = torch.log1p(torch.exp(a[h]))
                else:
                    rate = 1.0 + a[h] if a[h] >= 0 else 1.0 / (1.0 - a[h])
                alpha = torch.exp(-step * max(rate, settings.decay_floor))
                lam = 1.0 / (1.0 + torch.exp(-blend[h]))
                phi[h] = torch.remainder(phi[h] + math.pi * torch.tanh(theta) * step, 2.0 * math.pi)
                k, q = (
                    turn(y[group] / (y[group].square().mean() + 1e-5).sqrt() * norm.weight[0] + bias[h], phi[h])
                    for y, norm, bias in (
                        (keys, mixer.key_norm, mixer.key_bias),
                        (queries, mixer.query_norm, mixer.query_bias),
                    )
                )
                x_t = v[h * P : (h + 1) * P]
                begun = (1.0 - lam) * step * alpha * torch.outer(x_before[h], k_before[h])
                S[h] = alpha * S[h] + begun + lam * step * torch.outer(x_t, k)
                y = S[h] @ q + mixer.skip[h] * x_t
                if mixer.output_norm is not None:
                    y = y / (y.square().mean() + 1e-5).sqrt() * mixer.output_norm.weight[h]
                z_h = z[h * P : (h + 1) * P]
                ys.append(y * z_h / (1.0 + torch.exp(-z_h)))
                k_before[h], x_before[h] = k, x_t
            outputs.append(mixer.output_projection.weight @ torch.cat(ys))
        last.append([torch.stack(each) for each in (S, phi, k_before, x_before)])
    after = dict(zip(("S", "phi", "k", "x"), map(torch.stack, zip(*last, strict=True)), strict=True))
    return torch.stack(outputs).unflatten(0, x.shape[:2]), after


def gradients(mixer: Mamba3, y: Tensor, after: State, leaves: list[Tensor]) -> list[Tensor]:
    """Into the leaves and every parameter, of a fixed random weighting of the outputs and the state."""
    generator = torch.Generator().manual_seed(0)
    weighted = [
        (each * torch.randn(each.shape, generator=generator).double()).sum()
        for each in (y, *(after[key] for key in ("S", "phi", "k", "x")))
    ]
    return list(torch.autograd.grad(sum(weighted), [*leaves, *mixer.parameters()]))


@pytest.mark.parametrize(
    "changes",
    [{}, {"decay_map": "heavy_tail", "output_norm": True}, {"rotated_share": 1.0, "num_groups": 2}, {"rotated_share": 0.0}],
)
@pytest.mark.parametrize("length", [1, 7, 19])
def test_the_layer_is_its_equations(length: int, changes: dict) -> None:
    """Outputs, states and all gradients, from a state in the middle of a sequence and across starts."""
    mixer = stirred(**changes)
    x, state = draw(mixer, length)
    starts = torch.zeros(B, length, dtype=torch.bool)
    starts[0, 5::6] = True
    starts[1, 8:10] = True
    leaves = [x, *state.values()] if mixer.num_angles else [x, state["S"], state["k"], state["x"]]
    for leaf in leaves:
        leaf.requires_grad_()
    y, after = mixer(x, state, starts=starts)
    expected, expected_after = written_out(mixer, x, starts, state)
    assert_near(y, expected, "float64")
    for key, value in expected_after.items():
        assert_near(after[key], value, "float64")
    into, expected_into = (gradients(mixer, *each, leaves) for each in ((y, after), (expected, expected_after)))
    for ours, theirs in zip(into, expected_into, strict=True):
        assert_near(ours, theirs, "float64")


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 9])
def test_a_start_cuts_all_four_parts_of_the_state(length: int) -> None:
    """The first step of a document has no end before it, and its phase begins at 0: nothing of any state is left."""
    mixer = stirred()
    x, state = draw(mixer, length)
    starts = torch.zeros(B, length, dtype=torch.bool)
    starts[:, 0] = True
    empty = mixer.init_state(B)
    fresh, fresh_after = mixer(x, empty, starts=starts)
    assert_near(fresh, mixer(x)[0], "float64")
    for key in state:
        # The end x_{t-1} k_{t-1}^T has two parts, each of which alone writes nothing.
        loud = empty | {"k": state["k"], "x": state["x"]} | {key: 100.0 * state[key]}
        y, after = mixer(x, loud, starts=starts)
        assert torch.equal(y, fresh), key
        assert all(torch.equal(after[name], value) for name, value in fresh_after.items()), key
        assert not torch.allclose(mixer(x, loud)[0], fresh), key


@torch.no_grad()
def test_the_end_of_the_last_token_crosses_a_cut_of_the_sequence() -> None:
    """x_{t-1} k_{t-1}^T is written at t, so that a state without it would change the next output."""
    mixer = stirred()
    x, _ = draw(mixer, 9)
    _, state = mixer(x[:, :5])
    whole = mixer(x)[0][:, 5:]
    assert_near(mixer(x[:, 5:], state)[0], whole, "float64")
    for key in state:
        without = mixer(x[:, 5:], state | {key: torch.zeros_like(state[key])})[0]
        assert not torch.allclose(without, whole, rtol=1e-3), key


def test_neighbouring_channels_turn_and_the_others_do_not() -> None:
    quarter = torch.tensor([math.pi / 2.0, 0.0], dtype=torch.float64)
    x = torch.arange(1.0, 7.0, dtype=torch.float64)
    assert_near(rotated(x, quarter), torch.tensor([-2.0, 1.0, 3.0, 4.0, 5.0, 6.0], dtype=torch.float64), "float64")


def test_phases_sum_over_chunks_and_begin_anew_at_starts() -> None:
    turned = torch.full((1, 7, 1, 1), 1.0, dtype=torch.float64)
    starts = torch.tensor([[False, False, False, True, False, False, False]])
    phases = phases_of(turned, starts, torch.full((1, 1, 1), 3.0, dtype=torch.float64), chunk_size=2)
    expected = [4.0, 5.0, 6.0, 1.0, 2.0, 3.0, 4.0]
    assert_near(phases.flatten(), torch.tensor(expected, dtype=torch.float64), "float64")
    without = phases_of(turned, None, torch.full((1, 1, 1), 3.0, dtype=torch.float64), chunk_size=3).flatten()
    assert_near(without[-1], torch.tensor(10.0 - 2.0 * math.pi, dtype=torch.float64), "float64")


def test_phases_lose_few_digits_to_the_length_of_a_sequence() -> None:
    """A plain sum of 20,000 turns is near 5,000, where the numbers of float32 are 5e-4 apart."""
    turned = 0.5 * torch.rand(1, 20_000, 1, 4, generator=torch.Generator().manual_seed(0))
    exact = turned.double().cumsum(1)

    def error(phases: Tensor) -> float:
        return (torch.remainder(phases.double() - exact + math.pi, 2.0 * math.pi) - math.pi).abs().max().item()

    assert error(turned.cumsum(1)) > 2e-4
    assert error(phases_of(turned, None, torch.zeros(1, 1, 4), chunk_size=16)) < 6e-5


def test_the_heavy_tail_is_one_plus_x_and_its_mirror_image() -> None:
    x = torch.tensor([-99.0, -1.0, 0.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    y = heavy_tail(x)
    assert_near(y, torch.tensor([0.01, 0.5, 1.0, 1.0, 3.0], dtype=torch.float64), "float64")
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert_near(slope[[0, 1, 4]], torch.tensor([1e-4, 0.25, 1.0], dtype=torch.float64), "float64")
    beside = torch.tensor([-1e-12, 1e-12], dtype=torch.float64, requires_grad=True)
    assert_near(torch.autograd.grad(heavy_tail(beside).sum(), beside)[0], torch.ones(2).double(), "float64")


@torch.no_grad()
def test_no_decay_rate_lies_below_its_floor() -> None:
    """Even where softplus is 0, a state forgets: by exp(-floor) a unit of the step size."""
    mixer = stirred(decay_floor=0.5)
    rows = slice(2 * WIDTH + 2 * G * N + H, 2 * WIDTH + 2 * G * N + 2 * H)
    mixer.input_projection.weight[rows] = 0.0
    mixer.input_projection.weight[rows, 0] = -1e3
    x = torch.ones(1, 3, 12, dtype=torch.float64)
    read, _ = mixer._read(x, mixer.init_state(1)["phi"], None)
    step = (read.now + read.before / read.log_decay.exp())[0, 0]
    assert_near(read.log_decay[0, 0], -0.5 * step, "float64")


def test_it_starts_as_published() -> None:
    """Step sizes log-uniform in their range, biases of keys and queries, the skip and all norms at 1."""
    mixer = built.mixer(Mamba3, MIXER | {"d_model": 1200, "num_groups": 1})
    mixer.reset_parameters(torch.Generator().manual_seed(0))
    dt = F.softplus(mixer.step_size_bias)
    assert 0.001 <= dt.min().item() < 0.0015 and 0.09 < dt.max().item() <= 0.1
    assert dt.median().item() == pytest.approx(0.01, rel=0.2)
    for ones in (mixer.key_bias, mixer.query_bias, mixer.skip, mixer.key_norm.weight, mixer.query_norm.weight):
        assert (ones == 1.0).all()


def test_its_state_and_its_linear_maps_are_those_of_the_paper() -> None:
    mixer = built.mixer(Mamba3, MIXER)
    assert mixer.state_elements(100) == H * (P * N + mixer.num_angles + N + P) and mixer.num_angles == N // 4
    assert linear_maps(mixer) == [mixer.input_projection, mixer.output_projection]
    assert mixer.input_projection.out_features == 2 * WIDTH + 2 * G * N + 3 * H + N // 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value_dim": 5}, "value_dim=5 is out of range, permitted are divisors of the width 24"),
        ({"num_groups": 3}, "num_groups=3 is out of range, permitted are divisors of the number of heads 4"),
        ({"rotated_share": 1.5}, "rotated_share=1.5"),
        ({"decay_map": "relu"}, "decay_map=relu"),
        ({"decay_floor": 0.0}, "decay_floor=0 is"),
        ({"step_size_min": 0.2}, "step_size_min=0.2.*up to step_size_max"),
        ({"expand": 0}, "expand=0"),
        ({"key_dim": 0}, "key_dim=0"),
        ({"chunk_size": 0}, "chunk_size=0"),
    ],
)
def test_values_out_of_range_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built.mixer(Mamba3, MIXER | changes)
