"""Gated linear attention (arXiv 2312.06635, eq. 3), which forgets at a rate of its own in every key dimension.

G_t = G_{t-1} diag(gamma_t) + v_t k_t^T,   o_t = G_t q_t,   gamma_t = exp(log_decay_t)

Both forms take q, k [B, T, H, K], v [B, T, H, V], log_decay <= 0 [B, T, H, K], and the state G [B, H, V, K] in float32 or
wider; a log_decay of -inf forgets all that came before. They return o [B, T, H, V] and the state after the last token,
both in the dtype of the state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.ops.channel_decay import Side, channel_products, safe_chunk_size
from models.ops.decay import chunk_decays, join_heads, over_time, split_heads
from models.ops.scan import Writes, scan_linear


def recurrent(*, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, a token at a time."""
    outputs = []
    for q_t, k_t, v_t, decay_t in over_time(q, k, v, log_decay.exp(), dtype=state.dtype):
        state = state * decay_t.mT + v_t @ k_t.mT
        outputs.append(state @ q_t)
    return torch.stack(outputs, dim=1).squeeze(-1), state


def chunked(*, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, chunk_size: int) -> tuple[Tensor, Tensor]:
    """The recurrence in chunks: attention inside one, the state from chunk to chunk.

    The decays between pairs of tokens are products of two factors each, in chunks short enough for the gates at hand. Behind
    gates that are too strong for that, every pair has K decays, held as [C, C, K], so that memory is that of T C K numbers a head.
    """
    shape, safe = v.shape, safe_chunk_size(log_decay, chunk_size)
    q, k, v, log_decay = split_heads(q, k, v, log_decay, chunk_size=safe or chunk_size, dtype=state.dtype)
    weights, q, k, kept = _by_pairs(q, k, log_decay) if safe is None else _by_factors(q, k, log_decay)
    read, state = scan_linear(q=q, writes=Writes(v, k), kept=kept, state=state)
    return join_heads(torch.baddbmm(read, weights, v), shape), state


def _by_factors(q: Tensor, k: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What tokens of a chunk weigh to each other [M, C, C], q decayed from its start, k to its end, and what it leaves."""
    tokens = slice(1, None)
    products = channel_products([Side(q, tokens)], [Side(k, tokens)], log_decay)
    return products.pairs[0][0], products.rows[0], products.columns[0], products.kept


def _by_pairs(q: Tensor, k: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`_by_factors` whatever the gates."""
    decays = chunk_decays(log_decay.mT)  # [M, K, C, C] and [M, K, C]
    from_start, to_end = decays.from_start.mT, decays.to_end.mT
    # The weight of s at t: the sum over d of q_td k_sd and what is left at t of d as s wrote it.
    weights = torch.einsum("mtd,mdts,msd->mts", q, decays.within, k)
    return weights, q * from_start, k * to_end, from_start[:, -1:]
