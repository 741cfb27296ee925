"""The delta rules of flash-linear-attention 0.6 that came after the gated one, as custom operators: see fla_operators.py.

All take contiguous q, e, a [B, T, H, K] and v [B, T, H, V] of one dtype, float32 gates and a float32 state [B, H, V, K], and
return o in the dtype of v, the state after the last token, and what a gradient needs beside the inputs. A log_decay
[B, T, H, K] is one of every channel, and its running sum over a chunk, to the base 2, is kept: it is as large as the inputs.

`apart` and `apart_by_channel` are fla's preconditioned delta rules without the preconditioner: they take the key that is read
(e) and the one that is written along (a) as they are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.backends.differentiable import differentiable
from models.backends.fla_launches import on_device
from models.backends.fla_operators import CHUNK_SIZE, _summed

Kept = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@differentiable("linear_rnn_suite::fla_kda")
def kda(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor) -> Kept:
    """The delta rule with a decay a channel; also returns its sum, and products inside chunks [B, T, H, CHUNK_SIZE]."""
    from fla.ops.kda.chunk_fwd import chunk_kda_fwd

    with on_device(q):
        o, after, total, reads, inverse, *_ = chunk_kda_fwd(
            q, k, v, log_decay, beta, 1.0, state, True, state_v_first=True, chunk_size=CHUNK_SIZE
        )
        return o, after, total, reads, inverse


def kda_backward(do: Tensor, dstate: Tensor | None, *kept: Tensor) -> tuple[Tensor, ...]:
    from fla.ops.kda.chunk_bwd import chunk_kda_bwd

    q, k, v, _, beta, state, total, reads, inverse = kept
    dq, dk, dv, dbeta, dlog_decay, before, _, _ = chunk_kda_bwd(
        q, k, v, beta, reads, inverse, 1.0, state, do, dstate, g=total, state_v_first=True, chunk_size=CHUNK_SIZE
    )
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dlog_decay, dbeta, before


@differentiable("linear_rnn_suite::fla_gdn2")
def gdn2(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, erase: Tensor, write: Tensor, state: Tensor) -> Kept:
    """`kda` with gates [B, T, H, K] of what is erased and [B, T, H, V] of what is written, in the dtype of v."""
    from fla.ops.gdn2.chunk_fwd import chunk_gdn2_fwd

    with on_device(q):
        o, after, total, reads, inverse, *_ = chunk_gdn2_fwd(
            q, k, v, log_decay, erase, write, 1.0, state, True, chunk_size=CHUNK_SIZE, state_v_first=True
        )
        return o, after, total, reads, inverse


def gdn2_backward(do: Tensor, dstate: Tensor | None, *kept: Tensor) -> tuple[Tensor, ...]:
    from fla.ops.gdn2.chunk_bwd import chunk_gdn2_bwd

    q, k, v, _, erase, write, state, total, reads, inverse = kept
    dq, dk, dv, derase, dwrite, dlog_decay, before, _, _ = chunk_gdn2_bwd(
        q, k, v, erase, write, reads, inverse, 1.0, state, do, dstate, g=total, chunk_size=CHUNK_SIZE, state_v_first=True
    )
    gates = derase.to(erase.dtype), dwrite.to(write.dtype)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dlog_decay, *gates, before


@differentiable("linear_rnn_suite::fla_apart_by_channel")
def apart_by_channel(q: Tensor, e: Tensor, v: Tensor, a: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor) -> Kept:
    """`kda` with two keys."""
    from fla.ops.common.chunk_delta_h import chunk_gated_delta_rule_fwd_h
    from fla.ops.gla.chunk import chunk_gla_fwd_o_gk
    from fla.ops.precond_kda.chunk_intra import chunk_precond_kda_fwd_intra

    with on_device(q):
        total = _summed(log_decay)
        w, u, a_end, reads, inverse = chunk_precond_kda_fwd_intra(q, e, a, v, total, beta, 1.0, chunk_size=CHUNK_SIZE)
        states, corrections, after = chunk_gated_delta_rule_fwd_h(
            a_end, w, u, gk=total, initial_state=state, output_final_state=True, state_v_first=True
        )
        o = chunk_gla_fwd_o_gk(q, corrections, total, reads, states, 1.0, chunk_size=CHUNK_SIZE, state_v_first=True)
        return o, after, total, reads, inverse


def apart_by_channel_backward(do: Tensor, dstate: Tensor | None, *kept: Tensor) -> tuple[Tensor, ...]:
    from fla.ops.common.chunk_delta_h import chunk_gated_delta_rule_bwd_dhu, chunk_gated_delta_rule_fwd_h
    from fla.ops.precond_kda.chunk_bwd import chunk_precond_kda_bwd_dAv, chunk_precond_kda_bwd_wy_dqkg
    from fla.ops.precond_kda.chunk_intra import chunk_precond_kda_bwd_intra
    from fla.ops.precond_kda.wy_fast import recompute_w_u_fwd

    q, e, v, a, _, beta, state, total, reads, inverse = kept
    w, u, q_start, a_end = recompute_w_u_fwd(e, a, v, beta, inverse, total, q=q, output_qg=True, output_kg=True)
    states, corrections, _ = chunk_gated_delta_rule_fwd_h(
        a_end, w, u, gk=total, initial_state=state, output_final_state=False, state_v_first=True
    )
    dreads, dv = chunk_precond_kda_bwd_dAv(q, e, corrections, do, reads, 1.0, chunk_size=CHUNK_SIZE)
    dstates, before, dv = chunk_gated_delta_rule_bwd_dhu(
        q_start, a_end, w, do, dv, gk=total, h0=state, dht=dstate, scale=1.0, state_v_first=True
    )
    dq, de, da, dv, dbeta, dtotal, derased = chunk_precond_kda_bwd_wy_dqkg(
        q=q,
        k=e,
        k_precond=a,
        v=v,
        v_new=corrections,
        g=total,
        beta=beta,
        A=inverse,
        h=states,
        do=do,
        dh=dstates,
        dv=dv,
        scale=1.0,
        chunk_size=CHUNK_SIZE,
        transpose_state_layout=True,
    )
    dq, de, da, dbeta, dlog_decay = chunk_precond_kda_bwd_intra(
        q, e, a, total, beta, dreads, derased, dq, de, da, dbeta, dtotal, chunk_size=CHUNK_SIZE
    )
    return dq.to(q.dtype), de.to(e.dtype), dv.to(v.dtype), da.to(a.dtype), dlog_decay, dbeta, before


@differentiable("linear_rnn_suite::fla_apart")
def apart(
    q: Tensor, e: Tensor, v: Tensor, a: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gated delta rule with two keys; also returns the inverses of I + A of every chunk [B, T, H, CHUNK_SIZE]."""
    from fla.ops.common.chunk_delta_h import chunk_gated_delta_rule_fwd_h
    from fla.ops.common.chunk_o import chunk_fwd_o
    from fla.ops.gated_delta_rule.wy_fast import recompute_w_u_fwd
    from fla.ops.precond_gated_delta_rule.chunk_precond_kkt_fwd import chunk_precond_kkt_fwd
    from fla.ops.utils import solve_tril

    with on_device(q):
        total = _summed(log_decay)
        erased = chunk_precond_kkt_fwd(e, a, total, beta, chunk_size=CHUNK_SIZE, output_dtype=torch.float32)
        inverse = solve_tril(erased, output_dtype=e.dtype)
        w, u = recompute_w_u_fwd(k=e, v=v, beta=beta, A=inverse, g=total)
        states, corrections, after = chunk_gated_delta_rule_fwd_h(
            a, w, u, g=total, initial_state=state, output_final_state=True, state_v_first=True
        )
        return chunk_fwd_o(q, a, corrections, states, g=total, scale=1.0, state_v_first=True), after, inverse


