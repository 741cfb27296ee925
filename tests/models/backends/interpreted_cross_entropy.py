"""The kernel of the loss under Triton's interpreter: see `test_interpreted`."""

from __future__ import annotations

import pytest
import torch

from models.backends.triton import cross_entropy
from tasks.task import IGNORE
from tests.models.backends.test_cross_entropy_triton import assert_is_the_plain_loss, assert_nothing_asked_costs_nothing, draw


def test_nothing_asked_costs_nothing() -> None:
    assert_nothing_asked_costs_nothing("cpu")


# Slices that are not whole, a vocabulary that fills no block, one of a whole block and one of several.
@pytest.mark.parametrize(
    ("elements", "shape"), [(2**20, (1, 11, 5)), (16 * 192, (40, 130, 8)), (2**15, (20, 2048, 8)), (2**20, (5, 5000, 4))]
)
@pytest.mark.parametrize("widest", [0, cross_entropy.WIDEST_ROW], ids=["read twice", "read once"])
def test_it_is_the_plain_loss(widest: int, elements: int, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "SLICE_ELEMENTS", elements)
    monkeypatch.setattr(cross_entropy, "WIDEST_ROW", widest)
    assert_is_the_plain_loss(*shape, "cpu")


@pytest.mark.parametrize(("count", "asked"), [(1, 0), (5, 3), (cross_entropy.BLOCK, 7), (2 * cross_entropy.BLOCK + 3, 4097)])
def test_a_target_has_its_share_to_the_bit(count: int, asked: int) -> None:
    targets, scale = torch.full((count,), IGNORE), torch.empty(())
    targets[count - asked :] = 0
    cross_entropy._share_of_a_target[(1,)](targets, scale, count, BLOCK=cross_entropy.BLOCK)
    assert torch.equal(scale, (targets >= 0).sum().clamp(min=1).float().reciprocal())


@pytest.mark.parametrize("target", [64, 69, 10**7])
def test_a_target_beyond_the_vocabulary_reads_no_logit(target: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The definition refuses it; a kernel can't, and takes nothing for its logit: rows behind it may be gradients already."""
    features, weight, targets = draw(4, 64, 8)
    targets[0] = target
    losses = []
    for widest in (cross_entropy.WIDEST_ROW, 1):
        monkeypatch.setattr(cross_entropy, "WIDEST_ROW", widest)
        losses.append(cross_entropy.mean_nll(features, weight, targets, soft_cap=30.0))
    torch.testing.assert_close(*losses)
