"""Kernels of flash-linear-attention 0.6 as custom operators, which torch.compile takes whole.

Its public functions break a graph, so these call what stands below them; `obstacle` in models/backends/fla.py pins the minor
version for that. All work in chunks of CHUNK_SIZE tokens on contiguous q, k [B, T, H, K] and v [B, T, H, V] of one dtype
(bfloat16, float16 or float32, whose products are taken in TF32), float32 gates [B, T, H] or [B, T, H, K] and a float32 state
[B, H, V, K]. They return o in the dtype of v, the state after the last token in float32, and what a gradient needs beside
the inputs; for the gradients themselves see models/backends/differentiable.py.

Nothing of fla is imported before a kernel runs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from models.backends.differentiable import differentiable
from models.backends.fla_launches import on_device

CHUNK_SIZE = 64


def _summed(log_decay: Tensor) -> Tensor:
    """The running sum of every chunk, to the base 2 as fla's kernels want it."""
    from fla.ops.utils import chunk_local_cumsum
    from fla.ops.utils.constant import RCP_LN2

    return chunk_local_cumsum(log_decay, chunk_size=CHUNK_SIZE, scale=RCP_LN2)


@differentiable("linear_rnn_suite::fla_simple_gla")
def simple_gla(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """G_t = gamma_t G_{t-1} + v_t k_t^T, o_t = G_t q_t, with a scalar gamma; also returns log_decay summed up in every chunk."""
    from fla.ops.simple_gla.chunk import chunk_simple_gla_fwd

    with on_device(q):
        total = _summed(log_decay)
        o, after = chunk_simple_gla_fwd(q, k, v, total, None, 1.0, state, True, state_v_first=True, chunk_size=CHUNK_SIZE)
        return o, after, total


def simple_gla_backward(do: Tensor, dstate: Tensor | None, *kept: Tensor) -> tuple[Tensor, ...]:
    from fla.ops.simple_gla.chunk import chunk_simple_gla_bwd
    from fla.ops.utils import chunk_local_cumsum

    q, k, v, _, state, total = kept
    dq, dk, dv, dtotal, before = chunk_simple_gla_bwd(
        q, k, v, total, None, state, do, dstate, 1.0, state_v_first=True, chunk_size=CHUNK_SIZE
    )
    dlog_decay = chunk_local_cumsum(dtotal, chunk_size=CHUNK_SIZE, reverse=True)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dlog_decay, before


@differentiable("linear_rnn_suite::fla_gla")
def gla(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`simple_gla` with a gamma a key dimension; also returns weights inside chunks [B, T, H, CHUNK_SIZE], not all set."""
    from fla.ops.gla.chunk import chunk_gla_fwd

    with on_device(q):
        _, weights, _, after, o = chunk_gla_fwd(
            q, k, v, log_decay, None, 1.0, state, True, state_v_first=True, chunk_size=CHUNK_SIZE
        )
        return o, after, weights


def gla_backward(do: Tensor, dstate: Tensor | None, *kept: Tensor) -> tuple[Tensor, ...]:
    from fla.ops.gla.chunk import chunk_gla_bwd

    q, k, v, log_decay, state, weights = kept
    dq, dk, dv, dlog_decay, before = chunk_gla_bwd(
        q, k, v, log_decay, None, 1.0, state, None, weights, do, dstate, state_v_first=True, chunk_size=CHUNK_SIZE
    )
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dlog_decay.to(log_decay.dtype), before


@differentiable("linear_rnn_suite::fla_gated_delta_rule")
def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gated delta rule; also returns the inverses of I + A of every chunk [B, T, H, CHUNK_SIZE] and `simple_gla`'s sums."""
    from fla.ops.gated_delta_rule.chunk import chunk_gated_delta_rule_fwd

    with on_device(q):
        total, o, inverse, after, _, _ = chunk_gated_delta_rule_fwd(
            q, k, v, log_decay, beta, 1.0, state, True, state_v_first=True, chunk_size=CHUNK_SIZE
        )
        return o, after, inverse, total


def gated_delta_rule_backward(do: Tensor, dstate: Tensor | None, *kept: Tensor) -> tuple[Tensor, ...]:
    from fla.ops.gated_delta_rule.chunk import chunk_gated_delta_rule_bwd

    q, k, v, _, beta, state, inverse, total = kept
    dq, dk, dv, dbeta, dlog_decay, before, _, _ = chunk_gated_delta_rule_bwd(
        q, k, v, total, beta, inverse, 1.0, state, do, dstate, state_v_first=True, chunk_size=CHUNK_SIZE
    )
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dlog_decay, dbeta.to(beta.dtype), before


@custom_op("linear_rnn_suite::fla_recurrent", mutates_args=())
def recurrent(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, key_log_decay: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """A token at a time, without a gradient: for decoding. log_decay [B, T, H], key_log_decay [B, T, H, K]; o in float32."""
    from fla.ops.common.fused_recurrent import fused_recurrent_fwd

    with on_device(q):
        return fused_recurrent_fwd(
            q, k, v, g=log_decay, gk=key_log_decay, scale=1.0, initial_state=state, output_final_state=True, state_v_first=True
        )


@custom_op("linear_rnn_suite::fla_delta_rule_", mutates_args=("state",))
def delta_rule_(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor) -> Tensor:
    """The gated delta rule a token at a time, without a gradient, the new state written over the old one; o as v."""
    from fla.ops.gated_delta_rule.fused_recurrent import fused_recurrent_gated_delta_rule_fwd_kernel as kernel

    (batch, length, heads, key_dim), value_dim, rows = k.shape, v.shape[-1], 8
    o = torch.empty_like(v)
    with on_device(q):
        # Each program reads its rows of the state whole before it writes them, and the kernel is not autotuned by trial runs.
        kernel[(-(-value_dim // rows) * batch * heads,)](
            q=q,
            k=k,
            v=v,
            g=log_decay,
            gk=None,
            gv=None,
            beta=beta,
            A_log=None,
            dt_bias=None,
            o=o,
            h0=state,
            ht=state,
            cu_seqlens=None,
            scale=1.0,
            T=length,
            H=heads,
            HV=heads,
            K=key_dim,
            V=value_dim,
            BK=1 << (key_dim - 1).bit_length(),
            BV=rows,
            IS_BETA_HEADWISE=True,
            USE_QK_L2NORM_IN_KERNEL=False,
            APPLY_BETA_SIGMOID=False,
            ALLOW_NEG_EIGVAL=False,
            STATE_V_FIRST=True,
            num_warps=1,
            num_stages=3,
        )
    return o


def _as_returned(q: Tensor, k: Tensor, v: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
    """Tensors like o and the state, which is the last input, for a compiler."""
    return torch.empty_like(v), torch.empty_like(others[-1])


def _as_kept(k: Tensor, dtype: torch.dtype) -> Tensor:
    return k.new_empty((*k.shape[:3], CHUNK_SIZE), dtype=dtype)


simple_gla.differentiate(
    simple_gla_backward, num_inputs=5, fake=lambda *inputs: (*_as_returned(*inputs), torch.empty_like(inputs[3]))
)
gla.differentiate(gla_backward, num_inputs=5, fake=lambda *inputs: (*_as_returned(*inputs), _as_kept(inputs[1], torch.float32)))
gated_delta_rule.differentiate(
    gated_delta_rule_backward,
    num_inputs=6,
    fake=lambda *inputs: (*_as_returned(*inputs), _as_kept(inputs[1], inputs[1].dtype), torch.empty_like(inputs[3])),
)
recurrent.register_fake(lambda *inputs: (torch.empty_like(inputs[2], dtype=torch.float32), torch.empty_like(inputs[-1])))
delta_rule_.register_fake(lambda *inputs: torch.empty_like(inputs[2]))
