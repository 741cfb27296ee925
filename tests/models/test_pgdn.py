"""Preconditioned Gated DeltaNet and KDA: their equations, the second moment and the preconditioner."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.kda import KDA
from models.pgdn import PreconditionedDeltaNet
from tests.models import by_hand
from tests.models.by_hand import D_MODEL, HEADS, KEYS, VALUES, B, normal
from tests.models.tolerances import assert_near

PGDN = {
    "decay_per": "head",
    "decay_rank": None,
    "decay_bound": None,
    "negative_eigenvalues": False,
    "moment_decay_rates": [0.5, 4],
    "moment_gate_init": 0.5,
    "squash": 1.5,
    "squash_eps": 1e-6,
    "center_init": -0.2,
    "output_gate": "swish",
}
PKDA = {**PGDN, "decay_per": "channel", "decay_rank": 3, "output_gate": "sigmoid", "output_gate_rank": 4}

both = pytest.mark.parametrize("settings", [PGDN, PKDA], ids=["pgdn", "pkda"])


def build(settings: dict[str, Any], **changes: Any) -> PreconditionedDeltaNet:
    return by_hand.build(PreconditionedDeltaNet, **{**settings, **changes})


def step(
    layer: PreconditionedDeltaNet, x_t: Tensor, q: Tensor, k: Tensor, v: Tensor, state: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    k, v, beta = k[:, 0], v[:, 0], by_hand.gate(layer.input_gate, x_t)[..., None]
    A = by_hand.decay(layer.moment_decay, x_t) * state["A"] + by_hand.gate(layer.moment_gate, x_t)[..., None] * k * k
    r = torch.log(A + layer.settings.squash_eps) - layer.center[:, None]
    along = layer.settings.squash ** -(r / (1.0 + r.abs())) * k
    G = state["G"] * by_hand.decay(layer.decay, x_t)[:, :, None, :]
    G = G + torch.einsum("bhv,bhk->bhvk", beta * (v - torch.einsum("bhvk,bhk->bhv", G, k)), along)
    return torch.einsum("bhvk,bhk->bhv", G, q), {"G": G, "A": A}


@both
@pytest.mark.parametrize("length", [1, 7, 19])
def test_the_layer_is_its_equations(settings: dict[str, Any], length: int) -> None:
    by_hand.assert_layer_is(build(settings), step, length=length)


@both
@pytest.mark.parametrize("begins", [(0,), (3, 4), (8, 18)])
def test_a_document_starts_from_nothing(settings: dict[str, Any], begins: tuple[int, ...]) -> None:
    """The second moment starts anew as well, whose gate is not the state's."""
    by_hand.assert_layer_is(build(settings), step, length=19, begins=begins)


@torch.no_grad()
def test_a_preconditioner_stays_in_its_range_and_shrinks_what_was_large() -> None:
    layer = build(PGDN)
    moments = torch.logspace(-30, 30, 61, dtype=torch.float64).view(1, -1, 1, 1).expand(1, 61, HEADS, 1)
    M = layer.preconditioner(moments)
    assert (M.diff(dim=1) <= 0.0).all() and 1 / 1.5 < M.min() < 0.68 and 1.4 < M.max() < 1.5
    assert_near(
        layer.preconditioner(layer.center.exp().view(1, 1, HEADS, 1) - 1e-6), torch.ones(1, 1, HEADS, 1).double(), "float64"
    )


@torch.no_grad()
def test_a_preconditioner_of_one_is_kda() -> None:
    """The key has unit length before it is preconditioned, and is read as it is: only the write is turned."""
    layer, x = build(PKDA, squash=1.0 + 1e-12), normal(B, 19, D_MODEL, seed=2)
    kda = by_hand.build(KDA, **{"decay_rank": 3, "decay_bound": None, "negative_eigenvalues": False, "output_gate_rank": 4})
    kda.load_state_dict({name: x for name, x in layer.state_dict().items() if name in kda.state_dict()})
    assert_near(layer(x)[0], kda(x)[0], "float64")
    other = build(PKDA)
    other.load_state_dict(layer.state_dict())
    assert (other(x)[0] - kda(x)[0]).norm() > 1e-3 * kda(x)[0].norm()


@torch.no_grad()
def test_no_unit_key_makes_a_state_grow() -> None:
    """beta k^T M k is at most x <= 2, so that an eigenvalue is above -1 even where one key repeats."""
    layer = build(PGDN, squash=2.0)
    k = by_hand.unit(normal(1, 1, HEADS, KEYS, seed=4)).expand(1, 200, HEADS, KEYS)
    zero, one = torch.zeros(1, 200, HEADS, dtype=torch.float64), torch.ones(1, 200, HEADS, dtype=torch.float64)
    inputs = {"q": k, "k": k, "v": normal(1, 200, HEADS, VALUES, seed=5), "log_decay": zero, "beta": one}
    # Nothing is counted as seen, so that M is at its largest.
    gates = {"moment_log_decay": zero, "moment_beta": 0.0 * one}
    o, _ = layer.mix(inputs | gates, layer.init_state(1))
    assert o.isfinite().all() and o.abs().max() < 200.0


def test_a_state_holds_a_number_more_for_every_channel_of_the_key() -> None:
    layer, kda = build(PGDN), by_hand.build(KDA, decay_rank=None, decay_bound=None, negative_eigenvalues=False)
    assert layer.state_elements(7) - kda.state_elements(7) == HEADS * KEYS


@torch.no_grad()
def test_a_head_s_decay_is_one_number_and_a_channel_s_its_own() -> None:
    x = normal(B, 3, D_MODEL, seed=2)
    assert build(PGDN).log_decay(x).shape == (B, 3, HEADS)
    assert build(PKDA).log_decay(x).shape == (B, 3, HEADS, KEYS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"squash": 1.0}, "squash=1"),
        ({"squash": 2.5}, "squash=2.5"),
        ({"decay_per": "token"}, "decay_per=token"),
        ({"moment_decay_rates": None}, "moment_decay_rates=null"),
        ({"moment_decay_rates": [4, 1]}, r"moment_decay_rates=\[4.0,1.0\] .* the lower first"),
        ({"decay_rates": None}, "decay_rates=null"),
        ({"decay_rank": 3}, "decay_rank=3 .* null with decay_per=head"),
        ({"decay_bound": 5.0}, "decay_bound=5.* null with decay_per=head"),
    ],
    ids=str,
)
def test_what_the_layer_refuses(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build(PGDN, **changes)


def test_the_start_is_the_paper_s() -> None:
    layer = build(PGDN)
    layer.reset_parameters(torch.Generator().manual_seed(0))
    assert_near(layer.center.detach(), torch.full((HEADS,), -0.2, dtype=torch.float64), "float32")
    assert layer.moment_gate.projection.bias.eq(0.0).all()
