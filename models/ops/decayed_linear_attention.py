"""Linear attention with scalar gates (MesaNet, arXiv 2506.05233, Table 1, rows Mamba2 and GLA).

G_t = gamma_t G_{t-1} + beta_t v_t k_t^T,   o_t = G_t q_t,   gamma_t = exp(log_decay_t)

Both forms take q, k [B, T, H, K], v [B, T, H, V], log_decay <= 0 and beta >= 0 [B, T, H], and the state G [B, H, V, K]
in float32 or wider; a log_decay of -inf forgets all that came before. They return o [B, T, H, V] and the state after
the last token, both in the dtype of the state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.ops.decay import chunk_decays, join_heads, over_time, split_heads
from models.ops.scan import Writes, scan_linear


def recurrent(*, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, a token at a time."""
    outputs = []
    for q_t, k_t, v_t, decay_t, beta_t in over_time(q, k, v, log_decay.exp(), beta, dtype=state.dtype):
        state = decay_t * state + (beta_t * v_t) @ k_t.mT
        outputs.append(state @ q_t)
    return torch.stack(outputs, dim=1).squeeze(-1), state


def chunked(
    *, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """The recurrence as matrix products (MesaNet eq. 9): attention inside a chunk, the state from chunk to chunk."""
    shape = v.shape
    q, k, v, log_decay, beta = split_heads(q, k, v, log_decay, beta, chunk_size=chunk_size, dtype=state.dtype)
    decays = chunk_decays(log_decay)
    decayed, writes = decays.from_start.unsqueeze(-1), Writes(v, k * (decays.to_end * beta).unsqueeze(-1))
    read, state = scan_linear(q=q * decayed, writes=writes, kept=decayed[:, -1:], state=state)
    weights = torch.bmm(q, k.mT) * (decays.within * beta.unsqueeze(-2))
    return join_heads(torch.baddbmm(read, weights, v), shape), state