def apart_backward(do: Tensor, dstate: Tensor | None, *kept: Tensor) -> tuple[Tensor, ...]:
    from fla.ops.common.chunk_delta_h import chunk_gated_delta_rule_bwd_dhu, chunk_gated_delta_rule_fwd_h
    from fla.ops.common.chunk_o import chunk_bwd_dqkwg, chunk_bwd_dv_local
    from fla.ops.gated_delta_rule.wy_fast import recompute_w_u_fwd
    from fla.ops.precond_gated_delta_rule.chunk_precond_wy_bwd import prepare_precond_wy_repr_bwd
    from fla.ops.utils import chunk_local_cumsum

    q, e, v, a, log_decay, beta, state, inverse = kept
    # so cheap that it is made anew, here and below
    total = _summed(log_decay)
    w, u = recompute_w_u_fwd(k=e, v=v, beta=beta, A=inverse, g=total)
    states, corrections, _ = chunk_gated_delta_rule_fwd_h(
        a, w, u, g=total, initial_state=state, output_final_state=False, state_v_first=True
    )
    dv = chunk_bwd_dv_local(q, a, do, g=total, scale=1.0)
    dstates, before, dv = chunk_gated_delta_rule_bwd_dhu(
        q, a, w, do, dv, g=total, h0=state, dht=dstate, scale=1.0, state_v_first=True
    )
    dq, da, dw, dtotal = chunk_bwd_dqkwg(
        q, a, corrections, do, states, dstates, w=w, g=total, dv=dv, scale=1.0, state_v_first=True
    )
    de, more_da, dv, dbeta, more_dtotal = prepare_precond_wy_repr_bwd(e, a, v, beta, total, inverse, dw, dv)
    dlog_decay = chunk_local_cumsum(dtotal.add_(more_dtotal), chunk_size=CHUNK_SIZE, reverse=True)
    keys = dq.to(q.dtype), de.to(e.dtype), dv.to(v.dtype), da.add_(more_da).to(a.dtype)
    return *keys, dlog_decay, dbeta.to(beta.dtype), before


