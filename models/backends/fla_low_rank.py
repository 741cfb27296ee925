"""RWKV-7's rule by flash-linear-attention 0.6, whose kernels are those of matrices of a diagonal and a part of low rank.

What holds in fla.py holds here too: K <= 128 and V get SMALLEST at least, by zeros, and a reset is cut to RESET. A single token
without a gradient is left to PyTorch. Where no log_decay is below BOUNDED, kernels of CHUNK_SIZE tokens a chunk divide by
decays from the middle of a chunk; elsewhere a chunk has 16 tokens, with the decay of every pair, which a reset needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models.backends.differentiable import DifferentiableOp, differentiable
from models.backends.fla import ALIGNED, SMALLEST, _finite, _operands
from models.backends.fla_delta import _padded
from models.backends.fla_launches import on_device
from models.backends.fla_operators import CHUNK_SIZE
from models.ops.diagonal_plus_low_rank import forgetting

BOUNDED = -2.6
"""From here on, by `gate_bound_is_safe` of fla, no quotient of decays in a chunk of CHUNK_SIZE tokens overflows float32."""
EXACT_CHUNK_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class _Context:
    """What fla's backward pass reads of its forward pass: it computes the rest anew."""

    saved_tensors: tuple[Tensor, ...]
    chunk_size: int
    safe_gate: bool
    scale: float = 1.0
    cu_seqlens: None = None
    chunk_indices: None = None
    cp_context: None = None
    disable_recompute: bool = False
    _fwd_used_autocast: bool = False
    _dtype: None = None


def _operator(name: str, *, chunk_size: int, safe_gate: bool) -> DifferentiableOp:
    """An operator on contiguous q, k, e, a [B, T, H, K], v [B, T, H, V] of one dtype, float32 log_decay and state [B, H, V, K].

    It returns o in the dtype of v and the state after the last token. fla's states are [B, H, K, V], and its e has a minus.
    """

    @differentiable(f"linear_rnn_suite::fla_{name}")
    def forward(q: Tensor, k: Tensor, v: Tensor, e: Tensor, a: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        from fla.ops.generalized_delta_rule.dplr.chunk import chunk_dplr_fwd

        with on_device(q):
            before = state.mT.contiguous()
            o, after, _, _ = chunk_dplr_fwd(
                q, k, v, -e, a, log_decay, 1.0, before, True, chunk_size=chunk_size, safe_gate=safe_gate
            )
            return o, after.mT.contiguous()

    def backward(do: Tensor, dstate: Tensor | None, *kept: Tensor) -> tuple[Tensor, ...]:
        from fla.ops.generalized_delta_rule.dplr.chunk import ChunkDPLRDeltaRuleFunction

        q, k, v, e, a, log_decay, state = kept
        saved = q, k, v, -e, a, log_decay, state.mT.contiguous()
        context: Any = _Context(saved_tensors=saved, chunk_size=chunk_size, safe_gate=safe_gate)
        after = None if dstate is None else dstate.mT.contiguous()
        dq, dk, dv, de, da, dlog_decay, _, before, *_ = ChunkDPLRDeltaRuleFunction.backward(context, do, after)
        return dq, dk, dv, -de, da, dlog_decay, before.mT.contiguous()

    forward.differentiate(
        backward, num_inputs=7, fake=lambda *inputs: (torch.empty_like(inputs[2]), torch.empty_like(inputs[-1]))
    )
    return forward


exact = _operator("diagonal_plus_low_rank", chunk_size=EXACT_CHUNK_SIZE, safe_gate=False)
bounded = _operator("diagonal_plus_low_rank_bounded", chunk_size=CHUNK_SIZE, safe_gate=True)


def diagonal_plus_low_rank(
    *, q: Tensor, k: Tensor, v: Tensor, e: Tensor, a: Tensor, log_decay: Tensor, state: Tensor, floor: float
) -> tuple[Tensor, Tensor]:
    """By `dplr`, as fla's RWKV-7 does."""
    key_dim, value_dim = k.shape[-1], v.shape[-1]
    keys, values = max(SMALLEST, key_dim), max(SMALLEST, value_dim + -value_dim % ALIGNED)
    if floor < BOUNDED:
        e = forgetting(e, log_decay)
    q, k, v = _operands(_padded(q, keys), _padded(k, keys), _padded(v, values))
    e, a = (_padded(x, keys).to(v.dtype).contiguous() for x in (e, a))
    state = F.pad(state, (0, keys - key_dim, 0, values - value_dim)).contiguous()
    operator = exact if floor < BOUNDED else bounded
    o, after = operator(q, k, v, e, a, _finite(_padded(log_decay, keys)), state)
    return o[..., :value_dim], after[..., :value_dim, :key_dim].contiguous()
