"""The mLSTM cell of xLSTM (arXiv 2405.04517, eq. 19 to 27) with its exponential input gate, stabilised.

G_t = gamma_t G_{t-1} + beta_t v_t k_t^T,   z_t = gamma_t z_{t-1} + beta_t k_t,   o_t = G_t q_t / max(1, |z_t^T q_t|)

with gamma_t = exp(log_decay_t), beta_t = exp(log_beta_t). beta is unbounded, so the state holds exp(-m) G and exp(-m) z
with m_t = max(0, log_decay_t + m_{t-1}, log_beta_t), and divides by max(exp(-m_t), |z_t^T q_t|). The 0 is ours: it
changes no read-out, since nothing below 1 needs scaling, bounds exp(-m), and makes a reset state equal to a fresh one.

Both forms take q, k [B, T, H, K], v [B, T, H, V], log_decay <= 0 (-inf forgets all that came before) and log_beta
[B, T, H], and a state in float32 or wider. They return o [B, T, H, V] and the state after the last token, in the dtype
of the state. Read-outs don't depend on m, which is a constant to the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from models.ops import decayed_linear_attention
from models.ops.decay import FORGOTTEN, over_time


class MLSTMState(NamedTuple):
    """G: [B, H, V, K] and z: [B, H, K], both times exp(-m). m: [B, H], 0 at first."""

    G: Tensor
    z: Tensor
    m: Tensor


def recurrent(
    *, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, log_beta: Tensor, state: MLSTMState
) -> tuple[Tensor, MLSTMState]:
    """The definition, a token at a time."""
    G, z, m = state.G, state.z.unsqueeze(-1), state.m[..., None, None]
    outputs = []
    for q_t, k_t, v_t, log_decay_t, log_beta_t in over_time(q, k, v, log_decay, log_beta, dtype=G.dtype):
        m_before, m = m, torch.maximum(log_decay_t + m, log_beta_t).clamp(min=0.0).detach()
        decay_t, beta_t = (log_decay_t + m_before - m).exp(), (log_beta_t - m).exp()
        G = decay_t * G + (beta_t * v_t) @ k_t.mT
        z = decay_t * z + beta_t * k_t
        outputs.append(G @ q_t / torch.maximum((z.mT @ q_t).abs(), (-m).exp()))
    return torch.stack(outputs, dim=1).squeeze(-1), MLSTMState(G, z.squeeze(-1), m[..., 0, 0])


def chunked(
    *, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, log_beta: Tensor, state: MLSTMState, chunk_size: int
) -> tuple[Tensor, MLSTMState]:
    """The recurrence in matrix products."""
    linear_attention = partial(decayed_linear_attention.chunked, chunk_size=chunk_size)
    return by_linear_attention(linear_attention, q=q, k=k, v=v, log_decay=log_decay, log_beta=log_beta, state=state)


def by_linear_attention(
    linear_attention: Callable[..., tuple[Tensor, Tensor]],
    *,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    log_beta: Tensor,
    state: MLSTMState,
) -> tuple[Tensor, MLSTMState]:
    """The recurrence by any form of decayed linear attention, over stabilised gates; z is a row more of G, written by a v of 1.

    linear_attention: takes and returns what models/ops/decayed_linear_attention.py does.
    """
    dtype = state.G.dtype
    m = stabiliser(log_decay=log_decay, log_beta=log_beta, initial=state.m)
    before = torch.cat([state.m.unsqueeze(1), m[:, :-1]], dim=1)
    o, G = linear_attention(
        q=q,
        k=k,
        v=F.pad(v, (0, 1), value=1.0),
        log_decay=log_decay.to(dtype) + (before - m),
        beta=(log_beta - m).exp(),
        state=torch.cat([state.G, state.z.unsqueeze(-2)], dim=-2),
    )
    o = o[..., :-1] / torch.maximum(o[..., -1:].abs(), (-m).exp().unsqueeze(-1))
    return o, MLSTMState(G[..., :-1, :], G[..., -1, :], m[:, -1])


@torch.no_grad()
def stabiliser(*, log_decay: Tensor, log_beta: Tensor, initial: Tensor) -> Tensor:
    """All m_t = max(0, log_decay_t + m_{t-1}, log_beta_t), [B, T, H] in the dtype of `initial` [B, H].

    Less the running sum of log_decay it is a running maximum. -inf is cut to FORGOTTEN, which leaves nothing of an m
    below -FORGOTTEN, and no gate comes near that.
    """
    # A GPU sums a sequence up in parallel where its numbers lie side by side, and else a number after the other.
    log_decay, log_beta = log_decay.mT.contiguous(), log_beta.mT.contiguous()
    total = log_decay.clamp(min=FORGOTTEN).double().cumsum(-1)
    relative = (log_beta.clamp(min=0.0) - total).cummax(-1).values
    return (total + torch.maximum(relative, initial.double().unsqueeze(-1))).to(initial.dtype).mT.contiguous()
