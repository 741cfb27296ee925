"""The short convolution against PyTorch's own, document by document."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.ops import short_convolution

CHANNELS = 3


def by_conv1d(x: Tensor, weight: Tensor, state: Tensor) -> Tensor:
    """The convolution of one document [T, D] behind a state [width - 1, D]."""
    # A convolution's last weight meets the latest input; ours are in order of age.
    kernel = weight.flip(1).unsqueeze(1)
    return F.conv1d(torch.cat([state, x]).mT, kernel, groups=CHANNELS).mT


@pytest.mark.parametrize("first", [0, 1, 6, None])
@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_it_is_that_of_pytorch_for_each_document(width: int, length: int, first: int | None) -> None:
    """first: where the second document begins, if there is one; the third begins two tokens later."""
    normal = torch.Generator().manual_seed(width)
    x, state = (torch.randn(2, n, CHANNELS, generator=normal, dtype=torch.float64) for n in (length, width - 1))
    weight = torch.randn(CHANNELS, width, generator=normal, dtype=torch.float64)
    starts = torch.zeros(2, length, dtype=torch.bool)
    begins = [] if first is None else [place for place in (first, first + 2) if place < length]
    starts[1, begins] = True
    y = short_convolution.convolve(x, weight, state, starts=starts)
    after = short_convolution.last_inputs(x, state, starts=starts)
    for b, cuts in ((0, []), (1, begins)):
        expected, kept = [], state[b]
        for i, document in enumerate(x[b].tensor_split(cuts)):
            kept = torch.zeros_like(kept) if i else kept
            if len(document):
                expected.append(by_conv1d(document, weight, kept))
            kept = torch.cat([kept, document])[len(document) :]
        torch.testing.assert_close(y[b], torch.cat(expected))
        assert torch.equal(after[b], kept)


def test_no_starts_are_starts_nowhere_and_the_state_keeps_its_dtype() -> None:
    x, weight = torch.randn(2, 6, CHANNELS, dtype=torch.bfloat16), torch.randn(CHANNELS, 4)
    state, nowhere = torch.randn(2, 3, CHANNELS), torch.zeros(2, 6, dtype=torch.bool)
    whole, cut = (short_convolution.convolve(x, weight, state, starts=starts) for starts in (None, nowhere))
    assert torch.equal(whole, cut) and whole.dtype == x.dtype
    after = short_convolution.last_inputs(x, state, starts=None)
    assert after.dtype == state.dtype and torch.equal(after, x[:, -3:].float())
