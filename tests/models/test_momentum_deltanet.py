"""Momentum DeltaNet: its layer against the equations written out, its limits, its state beside MesaNet's, and its start."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.deltanet import DeltaNet
from models.mesa.mixer import Mesa
from models.mixer import State
from models.momentum_deltanet import MomentumDeltaNet
from tests.models import built, by_hand
from tests.models.test_laws import config
from tests.models.tolerances import assert_near

MIXER: dict[str, Any] = {
    "d_model": 12,
    "backend": "torch",
    "num_heads": 2,
    "key_dim": 5,
    "value_dim": 4,
    "conv_width": 3,
    "convolution": "query_key_value",
    "feature_map": "silu_l2",
    "affine_keys": False,
    "forget_gate_init": None,
    "decay_rates": [0, 16],
    "momentum_rates": [0, 16],
    "momentum_floor": -2.0,
    "tau_factor": 2.0,
    "coupling_max": 4.0,
    "read_decayed": True,
    "output_correction": True,
    "input_gate_init": 0.5,
    "output_gate": "sigmoid",
    "output_gate_rank": None,
    "norm_eps": 1e-5,
    "chunk_size": 8,
}
B, H, K, V = 2, 2, 5, 4


def stirred(**changes: Any) -> MomentumDeltaNet:
    return by_hand.stirred(MomentumDeltaNet, MIXER | changes)


def draw(mixer: MomentumDeltaNet, length: int) -> tuple[Tensor, State]:
    return by_hand.draw(mixer, length, d_model=12)


def convolved(mixer: MomentumDeltaNet, x: Tensor, starts: Tensor, conv: Tensor) -> tuple[Tensor, Tensor]:
    """SiLU of the convolution of q, k and v of one sequence [T, channels], cut by starts, and its last inputs."""
    weight = torch.cat([mixer.query_key_projection.weight, mixer.value_projection.weight])
    window, outputs = list(conv), []
    for x_t, start in zip(x, starts, strict=True):
        window = [torch.zeros_like(each) for each in window] if start else window
        window.append(weight @ x_t)
        outputs.append(F.silu(sum(mixer.convolution.weight[:, j] * window[-1 - j] for j in range(3))))
        window = window[1:]
    return torch.stack(outputs), torch.stack(window)


def written_out(mixer: MomentumDeltaNet, x: Tensor, starts: Tensor, state: State) -> tuple[Tensor, State]:
    """The layer in loops over every head and token, from the paper's equations and the authors' order."""
    settings, outputs, last = mixer.settings, [], []
    decay, momentum, beta = mixer.decay, mixer.momentum, mixer.input_gate.projection
    for b in range(B):
        qkv, conv = convolved(mixer, x[b], starts[b], state["conv"][b])
        gate = torch.sigmoid(mixer.output_gate.projection(x[b]))
        G, M = list(state["G"][b]), list(state["M"][b])
        for t, x_t in enumerate(x[b]):
            ys = []
            for h in range(H):
                q, k = qkv[t, h * K : (h + 1) * K], qkv[t, (H + h) * K : (H + h + 1) * K]
                v = qkv[t, 2 * H * K + h * V : 2 * H * K + (h + 1) * V]
                if mixer.log_correction is not None:
                    q = q - mixer.log_correction[h].exp() * k
                q, k = q / q.norm(), k / k.norm()
                eta = 1.0 + torch.tanh(mixer.step_projection.weight[h] @ x_t / math.sqrt(12 / settings.tau_factor))
                theta = torch.atan(mixer.log_coupling[h].exp() * eta)
                softplus = torch.log1p(torch.exp(decay.projection.weight[h] @ x_t + decay.step_size_bias[h]))
                alpha = torch.cos(theta) ** 2 * torch.exp(-decay.log_rate[h].exp() * softplus)
                softplus = torch.log1p(torch.exp(momentum.projection.weight[h] @ x_t + momentum.step_size_bias[h]))
                log_mu = -momentum.log_rate[h].exp() * softplus
                mu = torch.exp(log_mu if settings.momentum_floor is None else log_mu.clamp(min=settings.momentum_floor))
                beta_t = torch.sin(theta) ** 2 * torch.sigmoid(beta.weight[h] @ x_t + beta.bias[h])
                if starts[b, t]:
                    G[h], M[h] = torch.zeros_like(G[h]), torch.zeros_like(M[h])
                error = G[h] @ (alpha * k if settings.read_decayed else k) - v
                M[h] = mu * M[h] + eta * torch.outer(error, k)
                G[h] = alpha * G[h] - beta_t * M[h]
                o = G[h] @ q
                ys.append(o / (o.square().mean() + 1e-5).sqrt() * mixer.norm.weight[h] * gate[t, h * V : (h + 1) * V])
            outputs.append(mixer.output_projection.weight @ torch.cat(ys))
        last.append([conv, torch.stack(G), torch.stack(M)])
    after = dict(zip(("conv", "G", "M"), map(torch.stack, zip(*last, strict=True)), strict=True))
    return torch.stack(outputs).unflatten(0, x.shape[:2]), after


@pytest.mark.parametrize(
    "changes", [{}, {"read_decayed": False}, {"output_correction": False, "momentum_floor": None}, {"momentum_floor": -0.01}]
)
@pytest.mark.parametrize("length", [1, 7, 19])
def test_the_layer_is_its_equations(length: int, changes: dict[str, Any]) -> None:
    """Outputs, states and all gradients, from a state in the middle of a sequence and across starts."""
    mixer = stirred(**changes)
    by_hand.assert_written_out(mixer, written_out, *draw(mixer, length), held=("G", "M"))


@torch.no_grad()
@pytest.mark.parametrize("read_decayed", [True, False])
def test_a_start_cuts_both_matrices(read_decayed: bool) -> None:
    """Also where the error is that of the undecayed state, which a decay alone would not cut."""
    mixer = stirred(read_decayed=read_decayed)
    x, state = draw(mixer, 9)
    starts = torch.zeros(B, 9, dtype=torch.bool)
    starts[:, 0] = True
    fresh, fresh_after = mixer(x, mixer.init_state(B), starts=starts)
    assert_near(fresh, mixer(x)[0], "float64")
    for key in state:
        y, after = mixer(x, mixer.init_state(B) | {key: 100.0 * state[key]}, starts=starts)
        assert torch.equal(y, fresh), key
        assert all(torch.equal(after[name], value) for name, value in fresh_after.items()), key


@torch.no_grad()
def test_with_momentum_that_fades_at_once_it_is_a_gated_deltanet() -> None:
    """One whose decay is this layer's and whose writing strength is eta beta; the rest is the same frame."""
    mixer = stirred(output_correction=False, momentum_floor=None)
    mixer.momentum.log_rate.fill_(30.0)
    own = MomentumDeltaNet.Settings.__annotations__
    deltanet = built.mixer(DeltaNet, {name: value for name, value in MIXER.items() if name not in own}).double()
    shared = {name: x for name, x in mixer.state_dict().items() if name in deltanet.state_dict()}
    deltanet.load_state_dict(shared)
    x, state = draw(mixer, 11)
    gates = {name: gate[..., 0] for name, gate in mixer.gates(x).items()}
    eta = mixer.gates(x)["beta"][..., 1]
    inputs = deltanet.recurrence_inputs(x, {"conv": state["conv"]}, starts=None).inputs
    inputs |= {"log_decay": gates["log_decay"], "beta": eta * gates["beta"]}
    o, G = deltanet.recurrence(**inputs, state=state)
    actual, after = mixer.recurrence(**mixer.recurrence_inputs(x, state, starts=None).inputs, state=state)
    assert_near(actual, o, "float64")
    assert_near(after["G"], G["G"], "float64")


