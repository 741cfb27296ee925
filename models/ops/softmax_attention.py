"""Softmax attention over the tokens that came last (Vaswani et al. 2017, eq. 1).

    o_t = sum_s p_ts v_s,   p_t = softmax(q_t . k_s / sqrt(K)) over the keys with 0 <= t - s <= span_t

`masked` is the definition, `fused` computes it by PyTorch's kernel and `windowed` in time linear in T; `attend` chooses between
these two. FlexAttention stands in models/backends/flex_attention.py, a query over a cache in models/ops/cached_attention.py.
All take q [B, T, H, K], and k, v [B, S, H, K] with S >= T, whose last T keys belong to the T queries; span [B, T]
(or [1, T]) int64 is how many earlier keys a query may see, 0 <= span_t <= S - T + t. All return o [B, T, H, K].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

MIN_BLOCK = 32
"""Shorter blocks of queries spend longer on overhead than they save on keys out of the window."""

BLOCKS_WORTH_SPLITTING = 8
"""A sequence of no more blocks than this is faster masked as a whole (measured on a CPU, T = 128 to 2048)."""


def attend(*, q: Tensor, k: Tensor, v: Tensor, span: Tensor | None, window: int | None) -> Tensor:
    """`masked` by the faster form: a span of None is every earlier token, for S = T; span < window where that is given."""
    if span is None or window is None:
        return fused(q=q, k=k, v=v, span=span)
    return windowed(q=q, k=k, v=v, span=span, window=window)


def masked(*, q: Tensor, k: Tensor, v: Tensor, span: Tensor) -> Tensor:
    """The definition: all T x S scores, those out of the span set to -inf."""
    scores = torch.einsum("bthk,bshk->bhts", q, k) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~_visible(span, k.shape[1]).unsqueeze(1), float("-inf")).softmax(-1)
    return torch.einsum("bhts,bshk->bthk", weights, v)


def fused(*, q: Tensor, k: Tensor, v: Tensor, span: Tensor | None) -> Tensor:
    """`masked` by `scaled_dot_product_attention`; a span of None is every earlier token, for S = T."""
    mask = None if span is None else _visible(span, k.shape[1]).unsqueeze(1)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None).transpose(1, 2)


def windowed(*, q: Tensor, k: Tensor, v: Tensor, span: Tensor, window: int) -> Tensor:
    """`masked` for span < window and S - T < window, in O(T window) time and memory.

    A block of C >= window queries sees at most its own C keys and the window - 1 before them.
    """
    B, T = q.shape[:2]
    C = max(window, MIN_BLOCK)
    if T <= BLOCKS_WORTH_SPLITTING * C:
        return fused(q=q, k=k, v=v, span=span)
    missing = -T % C
    # The padding in front is out of every span; a padded query sees its own padded key, so no row is empty.
    before = window - 1 - (k.shape[1] - T)
    k, v = (F.pad(x, (0, 0, 0, 0, before, missing)).unfold(1, C + window - 1, C) for x in (k, v))
    k, v = (x.movedim(-1, 2).flatten(0, 1) for x in (k, v))  # [B N, C + window - 1, H, K]
    q = F.pad(q, (0, 0, 0, 0, 0, missing)).unflatten(1, (-1, C)).flatten(0, 1)
    span = F.pad(span.expand(B, T), (0, missing)).unflatten(1, (-1, C)).flatten(0, 1)
    return fused(q=q, k=k, v=v, span=span).unflatten(0, (B, -1)).flatten(1, 2)[:, :T]


def _visible(span: Tensor, num_keys: int) -> Tensor:
    """[B, T, S] bool: which keys are at a distance from 0 to span."""
    key = torch.arange(num_keys, device=span.device)
    distance = key[num_keys - span.shape[1] :].unsqueeze(1) - key
    return (distance >= 0) & (distance <= span.unsqueeze(-1))
