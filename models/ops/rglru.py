"""The gated diagonal recurrence of the RG-LRU (De et al. 2024, arXiv 2402.19427, eq. 4), W channels each by itself.

    h_t = a_t * h_{t-1} + u_t,   a_t = exp(log_decay_t),   u_t = sqrt(1 - a_t^2) * (i_t * x_t)

log_decay [B, T, W] <= 0, where -inf is a reset; u [B, T, W]; state h [B, W]; all in float32 or wider.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.ops.decay import join_chunks, split_chunks, states_before

MIN_VARIANCE = 1e-12
"""Below this, 1 - a^2 counts as constant: the slope of its square root has no bound at 0."""


def input_scale(log_decay: Tensor) -> Tensor:
    """sqrt(1 - a^2), which keeps the variance of h at that of its input; exact near a = 1, with a finite gradient."""
    return torch.sqrt(torch.clamp(-torch.expm1(2.0 * log_decay), min=MIN_VARIANCE))


def recurrent(*, log_decay: Tensor, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, a loop over T. Returns every h [B, T, W] and the last one [B, W]."""
    outputs = []
    for decay_t, u_t in zip(log_decay.exp().unbind(1), u.unbind(1), strict=True):
        state = decay_t * state + u_t
        outputs.append(state)
    return torch.stack(outputs, dim=1), state


def chunked(*, log_decay: Tensor, u: Tensor, state: Tensor, chunk_size: int) -> tuple[Tensor, Tensor]:
    """`recurrent` in chunk_size + T / chunk_size steps instead of T, forward and backward."""
    h = _Scan.apply(log_decay.exp(), u, state, chunk_size)
    return h, h[:, -1]


def _scan(decay: Tensor, u: Tensor, state: Tensor, chunk_size: int) -> Tensor:
    """All chunks side by side from a state of zero, then what each inherits, decayed.

    Only products of decays <= 1 are formed, never their quotients, so a strong decay loses nothing.
    """
    local, product = [], []
    h, total = u.new_zeros(()), decay.new_ones(())
    chunks = (split_chunks(x, chunk_size).unbind(2) for x in (decay, u))
    for decay_i, u_i in zip(*chunks, strict=True):  # each [B, N, W]
        h, total = torch.addcmul(u_i, decay_i, h), decay_i * total
        local.append(h)
        product.append(total)
    before, _ = states_before(h, total, state, dim=1)
    return join_chunks(torch.addcmul(torch.stack(local, dim=2), torch.stack(product, dim=2), before.unsqueeze(2)), u.shape[1])


class _Scan(torch.autograd.Function):
    """The scan, whose gradient g_t = dh_t + a_{t+1} g_{t+1} is the same scan backwards in time: du = g, da_t = g_t h_{t-1}."""

    @staticmethod
    def forward(ctx, decay: Tensor, u: Tensor, state: Tensor, chunk_size: int) -> Tensor:
        h = _scan(decay, u, state, chunk_size)
        ctx.save_for_backward(decay, state, h)
        ctx.chunk_size = chunk_size
        return h

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dh: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        decay, state, h = ctx.saved_tensors
        next_decay = torch.cat([decay[:, 1:], torch.zeros_like(decay[:, :1])], dim=1)
        g = _scan(next_decay.flip(1), dh.flip(1), torch.zeros_like(state), ctx.chunk_size).flip(1)
        previous = torch.cat([state.unsqueeze(1), h[:, :-1]], dim=1)
        return g * previous, g, decay[:, 0] * g[:, 0], None
