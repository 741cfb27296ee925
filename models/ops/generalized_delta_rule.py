"""The generalised delta rule: what is read and erased (e) and where it is written (a) need not be one key.

G_t = G_{t-1} Diag(exp(log_decay_t)) (I - (erase_t * e_t) a_t^T) + (write_t * u_t) a_t^T,   o_t = G_t q_t

With e = a = k, u = v and erase = write = beta it is the delta rule with a scalar decay (Gated DeltaNet, arXiv 2412.06464,
eq. 10) or one for every key dimension (Kimi Delta Attention, arXiv 2510.26692). Several micro-steps (e, a, u and their gates)
may make a token, behind the last of which its query reads (DeltaProduct, arXiv 2502.10297).

Both forms take q [B, T, H, K], e, a [B, n T, H, K] and u [B, n T, H, V] for n micro-steps a token; erase [B, n T, H, 1 or K]
and write [B, n T, H, 1 or V], where None is 1; log_decay <= 0 [B, n T, H] or [B, n T, H, K], or of T tokens, whose first
micro-step it then belongs to; and the state G [B, H, V, K] in float32 or wider. A log_decay of -inf forgets all that came
before. The recurrence diverges where erase * e and a have a product beyond 2. They return o [B, T, H, V] and the state after
the last token, both in the dtype of the state.

One key and one gate are to be handed over as one tensor, twice: a kernel for that case is chosen where a is e, and write is
erase.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from models.ops.channel_blocks import block_products
from models.ops.decay import chunk_decays, join_heads, over_time, split_heads
from models.ops.scan import Corrections, scan_corrected


def recurrent(
    *,
    q: Tensor,
    e: Tensor,
    a: Tensor,
    u: Tensor,
    log_decay: Tensor,
    erase: Tensor | None,
    write: Tensor | None,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """The definition, a micro-step at a time."""
    micro_steps, outputs = e.shape[1] // q.shape[1], []
    e, u, log_decay = gated(e, erase), gated(u, write), by_micro_step(log_decay, e.shape[1])
    queries = over_time(q, dtype=state.dtype)
    for step, (e_s, a_s, u_s, decay_s) in enumerate(over_time(e, a, u, log_decay.exp(), dtype=state.dtype), start=1):
        state = state * decay_s.mT
        state = state + (u_s - state @ e_s) @ a_s.mT
        if step % micro_steps == 0:
            (q_t,) = next(queries)
            outputs.append(state @ q_t)
    return torch.stack(outputs, dim=1).squeeze(-1), state


def gated(x: Tensor, gate: Tensor | None) -> Tensor:
    """x times its gate, where None is 1."""
    return x if gate is None else gate * x


def by_micro_step(log_decay: Tensor, num_steps: int) -> Tensor:
    """A log_decay of every micro-step: that of a token is its first one's, and the others have none."""
    others = num_steps // log_decay.shape[1] - 1
    if not others:
        return log_decay
    return F.pad(log_decay.unsqueeze(2), (0, 0) * (log_decay.ndim - 2) + (0, others)).flatten(1, 2)


def chunked(
    *,
    q: Tensor,
    e: Tensor,
    a: Tensor,
    u: Tensor,
    log_decay: Tensor,
    erase: Tensor | None,
    write: Tensor | None,
    state: Tensor,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """The recurrence as matrix products (the UT transform of arXiv 2406.06484, section 3.2), chunk_size tokens a chunk.

    G is decayed linear attention over the corrections w_i = u_i - G_{i-1} Diag(exp(log_decay_i)) e_i in place of u_i. In a
    chunk that starts from the state S they solve (I + L) w = u - (what is left of S at i) e_i, where L_ij for j < i is the
    product of e_i and a_j with the decays between them: w is what it is from S = 0, less S times the erasing keys.
    """
    shape, micro_steps = torch.Size((*q.shape[:3], u.shape[3])), e.shape[1] // q.shape[1]
    e, u, log_decay = gated(e, erase), gated(u, write), by_micro_step(log_decay, e.shape[1])
    (q,) = split_heads(q, chunk_size=chunk_size, dtype=state.dtype)
    e, a, u, log_decay = split_heads(e, a, u, log_decay, chunk_size=micro_steps * chunk_size, dtype=state.dtype)
    pairs = _scalar_pairs(q, e, a, log_decay) if log_decay.ndim == 2 else _channel_pairs(q, e, a, log_decay)
    # The solve reads only below the diagonal. A product of powers of L, exact on paper, cancels badly for equal keys.
    identity = torch.eye(u.shape[1], dtype=u.dtype, device=u.device).expand_as(pairs.erased)
    inverse = torch.linalg.solve_triangular(pairs.erased, identity, upper=False, unitriangular=True)
    from_zero, erasing = torch.bmm(inverse, u), torch.bmm(inverse, pairs.e)
    corrections = Corrections(from_zero, erasing, pairs.a)
    read, w, state = scan_corrected(q=pairs.q, corrections=corrections, writes=None, kept=pairs.kept, state=state)
    return join_heads(torch.baddbmm(read, pairs.read, w), shape), state


class Pairs(NamedTuple):
    """M chunks of C tokens and N = n C micro-steps with their decays.

    erased: [M, N, N], products of e_i and a_j, which count below the diagonal alone. read: [M, C, N], those of q_t and a_j, 0
    where j comes after t. q, e: [M, C, K] and [M, N, K], which read what is left of the state before the chunk. a: [M, N, K],
    what is left of it behind the chunk. kept: [M, 1, K or 1], what a chunk leaves of the state before it.
    """

    erased: Tensor
    read: Tensor
    q: Tensor
    e: Tensor
    a: Tensor
    kept: Tensor


def _scalar_pairs(q: Tensor, e: Tensor, a: Tensor, log_decay: Tensor) -> Pairs:
    """Every product times its one decay; log_decay [M, N]."""
    decays = chunk_decays(log_decay)
    micro_steps, from_start = e.shape[1] // q.shape[1], decays.from_start.unsqueeze(-1)
    # A query reads behind the last micro-step of its token.
    last = slice(micro_steps - 1, None, micro_steps)
    return Pairs(
        erased=torch.bmm(e, a.mT) * decays.within,
        read=torch.bmm(q, a.mT) * decays.within[:, last],
        q=q * from_start[:, last],
        e=e * from_start,
        a=a * decays.to_end.unsqueeze(-1),
        kept=from_start[:, -1:],
    )


def _channel_pairs(q: Tensor, e: Tensor, a: Tensor, log_decay: Tensor) -> Pairs:
    """Products whose K terms have decays of their own, log_decay [M, N, K]."""
    micro_steps, decay = e.shape[1] // q.shape[1], log_decay.exp()
    last = slice(micro_steps - 1, None, micro_steps)
    # Every micro-step has a query, of which only that behind the last of a token counts.
    query = q if micro_steps == 1 else F.pad(q.unsqueeze(2), (0, 0, micro_steps - 1, 0)).flatten(1, 2)
    products = block_products([e * decay, query * decay], [a], decay)
    (erased,), (read,) = products.pairs
    # What a query reads of its own micro-step has not decayed.
    read = read + torch.diag_embed(torch.linalg.vecdot(query, a))
    e_start, q_start = products.rows
    return Pairs(erased, read[:, last], q=q_start[:, last], e=e_start, a=products.columns[0], kept=products.kept)
