"""Triadic Gated DeltaNet: its layer against the equations of its slices, its limits, its state beside MesaNet's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.linear_rnn import LinearRNN
from models.mesa.mixer import Mesa
from models.mixer import State
from models.ops import delta_rule
from models.triadic_gdn import TriadicGatedDeltaNet, kronecker
from tests.models import built, by_hand
from tests.models.test_laws import config
from tests.models.tolerances import assert_near

MIXER: dict[str, Any] = {
    "d_model": 12,
    "backend": "torch",
    "num_heads": 2,
    "key_dim": 5,
    "value_dim": 4,
    "num_slices": 3,
    "conv_width": 3,
    "convolution": "query_key_value",
    "feature_map": "silu_l2",
    "affine_keys": False,
    "forget_gate_init": None,
    "decay_rates": [0, 16],
    "input_gate_init": 0.5,
    "output_gate": "sigmoid",
    "output_gate_rank": 6,
    "norm_eps": 1e-5,
    "chunk_size": 8,
}
B, H, K, V, E = 2, 2, 5, 4, 3


def stirred(**changes: Any) -> TriadicGatedDeltaNet:
    return by_hand.stirred(TriadicGatedDeltaNet, MIXER | changes)


def draw(mixer: TriadicGatedDeltaNet, length: int) -> tuple[Tensor, State]:
    return by_hand.draw(mixer, length, d_model=12)


def convolved(weight: Tensor, x: Tensor, starts: Tensor, conv: Tensor) -> tuple[Tensor, Tensor]:
    """The convolution of one sequence [T, channels], cut by starts, and its last inputs."""
    window, outputs = list(conv), []
    for x_t, start in zip(x, starts, strict=True):
        window = [*([torch.zeros_like(each) for each in window] if start else window), x_t]
        outputs.append(sum(weight[:, j] * window[-1 - j] for j in range(3)))
        window = window[1:]
    return torch.stack(outputs), torch.stack(window)


def written_out(mixer: TriadicGatedDeltaNet, x: Tensor, starts: Tensor, state: State) -> tuple[Tensor, State]:
    """The layer in loops over heads, tokens and the slices S_e [K, V] of a head, from the paper's equations."""
    outputs, last, decay = [], [], mixer.decay
    first = torch.cat([mixer.query_key_projection.weight, mixer.value_projection.weight])
    for b in range(B):
        qkv, conv = convolved(mixer.convolution.weight, x[b] @ first.T, starts[b], state["conv"][b])
        seconds = x[b] @ mixer.second_projection.weight.T
        seconds, second_conv = convolved(mixer.second_convolution.weight, seconds, starts[b], state["second_conv"][b])
        q, k, v = F.silu(qkv).split([H * K, H * K, H * V], dim=-1)
        q2, k2 = torch.log1p(torch.exp(seconds)).split(H * E, dim=-1)
        gate = torch.sigmoid(mixer.output_gate.projection(mixer.output_gate.bottleneck(x[b])))
        slices = [[G[:, e * K : (e + 1) * K].T for e in range(E)] for G in state["G"][b]]
        for t, x_t in enumerate(x[b]):
            ys = []
            for h in range(H):
                unit = [y[t].unflatten(0, (H, -1))[h] / y[t].unflatten(0, (H, -1))[h].norm() for y in (q, k, q2, k2)]
                q_t, k_t, q2_t, k2_t = unit
                softplus = torch.log1p(torch.exp(decay.projection.weight @ x_t + decay.step_size_bias))
                alpha = torch.exp(-decay.log_rate.exp() * softplus).unflatten(0, (H, E))[h]
                beta = torch.sigmoid(mixer.input_gate.projection(x_t))[h]
                S = [torch.zeros_like(S_e) if starts[b, t] else alpha[e] * S_e for e, S_e in enumerate(slices[h])]
                known = sum(k2_t[e] * (S[e].T @ k_t) for e in range(E))
                error = v[t, h * V : (h + 1) * V] - known
                S = [S[e] + beta * k2_t[e] * torch.outer(k_t, error) for e in range(E)]
                slices[h] = S
                o = sum(q2_t[e] * (S[e].T @ q_t) for e in range(E))
                ys.append(o / (o.square().mean() + 1e-5).sqrt() * mixer.norm.weight[h] * gate[t, h * V : (h + 1) * V])
            outputs.append(mixer.output_projection.weight @ torch.cat(ys))
        last.append([conv, second_conv, torch.stack([torch.cat([S_e.T for S_e in S], dim=1) for S in slices])])
    after = dict(zip(("conv", "second_conv", "G"), map(torch.stack, zip(*last, strict=True)), strict=True))
    return torch.stack(outputs).unflatten(0, x.shape[:2]), after


@pytest.mark.parametrize("length", [1, 7, 19])
def test_the_layer_is_its_equations(length: int) -> None:
    """Outputs, states and all gradients, from a state in the middle of a sequence and across starts."""
    mixer = stirred()
    by_hand.assert_written_out(mixer, written_out, *draw(mixer, length), held=("G",))


