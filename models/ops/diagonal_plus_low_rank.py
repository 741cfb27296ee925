"""A rule that erases what the state held before its decay by one key, and writes by another (RWKV-7, arXiv 2503.14456).

G_t = G_{t-1} Diag(exp(log_decay_t)) - (G_{t-1} e_t) a_t^T + v_t k_t^T,   o_t = G_t q_t

A token's matrix is a diagonal one and one of rank one beside it. Both forms take q, k, e, a [B, T, H, K], v [B, T, H, V],
log_decay [B, T, H, K] from FLOOR to 0, where -inf forgets all that came before in a channel, and the state G [B, H, V, K] in
float32 or wider. `floor` says what no log_decay is below, -inf where that is not known: some kernels ask, and the forms here
do not. They return o [B, T, H, V] and the state after the last token, both in the dtype of the state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.ops.channel_blocks import block_products
from models.ops.channel_decay import Products, Side, channel_products
from models.ops.decay import join_heads, over_time, split_heads
from models.ops.scan import Corrections, Writes, scan_corrected

FLOOR = -40.0
"""A stronger decay leaves nothing beside what is erased, in float64 as well, and `chunked` would divide by it."""


def recurrent(
    *, q: Tensor, k: Tensor, v: Tensor, e: Tensor, a: Tensor, log_decay: Tensor, state: Tensor, floor: float
) -> tuple[Tensor, Tensor]:
    """The definition, a token at a time."""
    outputs, e = [], forgetting(e, log_decay)
    for q_t, k_t, v_t, e_t, a_t, decay_t in over_time(q, k, v, e, a, log_decay.exp(), dtype=state.dtype):
        state = state * decay_t.mT + torch.cat([v_t, -(state @ e_t)], dim=-1) @ torch.cat([k_t, a_t], dim=-1).mT
        outputs.append(state @ q_t)
    return torch.stack(outputs, dim=1).squeeze(-1), state


def chunked(
    *, q: Tensor, k: Tensor, v: Tensor, e: Tensor, a: Tensor, log_decay: Tensor, state: Tensor, floor: float, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """The recurrence as matrix products (the UT transform of arXiv 2406.06484, section 3.2).

    The corrections w_t = -G_{t-1} e_t are written along a as v is along k. In a chunk that starts from S they solve (I + A) w_t =
    -(B v)_t - (what is left of S before t) e_t, where A_ts and B_ts for s < t are the products of e_t with a_s and k_s and the
    decays between s and the token before t.
    """
    shape = v.shape
    tensors = (q, k, v, forgetting(e, log_decay), a, log_decay)
    q, k, v, e, a, log_decay = split_heads(*tensors, chunk_size=chunk_size, dtype=state.dtype)
    after = slice(1, None)
    rows, columns = (Side(e, slice(-1)), Side(q, after)), (Side(a, after), Side(k, after))
    products = channel_products(rows, columns, log_decay, lambda: _by_blocks(q, k, e, a, log_decay))
    (erased, met), (read, attended) = products.pairs
    e_start, q_start = products.rows
    a_end, k_end = products.columns
    identity = torch.eye(e.shape[1], dtype=e.dtype, device=e.device).expand_as(erased)
    inverse = torch.linalg.solve_triangular(erased, identity, upper=False, unitriangular=True)
    corrections = Corrections(-torch.bmm(inverse, torch.bmm(met, v)), torch.bmm(inverse, e_start), a_end)
    before, w, state = scan_corrected(
        q=q_start, corrections=corrections, writes=Writes(v, k_end), kept=products.kept, state=state
    )
    o = torch.baddbmm(torch.baddbmm(before, read, w), attended, v)
    return join_heads(o, shape), state


def _by_blocks(q: Tensor, k: Tensor, e: Tensor, a: Tensor, log_decay: Tensor) -> Products:
    """The products whatever the gates."""
    decay = log_decay.exp()
    products = block_products([e, q * decay], [a, k], decay)
    # What a query reads of its own token has not decayed.
    met, attended = products.pairs
    attended = [x + torch.diag_embed(torch.linalg.vecdot(q, own)) for x, own in zip(attended, (a, k), strict=True)]
    return products._replace(pairs=[met, attended])


def forgetting(e: Tensor, log_decay: Tensor) -> Tensor:
    """e without the channels that a log_decay of -inf forgets, of which nothing is read."""
    return e.masked_fill(log_decay.isneginf(), 0.0)
