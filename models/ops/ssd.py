"""The selective state space of Mamba2 (Dao & Gu 2024, arXiv 2405.21060, eq. 1 and section 7).

    h_t = exp(dt_t A) h_{t-1} + dt_t v_t k_t^T,   y_t = h_t q_t          the paper's C, B, X are our q, k, v

It is linear attention with the decay dt A and the input gate dt (the paper's duality), which computes both forms here.

q, k [B, T, G, K] in G groups, each shared by H / G neighbouring heads; v [B, T, H, V]; dt >= 0 [B, T, H] and A < 0 [H] in
float32 or wider; starts [B, T] bool, where the state is reset, or None; the state h [B, H, V, K] in float32 or wider.
Both forms return y [B, T, H, V] and the state after the last token, both in the dtype of the state.
"""

from __future__ import annotations

from torch import Tensor

from models.ops import decayed_linear_attention


def recurrent(
    *, q: Tensor, k: Tensor, v: Tensor, dt: Tensor, A: Tensor, starts: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The definition, a token at a time."""
    return decayed_linear_attention.recurrent(**_linear_attention(q, k, v, dt, A, starts), state=state)


def chunked(
    *, q: Tensor, k: Tensor, v: Tensor, dt: Tensor, A: Tensor, starts: Tensor | None, state: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """The recurrence as matrix products. Heads of a group repeat the products of its queries and keys."""
    inputs = _linear_attention(q, k, v, dt, A, starts)
    return decayed_linear_attention.chunked(**inputs, state=state, chunk_size=chunk_size)


def _linear_attention(q: Tensor, k: Tensor, v: Tensor, dt: Tensor, A: Tensor, starts: Tensor | None) -> dict[str, Tensor]:
    """The arguments of decayed_linear_attention, every head with the queries and keys of its group."""
    log_decay = dt * A
    if starts is not None:
        log_decay = log_decay.masked_fill(starts.unsqueeze(-1), float("-inf"))
    q, k = (x.repeat_interleave(v.shape[2] // x.shape[2], dim=2) for x in (q, k))
    return {"q": q, "k": k, "v": v, "log_decay": log_decay, "beta": dt}