@torch.no_grad()
def test_second_keys_of_one_slice_make_it_a_gated_delta_rule() -> None:
    """Where every second key and query is the last unit vector, the last slice is Gated DeltaNet's state, and others decay."""
    mixer = stirred()
    x, state = draw(mixer, 11)
    inputs = LinearRNN.recurrence_inputs(mixer, x, state, starts=None).inputs
    one = torch.zeros(B, 11, H, E, dtype=torch.float64)
    one[..., -1] = 1.0
    shared = {name: inputs[name] for name in ("v", "beta")}
    joint = {name: kronecker(one, inputs[name]) for name in ("q", "k")}
    channels = inputs["log_decay"].repeat_interleave(K, dim=-1)
    o, after = mixer.recurrence(**shared, **joint, log_decay=channels, state=state)
    before = state["G"].unflatten(-1, (E, K))
    alone = {name: inputs[name] for name in ("q", "k")} | {"log_decay": inputs["log_decay"][..., -1]}
    expected, G = delta_rule.recurrent(**shared, **alone, state=before[..., -1, :])
    slices = after["G"].unflatten(-1, (E, K))
    assert_near(o, expected, "float64")
    assert_near(slices[..., -1, :], G, "float64")
    kept = inputs["log_decay"].sum(1).exp()[:, :, None, :-1, None]
    assert_near(slices[..., :-1, :], kept * before[..., :-1, :], "float64")


@torch.no_grad()
def test_joint_keys_have_unit_length_and_slices_of_one_direction() -> None:
    """Second keys of softplus alone would let beta |kappa|^2 pass 2, beyond which the delta rule diverges."""
    mixer = stirred()
    x, state = 3.0 * draw(mixer, 30)[0], mixer.init_state(B)
    firsts = LinearRNN.recurrence_inputs(mixer, x, state, starts=None).inputs
    joints = mixer.recurrence_inputs(x, state, starts=None).inputs
    for name in ("q", "k"):
        assert_near(joints[name].norm(dim=-1), torch.ones(B, 30, H, dtype=torch.float64), "float64")
        second = torch.einsum("bthek,bthk->bthe", joints[name].unflatten(-1, (E, K)), firsts[name])
        assert (second >= 0.0).all()
        assert_near(kronecker(second, firsts[name]), joints[name], "float64")


@torch.no_grad()
def test_a_slice_forgets_at_a_rate_of_its_own() -> None:
    mixer = stirred()
    log_decay = mixer.recurrence_inputs(draw(mixer, 9)[0], mixer.init_state(B), starts=None).inputs["log_decay"]
    slices = log_decay.unflatten(-1, (E, K))
    assert torch.equal(slices, slices[..., :1].expand_as(slices)) and (slices <= 0.0).all()
    assert mixer.decay.log_rate.shape == mixer.decay.step_size_bias.shape == (H * E,)
    assert slices[..., 0].std(dim=-1).min() > 0.0


def test_two_slices_are_as_large_as_mesanet_s_two_matrices() -> None:
    """V x 2 K against V x K and K x K. Second keys, and values in the published layer, are held by the convolutions besides."""
    values = config("triadic_gdn")["model"]["mixer"] | {"d_model": 32, "backend": "torch"}
    mesa = built.mixer(Mesa, config("mesanet")["model"]["mixer"] | {"d_model": 32, "backend": "torch"})
    triadic = built.mixer(TriadicGatedDeltaNet, values)
    held, mesa_held = ({key: x.numel() for key, x in mixer.init_state(1).items()} for mixer in (triadic, mesa))
    assert held["G"] == mesa_held["G"] + mesa_held["H"]
    past, heads = values["conv_width"] - 1, values["num_heads"]
    assert held["second_conv"] == past * heads * 2 * values["num_slices"]
    assert held["conv"] - mesa_held["conv"] == past * heads * values["value_dim"]


@torch.no_grad()
@pytest.mark.parametrize(("convolution", "convolved"), [("query_key", True), ("input", False), ("none", False)])
def test_second_keys_are_convolved_where_the_first_are(convolution: str, convolved: bool) -> None:
    mixer = stirred(convolution=convolution)
    assert (mixer.second_convolution is not None) == ("second_conv" in mixer.init_state(1)) == convolved
    x, state = draw(mixer, 9)
    first, between = mixer(x[:, :4], state)
    assert_near(torch.cat([first, mixer(x[:, 4:], between)[0]], dim=1), mixer(x, state)[0], "float64")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_slices": 1}, "num_slices=1 is out of range"),
        ({"decay_rates": None}, "decay_rates"),
        ({"forget_gate_init": 0.9}, "forget_gate_init=0.9.*null with decay_rates"),
    ],
)
def test_values_out_of_range_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built.mixer(TriadicGatedDeltaNet, MIXER | changes)
