"""Clipping and AdamW by pieces of large tensors: the numbers of torch's own, and how large the pieces are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from suite.compute import pieces
from suite.compute.optimization import leave_out
from suite.compute.pieces import CHUNK, TURN, PiecewiseAdamW, clipped_norm, piece_size

SHAPES = ((131, 512), (64, 192), (3 * TURN,), (7,), ())


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """On either tensors are cut, as in a step that is captured."""
    monkeypatch.setattr(pieces, "is_captured", lambda: True)
    yield torch.device(request.param)


def draw(device: torch.device, *, seed: int = 0) -> list[nn.Parameter]:
    """Weights with gradients; one is not contiguous, and one has no gradient."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(shape, generator=generator).to(device) for shape in (*SHAPES, *SHAPES)]
    weights = [nn.Parameter(each) for each in (*drawn[: len(SHAPES)], drawn[0].clone().t(), drawn[1].clone())]
    for weight, gradient in zip(weights, (*drawn[len(SHAPES) :], drawn[len(SHAPES)].clone().t()), strict=False):
        weight.grad = gradient
    return weights


@pytest.mark.parametrize(
    ("counts", "room", "size"),
    [
        # An embedding, and a norm beside it, fill a launch.
        ((8192 * 64, 64), 36, 16_384),
        ((8192 * 64, 64), 110, 3 * TURN),
        # Two launches have room for twice as many.
        ((8192 * 64, *[64] * 36), 36, 8 * TURN),
        ((64, 64), 36, TURN),
        # A launch is full of whole chunks: nothing is gained.
        ((35 * CHUNK, 64), 36, CHUNK),
        ((50_304 * 1024, 64), 36, CHUNK),
        ((CHUNK, *[64] * 35), 36, CHUNK),
    ],
)
def test_pieces_are_as_small_as_the_launches_that_there_are_have_room_for(counts, room, size):
    assert piece_size(counts, room) == size


def stepped(kind: Callable[..., torch.optim.AdamW], weights: list[nn.Parameter]) -> tuple[list[Tensor], dict]:
    """Weights and the optimiser's state after three steps, of which the second is left out."""
    device = weights[0].device
    groups = [{"params": weights[::2], "weight_decay": 0.1}, {"params": weights[1::2], "weight_decay": 0.0}]
    lr = 1e-2 if device.type == "cpu" else torch.tensor(1e-2, device=device)
    optimizer = kind(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8, fused=True)
    for left_out in (False, True, False):
        leave_out(optimizer, torch.tensor(left_out, device=device))
        optimizer.step()
    return [weight.detach() for weight in weights], optimizer.state_dict()


def test_an_update_in_pieces_is_the_whole_one_to_the_bit(device):
    ours, theirs = (stepped(kind, draw(device)) for kind in (PiecewiseAdamW, torch.optim.AdamW))
    before = draw(device)
    for mine, expected, begun in zip(ours[0], theirs[0], before, strict=True):
        assert torch.equal(mine, expected) and torch.equal(mine, begun.detach()) == (begun.grad is None)
    assert ours[1]["param_groups"] == theirs[1]["param_groups"]
    assert list(ours[1]["state"]) == list(theirs[1]["state"])
    for number, state in theirs[1]["state"].items():
        assert list(ours[1]["state"][number]) == list(state) and float(state["step"]) == 2.0
        for name, expected in state.items():
            mine = ours[1]["state"][number][name]
            assert torch.equal(mine, expected) and mine.stride() == expected.stride()


def test_a_step_without_gradients_changes_nothing(device):
    weights = draw(device)
    for weight in weights:
        weight.grad = None
    before = [weight.detach().clone() for weight in weights]
    assert all(map(torch.equal, stepped(PiecewiseAdamW, weights)[0], before))


@pytest.mark.parametrize("limit", [1.0, 1e6, math.inf])
def test_the_norm_and_what_it_clips_are_torchs_to_the_bit(device, limit):
    """So that a run that goes on, whose first steps are not captured, is the one that was never interrupted."""
    ours, theirs = draw(device), draw(device)
    assert torch.equal(clipped_norm(ours, limit), nn.utils.clip_grad_norm_(theirs, limit))
    for mine, expected in zip(ours, theirs, strict=True):
        assert (mine.grad is None) == (expected.grad is None)
        assert mine.grad is None or torch.equal(mine.grad, expected.grad)


def test_the_norm_of_no_gradient_is_0(device):
    assert clipped_norm([nn.Parameter(torch.ones(3, device=device))], 1.0) == 0.0


def test_a_launch_is_not_given_more_pieces_than_it_takes(device, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "_foreach_mul_", lambda tensors, _: seen.extend(each.numel() for each in tensors))
    clipped_norm(draw(device), 1.0)
    # 131 x 512 in pieces of TURN, but not its transpose.
    assert seen.count(TURN) == 32 + 6 + 3 and seen.count(131 * 512) == 1 and len(seen) <= pieces.TENSORS_OF_ONE_LIST


@pytest.mark.parametrize("set_so", [{"maximize": True}, {"weight_decay": 0.3, "eps": 1e-3}])
def test_settings_and_a_scale_of_gradients_mean_what_they_mean_to_torch(device, set_so):
    weights = draw(device), draw(device)
    for kind, each in zip((PiecewiseAdamW, torch.optim.AdamW), weights, strict=True):
        optimizer = kind(each, lr=1e-2, fused=True, **set_so)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0, device=device), torch.tensor(0.0, device=device)
        optimizer.step()
    assert all(map(torch.equal, *weights)) and not torch.equal(weights[0][0], draw(device)[0])