@differentiable("linear_rnn_suite::fla_delta_product")
def delta_product(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gated delta rule of n micro-steps a token: k, v and beta have n T of them, and log_decay [B, T, H] the first one's.

    Also returns the inverses of I + A of every chunk of micro-steps [B, n T, H, CHUNK_SIZE].
    """
    from fla.ops.gated_delta_product.chunk import chunk_gated_delta_product_fwd

    with on_device(q):
        _, _, o, inverse, after, _ = chunk_gated_delta_product_fwd(
            q,
            k,
            v,
            log_decay,
            beta,
            1.0,
            initial_state=state.mT.contiguous(),
            output_final_state=True,
            num_householder=k.shape[1] // q.shape[1],
        )
        return o, after.mT.contiguous(), inverse


def delta_product_backward(do: Tensor, dstate: Tensor | None, *kept: Tensor) -> tuple[Tensor, ...]:
    """By the kernels of the gated delta rule, over all micro-steps, as fla has it."""
    from fla.ops.gated_delta_rule.chunk import chunk_gated_delta_rule_bwd

    q, k, v, log_decay, beta, state, inverse = kept
    length, micro_steps = q.shape[1], k.shape[1] // q.shape[1]
    # An o that nobody read has a gradient of zeros in the shape of v.
    q_steps, do_steps = (_at_last(x[:, :length], micro_steps) for x in (q, do))
    total = _summed(_at_first(log_decay, micro_steps))
    dq, dk, dv, dbeta, dlog_decay, before, _, _ = chunk_gated_delta_rule_bwd(
        q_steps, k, v, total, beta, inverse, 1.0, state, do_steps, dstate, state_v_first=True, chunk_size=CHUNK_SIZE
    )
    dq, dlog_decay = dq[:, micro_steps - 1 :: micro_steps].contiguous(), dlog_decay[:, ::micro_steps].contiguous()
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dlog_decay, dbeta.to(beta.dtype), before


def _at_last(x: Tensor, micro_steps: int) -> Tensor:
    """[B, T, H, K] at the last micro-step of every token, 0 at the others: [B, n T, H, K]."""
    steps = x.new_zeros(*x.shape[:2], micro_steps, *x.shape[2:])
    steps[:, :, -1] = x
    return steps.flatten(1, 2)


def _at_first(x: Tensor, micro_steps: int) -> Tensor:
    """[B, T, H] at the first micro-step of every token, 0 at the others: [B, n T, H]."""
    steps = x.new_zeros(*x.shape[:2], micro_steps, *x.shape[2:])
    steps[:, :, 0] = x
    return steps.flatten(1, 2)


def _as_returned(q: Tensor, k: Tensor, v: Tensor, *others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tensors like o, the state and the inverses, for a compiler; q may have fewer tokens than k and v have micro-steps."""
    return v.new_empty((*q.shape[:3], v.shape[-1])), torch.empty_like(others[-1]), k.new_empty((*k.shape[:3], CHUNK_SIZE))


def _with_sums(place: int) -> Callable[..., Kept]:
    """The same beside sums of log-decays, which are the input at `place`."""

    def returned(*inputs: Tensor) -> Kept:
        o, after, inverse = _as_returned(*inputs)
        return o, after, torch.empty_like(inputs[place]), torch.empty_like(inverse), inverse

    return returned


kda.differentiate(kda_backward, num_inputs=6, fake=_with_sums(3))
gdn2.differentiate(gdn2_backward, num_inputs=7, fake=_with_sums(3))
apart_by_channel.differentiate(apart_by_channel_backward, num_inputs=7, fake=_with_sums(4))
apart.differentiate(apart_backward, num_inputs=7, fake=_as_returned)
delta_product.differentiate(delta_product_backward, num_inputs=6, fake=_as_returned)
