"""The head's loss by slices against the plain one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.ops import cross_entropy

CAP = 3.0


def draw(count: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(11, 5, generator=generator, dtype=torch.float64)
    return features.requires_grad_(), weight.requires_grad_(), torch.randint(11, (count,), generator=generator)


def plain_logits(features: Tensor, weight: Tensor) -> Tensor:
    return CAP * torch.tanh(features @ weight.mT / CAP)


@pytest.mark.parametrize("count", [1, 4, 7])
@pytest.mark.parametrize("slice_elements", [1, 33, 2**22])
def test_slices_give_the_plain_loss_and_its_gradients(count: int, slice_elements: int, monkeypatch) -> None:
    monkeypatch.setattr(cross_entropy, "SLICE_ELEMENTS", slice_elements)
    features, weight, targets = draw(count)
    ours = cross_entropy.mean_nll(features, weight, targets, soft_cap=CAP)
    theirs = F.cross_entropy(plain_logits(features, weight), targets)
    torch.testing.assert_close(ours, theirs)
    gradients = (torch.autograd.grad(2.0 * loss, (features, weight)) for loss in (ours, theirs))
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("slice_elements", [33, 2**22])
def test_scores_are_those_of_the_plain_logits(slice_elements: int, monkeypatch) -> None:
    monkeypatch.setattr(cross_entropy, "SLICE_ELEMENTS", slice_elements)
    features, weight, targets = draw(7)
    nll, prediction = cross_entropy.score(features, weight, targets, soft_cap=CAP)
    logits = plain_logits(features, weight)
    torch.testing.assert_close(nll, F.cross_entropy(logits, targets, reduction="none").detach())
    assert torch.equal(prediction, logits.argmax(-1))


def test_a_bfloat16_sequence_is_normalised_in_float32() -> None:
    features, weight, targets = draw(7)
    loss = cross_entropy.mean_nll(features.bfloat16(), weight.float(), targets, soft_cap=CAP)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), F.cross_entropy(plain_logits(features, weight), targets), rtol=0.02, atol=0.0)


@pytest.mark.parametrize("count", [0, 3])
def test_where_nothing_is_asked_loss_and_gradients_are_zero(count: int) -> None:
    features, weight, _ = draw(count)
    loss = cross_entropy.mean_nll(features, weight, torch.full((count,), -100), soft_cap=CAP)
    gradients = torch.autograd.grad(loss, (features, weight))
    assert loss.item() == 0 and all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)
    nll, prediction = cross_entropy.score(features[:0], weight, torch.zeros(0, dtype=torch.int64), soft_cap=CAP)
    assert nll.shape == prediction.shape == (0,)


def test_what_asks_nothing_changes_no_bit_of_the_loss() -> None:
    features, weight, targets = draw(5)
    padded = torch.cat([features, features[:2]]), weight, torch.cat([targets, torch.tensor([-100, -1])])
    assert torch.equal(
        cross_entropy.mean_nll(features, weight, targets, soft_cap=CAP), cross_entropy.mean_nll(*padded, soft_cap=CAP)
    )
