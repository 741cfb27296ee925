"""Gated linear attention (arXiv 2312.06635, eq. 3), which forgets at a rate of its own in every key dimension.

G_t = G_{t-1} diag(gamma_t) + v_t k_t^T,   o_t = G_t q_t,   gamma_t = exp(log_decay_t)

Both forms take q, k [B, T, H, K], v [B, T, H, V], log_decay <= 0 [B, T, H, K], and the state G [B, H, V, K] in float32 or
wider; a log_decay of -inf forgets all that came before. They return o [B, T, H, V] and the state after the last token,
both in the dtype of the state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.ops.channel_blocks import block_products
from models.ops.channel_decay import Products, Side, channel_products
from models.ops.decay import join_heads, over_time, split_heads
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

    The decays between pairs of tokens are products of two factors each, where the gates permit, and of blocks where they do not.
    """
    shape = v.shape
    q, k, v, log_decay = split_heads(q, k, v, log_decay, chunk_size=chunk_size, dtype=state.dtype)
    tokens = slice(1, None)
    products = channel_products([Side(q, tokens)], [Side(k, tokens)], log_decay, lambda: _by_blocks(q, k, log_decay))
    ((weights,),), (q_start,), (k_end,) = products.pairs, products.rows, products.columns
    read, state = scan_linear(q=q_start, writes=Writes(v, k_end), kept=products.kept, state=state)
    return join_heads(torch.baddbmm(read, weights, v), shape), state


def _by_blocks(q: Tensor, k: Tensor, log_decay: Tensor) -> Products:
    """The products of q and k whatever the gates."""
    decay = log_decay.exp()
    products = block_products([q * decay], [k], decay)
    ((weights,),) = products.pairs
    # What a query reads of its own token has not decayed.
    return products._replace(pairs=[[weights + torch.diag_embed(torch.linalg.vecdot(q, k))]])
