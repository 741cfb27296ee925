"""Causal depthwise convolution over a few tokens, as in Mamba (arXiv 2312.00752).

    y_t = sum_j w_j * x_{t-j},   0 <= j < width

The first weight meets the latest input. There is no bias and no activation, and an input of another document counts as zero.

Shapes, with D channels: x [B, T, D]; weight w [D, width]; state [B, width - 1, D], the inputs before x; starts [B, T] bool, True
where a document begins. The state belongs to the document before all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def convolve(x: Tensor, weight: Tensor, state: Tensor, *, starts: Tensor | None) -> Tensor:
    """y [B, T, D] in the dtype of x, in which everything is computed.

    On the CPU a sum of shifted products is faster than a grouped `conv1d`, and it lets a reset cut the taps.
    """
    length, past = x.shape[1], state.shape[1]
    inputs = torch.cat([state.to(x.dtype), x], dim=1)
    weight = weight.to(x.dtype)
    documents = None if starts is None else _documents(starts, past)
    y = x * weight[:, 0]
    for j in range(1, past + 1):
        tap = inputs[:, past - j : past - j + length]
        if documents is not None:
            tap = tap * (documents[:, past:] == documents[:, past - j : past - j + length]).unsqueeze(-1)
        y = y + tap * weight[:, j]
    return y


def last_inputs(x: Tensor, state: Tensor, *, starts: Tensor | None) -> Tensor:
    """The state behind x, in the dtype of the one before; zero where an input is not of the last token's document."""
    length, past = x.shape[1], state.shape[1]
    kept = torch.cat([state.to(x.dtype), x[:, max(0, length - past) :]], dim=1)[:, min(length, past) :]
    if starts is not None:
        documents = _documents(starts, past)
        kept = kept * (documents[:, length:] == documents[:, -1:]).unsqueeze(-1)
    return kept.to(state.dtype)


def _documents(starts: Tensor, past: int) -> Tensor:
    """The document of every input, [B, past + T], by its number; what came before is number 0."""
    return F.pad(starts.cumsum(1), (past, 0))
