"""PaTH attention (arXiv 2505.16381): softmax attention whose keys are turned by every token that comes after them.

    o_t = sum_j p_tj v_j,   p_t = softmax over j of  q_t^T H_t H_{t-1} ... H_{j+1} k_j / sqrt(K) + sum_{j < s <= t} log_forget_s
    H_s = I - beta_s w_s w_s^T

The second term, a forget gate as of FoX (arXiv 2503.02130), is left out with a log_forget of None.

Both forms take q, k, w [B, T, H, K], v [B, T, H, V], beta in [0, 2] and log_forget <= 0 and finite, both [B, T, H], and the
`Cache` of S earlier tokens; span [B, T] (or [1, T]) int64 is how many earlier keys a query may see, 0 <= span_t <= S + t. w has
at most unit length, else keys grow. They return o [B, T, H, V] in the dtype of the cached keys, and the cache of S + T tokens.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Cache(NamedTuple):
    """Keys and values of the tokens so far, in their order.

    k: [B, H, S, K], turned by all tokens behind their own, in float32 or wider: a key is rewritten once a token.
    v: [B, H, S, V], as they were computed.
    decay: [B, H, S], sums of log_forget behind each token, in the dtype of k; None without a forget gate.
    """

    k: Tensor
    v: Tensor
    decay: Tensor | None


def recurrent(
    *, q: Tensor, k: Tensor, v: Tensor, w: Tensor, beta: Tensor, log_forget: Tensor | None, span: Tensor, cache: Cache
) -> tuple[Tensor, Cache]:
    """The definition, a token at a time: all keys of the cache are turned by H_t, then that of the token itself is added."""
    dtype, outputs = cache.k.dtype, []
    heads = [x.to(dtype).transpose(1, 2).unsqueeze(-2) for x in (q, k, w, beta.unsqueeze(-1))]
    keys, values, decay = cache.k, cache.v.to(v.dtype), cache.decay
    for t, (q_t, k_t, w_t, beta_t) in enumerate(zip(*(x.unbind(2) for x in heads), strict=True)):
        keys = torch.cat([_turned(keys, w_t, beta_t), k_t], dim=2)
        values = torch.cat([values, v[:, t].unsqueeze(2)], dim=2)
        scores = q_t @ keys.mT / math.sqrt(q.shape[-1])
        if decay is not None and log_forget is not None:
            forget_t = log_forget[:, t].to(dtype).unsqueeze(-1)
            decay = torch.cat([decay + forget_t, torch.zeros_like(forget_t)], dim=2)
            scores = scores + decay.unsqueeze(2)
        outputs.append(_read(scores, values, _visible(span[:, t : t + 1], keys.shape[2])))
    return torch.cat(outputs, dim=2).transpose(1, 2), Cache(keys, values, decay)


def chunked(
    *,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    beta: Tensor,
    log_forget: Tensor | None,
    span: Tensor,
    cache: Cache,
    chunk_size: int,
) -> tuple[Tensor, Cache]:
    """`recurrent` in chunks of chunk_size >= 1 tokens: what trains.

    A product of H is I - W^T U W over the rows w of a chunk, with U upper triangular (the UT transform of arXiv 2406.06484,
    section 3.2). It takes queries back to the start of their chunk, where they meet the cached keys, and keys to its end.
    """
    dtype, outputs = cache.k.dtype, []
    heads = [x.to(dtype).transpose(1, 2).split(chunk_size, dim=2) for x in (q, k, w, beta.unsqueeze(-1))]
    values, spans = v.transpose(1, 2).split(chunk_size, dim=2), span.split(chunk_size, dim=1)
    forgets = None if log_forget is None else log_forget.to(dtype).transpose(1, 2).split(chunk_size, dim=2)
    for n, (q_n, k_n, w_n, beta_n) in enumerate(zip(*heads, strict=True)):
        keys, scores = _scores(q_n, k_n, w_n, beta_n, cache.k)
        scores, decay = scores / math.sqrt(q.shape[-1]), cache.decay
        if decay is not None and forgets is not None:
            bias = _decays(forgets[n], decay)
            scores, decay = scores + bias, bias[:, :, -1]
        cache = Cache(keys, torch.cat([cache.v.to(v.dtype), values[n]], dim=2), decay)
        outputs.append(_read(scores, cache.v, _visible(spans[n], keys.shape[2])))
    return torch.cat(outputs, dim=2).transpose(1, 2), cache


def decode_(
    *, q: Tensor, k: Tensor, v: Tensor, w: Tensor, beta: Tensor, log_forget: Tensor | None, slot: Tensor, cache: Cache
) -> Tensor:
    """`recurrent` of one token over a cache of fixed size, into which it is written; returns o [B, H, V].

    q, k, w [B, H, K], v [B, H, V], beta, log_forget [B, H]. slot: [B] int64, where the token goes; it sees the slots up to that.
    """
    q, w = (x.to(cache.k.dtype).unsqueeze(2) for x in (q, w))
    cache.k.copy_(_turned(cache.k, w, beta.to(w.dtype)[..., None, None]))
    # By an index: a compiler makes a copy of the whole cache for a scatter, and back.
    sequence = torch.arange(len(slot), device=slot.device)
    cache.k[sequence, :, slot] = k.to(cache.k.dtype)
    cache.v[sequence, :, slot] = v.to(cache.v.dtype)
    scores = q @ cache.k.mT / math.sqrt(q.shape[-1])
    if cache.decay is not None and log_forget is not None:
        cache.decay.add_(log_forget.to(scores.dtype).unsqueeze(-1))
        cache.decay.masked_fill_(_slots(cache) == slot.view(-1, 1, 1), 0.0)
        scores = scores + cache.decay.unsqueeze(2)
    return _read(scores, cache.v, (_slots(cache) <= slot.view(-1, 1, 1)).unsqueeze(1)).squeeze(2)


def _turned(keys: Tensor, w: Tensor, beta: Tensor) -> Tensor:
    """H k for all keys [B, H, S, K], with w [B, H, 1, K] and beta [B, H, 1, 1]."""
    return keys - (keys @ w.mT) @ (beta * w)


def _scores(q: Tensor, k: Tensor, w: Tensor, beta: Tensor, cached: Tensor) -> tuple[Tensor, Tensor]:
    """All keys [B, H, S + C, K] turned to the end of a chunk, and q^T H ... H k of its queries with them [B, H, C, S + C].

    q, k, w: [B, H, C, K]; beta: [B, H, C, 1]; cached: [B, H, S, K]. A score with a later key has no meaning.
    """
    # The solve reads only below the diagonal.
    lower = torch.linalg.solve_triangular(beta * (w @ w.mT), torch.diag_embed(beta.squeeze(-1)), upper=False, unitriangular=True)
    # What w meets of every key, once the tokens between have turned it; a key is turned by later tokens alone.
    own, earlier = lower @ (w @ k.mT).tril(-1), lower @ (w @ cached.mT)
    met = (q @ w.mT).tril()
    scores = torch.cat([q @ cached.mT - met @ earlier, q @ k.mT - met @ own], dim=-1)
    return torch.cat([cached - earlier.mT @ w, k - own.mT @ w], dim=2), scores


def _decays(log_forget: Tensor, cached: Tensor) -> Tensor:
    """What is forgotten between every key and the queries of a chunk, [B, H, C, S + C] from [B, H, C] and [B, H, S].

    Each pair has a sum of its own: a difference of running sums would be off behind a gate that forgot nearly all, and would
    carry the rounding of one document into the next.
    """
    size = log_forget.shape[-1]
    between = log_forget.unsqueeze(-1).expand(*log_forget.shape, size).tril(-1).cumsum(-2)
    return torch.cat([cached.unsqueeze(-2) + log_forget.cumsum(-1).unsqueeze(-1), between], dim=-1)


def _read(scores: Tensor, values: Tensor, visible: Tensor) -> Tensor:
    """softmax(scores) of what is visible, times the values."""
    return scores.masked_fill(~visible, float("-inf")).softmax(-1) @ values.to(scores.dtype)


def _visible(span: Tensor, num_keys: int) -> Tensor:
    """[B, 1, T, S] bool: which of the keys, whose last T belong to the queries, are at a distance from 0 to span [B, T]."""
    key = torch.arange(num_keys, device=span.device)
    distance = key[num_keys - span.shape[1] :].unsqueeze(1) - key
    return ((distance >= 0) & (distance <= span.unsqueeze(-1))).unsqueeze(1)


def _slots(cache: Cache) -> Tensor:
    return torch.arange(cache.k.shape[2], device=cache.k.device)
