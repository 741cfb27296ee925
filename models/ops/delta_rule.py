"""The delta rule, gated (Gated DeltaNet, arXiv 2412.06464, eq. 10) and, with log_decay = 0, plain (DeltaNet, 2406.06484).

G_t = gamma_t G_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T,   o_t = G_t q_t,   gamma_t = exp(log_decay_t)

Both forms take q, k [B, T, H, K], v [B, T, H, V], log_decay <= 0 and beta in [0, 1] [B, T, H], and the state
G [B, H, V, K] in float32 or wider; a log_decay of -inf forgets all that came before. Keys have at most unit length,
else the recurrence itself diverges. They return o [B, T, H, V] and the state after the last token, both in the dtype
of the state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.ops.decay import chunk_decays, join_heads, over_time, split_heads
from models.ops.scan import Corrections, scan_corrected


def recurrent(*, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, a token at a time: what the decayed state returns for k_t is moved towards v_t."""
    outputs = []
    for q_t, k_t, v_t, decay_t, beta_t in over_time(q, k, v, log_decay.exp(), beta, dtype=state.dtype):
        state = decay_t * state
        state = state + (beta_t * (v_t - state @ k_t)) @ k_t.mT
        outputs.append(state @ q_t)
    return torch.stack(outputs, dim=1).squeeze(-1), state


def chunked(
    *, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """The recurrence as matrix products (the UT transform of arXiv 2406.06484, section 3.2, with decays).

    G is decayed linear attention over the corrections u_t = beta_t (v_t - gamma_t G_{t-1} k_t) in place of beta_t v_t.
    In a chunk that starts from the state S they solve (I + A) u_t = beta_t (v_t - zeta_t0 S k_t), where
    A_ts = beta_t zeta_ts k_t^T k_s for s < t: u is what it is from S = 0, less S times the erasing keys.
    """
    shape = v.shape
    q, k, v, log_decay, beta = split_heads(q, k, v, log_decay, beta, chunk_size=chunk_size, dtype=state.dtype)
    decays = chunk_decays(log_decay)
    # The solve reads only below the diagonal. A product of powers of A, exact on paper, cancels badly for equal keys.
    interaction = torch.bmm(k, k.mT) * (decays.within * beta.unsqueeze(-1))
    inverse = torch.linalg.solve_triangular(interaction, torch.diag_embed(beta), upper=False, unitriangular=True)
    from_zero = torch.bmm(inverse, v)
    erasing = torch.bmm(inverse * decays.from_start.unsqueeze(-2), k)
    decayed = decays.from_start.unsqueeze(-1)
    corrections = Corrections(from_zero, erasing, k * decays.to_end.unsqueeze(-1))
    read, u, state = scan_corrected(q=q * decayed, corrections=corrections, writes=None, kept=decayed[:, -1:], state=state)
    o = torch.baddbmm(read, torch.bmm(q, k.mT) * decays.within, u)
    return join_heads(o, shape), state
