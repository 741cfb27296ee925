"""The delta rule with momentum (Momentum DeltaNet, arXiv 2605.05838): the state is moved by a decayed sum of gradients.

    M_t = mu_t M_{t-1} + (G_{t-1} p_t - v_t) k_t^T,   mu_t = exp(log_momentum_t)
    G_t = gamma_t G_{t-1} - beta_t M_t,   o_t = G_t q_t,   gamma_t = exp(log_decay_t)

The paper's step size eta_t is part of k here, and its S_t is our G_t, transposed. M is a sum of gradients of
|G_{t-1} p_t - v_t|^2 / 2, where p_t is what is read of the old state: gamma_t k_t reads the decayed one. With mu = 0 it is
the gated delta rule.

Both forms take q, p, k [B, T, H, K], v [B, T, H, V], log_decay <= 0, log_momentum <= 0 and beta [B, T, H], and a state in
float32 or wider. A log_decay of -inf forgets all that came before, in G and in M, whatever p and log_momentum are there;
a log_momentum of -inf forgets in M alone. They return o [B, T, H, V] and the state after the last token, both in the dtype
of the state.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from models.ops.decay import chunk_decays, join_heads, over_time, split_heads
from models.ops.scan import Corrections, scan_corrected


class MomentumState(NamedTuple):
    """G and M, each [B, H, V, K]."""

    G: Tensor
    M: Tensor


def recurrent(
    *, q: Tensor, p: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, log_momentum: Tensor, beta: Tensor, state: MomentumState
) -> tuple[Tensor, MomentumState]:
    """The definition, a token at a time."""
    p, log_momentum = _forgetting(p, log_decay, log_momentum)
    G, M = state
    outputs = []
    gates = log_decay.exp(), log_momentum.exp(), beta
    for q_t, p_t, k_t, v_t, decay_t, momentum_t, beta_t in over_time(q, p, k, v, *gates, dtype=G.dtype):
        M = momentum_t * M + (G @ p_t - v_t) @ k_t.mT
        G = decay_t * G - beta_t * M
        outputs.append(G @ q_t)
    return torch.stack(outputs, dim=1).squeeze(-1), MomentumState(G, M)


def chunked(
    *,
    q: Tensor,
    p: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    log_momentum: Tensor,
    beta: Tensor,
    state: MomentumState,
    chunk_size: int,
) -> tuple[Tensor, MomentumState]:
    """The recurrence as matrix products. In a chunk that starts from G and M it is a sum over errors e_s = G_{s-1} p_s - v_s:

        M_t = mu_t0 M + sum_{s <= t} mu_ts e_s k_s^T,   G_t = gamma_t0 G - c_t0 M - sum_{s <= t} c_ts e_s k_s^T

    where gamma_ts and mu_ts are products of gates behind s up to t, and c_ts = sum_{s <= r <= t} gamma_tr beta_r mu_rs is what
    a gradient of s has moved G by at t. As in the delta rule, the errors solve one triangular system, (I + A) e_t =
    gamma_{t-1,0} G p_t - c_{t-1,0} M p_t - v_t with A_ts = c_{t-1,s} k_s^T p_t for s < t. c is the product of two matrices of
    numbers from 0 to 1, and no quotient of gates is formed, so that any decay is safe.
    """
    p, log_momentum = _forgetting(p, log_decay, log_momentum)
    shape, size = v.shape, state.G.shape[-1]
    tensors = (q, p, k, v, log_decay, log_momentum, beta)
    q, p, k, v, log_decay, log_momentum, beta = split_heads(*tensors, chunk_size=chunk_size, dtype=state.G.dtype)
    decays, momenta = chunk_decays(log_decay), chunk_decays(log_momentum)
    moving = decays.within * beta.unsqueeze(-2)
    moved = torch.bmm(moving, momenta.within)  # c_ts
    carried = torch.bmm(moving, momenta.from_start.unsqueeze(-1))  # c_t0
    kept = decays.from_start.unsqueeze(-1)  # gamma_t0

    # Token t errs in the state before it: the first in the chunk's own, which is whole and which no gradient has moved.
    inverse = _unit_inverse(torch.bmm(p, k.mT) * _before(moved))
    from_zero = torch.bmm(inverse, v)
    reading = torch.bmm(inverse, torch.cat([_before(kept, first=1.0) * p, -_before(carried) * p], dim=-1))
    # The scan's corrections are the errors with a minus.
    written = torch.cat([moved[:, -1, :, None] * k, -momenta.to_end.unsqueeze(-1) * k], dim=-1)
    ends = torch.cat([kept[:, -1:].expand(-1, -1, size), momenta.from_start[:, -1, None, None].expand(-1, -1, size)], dim=-1)
    inherited, errors, both = scan_corrected(
        q=torch.cat([kept * q, -carried * q], dim=-1),
        corrections=Corrections(from_zero, reading, written),
        writes=None,
        kept=ends,
        moved=-carried[:, -1:],
        state=torch.cat(state, dim=-1),  # G and M side by side
    )
    o = torch.baddbmm(inherited, torch.bmm(q, k.mT) * moved, errors)
    return join_heads(o, shape), MomentumState(*both.split(size, dim=-1))


def _before(x: Tensor, *, first: float = 0.0) -> Tensor:
    """Every row of [M, C, R] one token later, behind a first row of one value."""
    return F.pad(x, (0, 0, 1, 0), value=first)[:, :-1]


def _unit_inverse(x: Tensor) -> Tensor:
    """(I + A)^-1 of matrices [M, C, C] with the strictly lower triangles A; what lies above is not read."""
    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device).expand_as(x)
    return torch.linalg.solve_triangular(x, identity, upper=False, unitriangular=True)


def _forgetting(p: Tensor, log_decay: Tensor, log_momentum: Tensor) -> tuple[Tensor, Tensor]:
    """p and log_momentum where a log_decay of -inf resets the state: of what is forgotten nothing is read or goes on."""
    reset = log_decay.isneginf()
    return p.masked_fill(reset.unsqueeze(-1), 0.0), log_momentum.masked_fill(reset, float("-inf"))