def test_its_state_is_as_large_as_mesanet_s() -> None:
    """Two matrices of V x K against V x K and K x K. The convolution holds values besides, which MesaNet doesn't convolve."""
    values = config("momentum_deltanet")["model"]["mixer"] | {"d_model": 32, "backend": "torch"}
    mesa = built.mixer(Mesa, config("mesanet")["model"]["mixer"] | {"d_model": 32, "backend": "torch"})
    ours, alike = (built.mixer(MomentumDeltaNet, values | changes) for changes in ({}, {"convolution": "query_key"}))
    assert alike.state_elements(100) == mesa.state_elements(100)
    assert ours.state_elements(100) - alike.state_elements(100) == (values["conv_width"] - 1) * ours.num_heads * ours.value_dim


@torch.no_grad()
def test_the_coupling_bounds_alpha_and_beta_together() -> None:
    """alpha + beta is at most 1, however loud the input, and steps lie between 0 and 2."""
    mixer = stirred()
    gates = mixer.gates(20.0 * torch.randn(1, 200, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    (log_alpha, log_mu), (beta, eta) = gates["log_decay"].unbind(-1), gates["beta"].unbind(-1)
    assert (log_alpha.exp() + beta).max() <= 1.0 + 1e-12 and beta.min() >= 0.0
    assert eta.min() >= 0.0 and eta.max() <= 2.0 and eta.max() - eta.min() > 1.5
    assert log_mu.min() == -2.0 and log_mu.max() > -2.0


def test_it_starts_as_published() -> None:
    mixer = built.mixer(MomentumDeltaNet, MIXER | {"num_heads": 1000})
    mixer.reset_parameters(torch.Generator().manual_seed(0))
    for logarithm, highest in (
        (mixer.log_coupling, 4.0),
        (mixer.log_correction, 1.0),
        (mixer.momentum.log_rate, 16.0),
        (mixer.decay.log_rate, 16.0),
    ):
        drawn = logarithm.exp()
        assert 0.0 < drawn.min().item() < 0.01 * highest and 0.99 * highest < drawn.max().item() <= highest + 1e-5
        assert drawn.mean().item() == pytest.approx(highest / 2.0, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"momentum_floor": 0.5}, "momentum_floor=0.5"),
        ({"momentum_rates": [0, 0]}, "momentum_rates"),
        ({"momentum_rates": [16, 1]}, "momentum_rates"),
        ({"tau_factor": 0.0}, "tau_factor=0 is"),
        ({"coupling_max": 0.0}, "coupling_max=0 is"),
        ({"forget_gate_init": 0.9}, "forget_gate_init=0.9.*null with decay_rates"),
    ],
)
def test_values_out_of_range_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built.mixer(MomentumDeltaNet, MIXER | changes)
