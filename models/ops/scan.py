"""What goes from chunk to chunk of a linear recurrence: the state, what a chunk reads of it, and what it writes.

With S_n the state before chunk n, tokens read q_n S_n^T, and a chunk writes w_n along a_n and v_n along k_n, where

    w_n = from_zero_n - erasing_n S_n^T,   S_{n+1} = S_n Diag(kept_n) + w_n^T a_n + v_n^T k_n

Delta rules write what they have corrected, w, and linear attention v. With momentum, S has two halves of columns, of which the
first also gets `moved` times the second.

Everything that a state takes part in is worked out in the loop, forward and backward, while the cache has it: a product over the
states of all chunks takes four times as long. What comes of a chunk is copied to where it is kept, since PyTorch works products
out matrix by matrix when they are to be written into a part of a tensor.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.ops.decay import of_kept


class Corrections(NamedTuple):
    """from_zero [M, N, V], what a chunk would write if it started from 0; erasing and a [M, N, K], a decayed to its end."""

    from_zero: Tensor
    erasing: Tensor
    a: Tensor


class Writes(NamedTuple):
    """v [M, N, V] and k [M, N, K], decayed to the end of the chunk."""

    v: Tensor
    k: Tensor


def scan_linear(*, q: Tensor, writes: Writes, kept: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """What chunks read of the states before them [M, C, V], and the state after the last [B, H, V, K].

    M = B H N chunks. q [M, C, K]: decayed from the start of the chunk. kept [M, 1, 1 or K]: what a chunk leaves. state
    [B, H, V, K].
    """
    read, after = _ScanLinear.apply(q, *writes, kept, state)
    return read, after


def scan_corrected(
    *, q: Tensor, corrections: Corrections, writes: Writes | None, kept: Tensor, state: Tensor, moved: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """What chunks read of the states before them, the corrections w [M, N, V], and the state after the last, see `scan_linear`.

    moved: [M, 1, 1], None where a state has no halves.
    """
    tensors = _by_head((q, *corrections, kept), state)
    optional = (None if x is None else _by_head([x], state)[0] for x in (*(writes or (None, None)), moved))
    read, w, after = _ScanCorrected.apply(*tensors, *optional, state.flatten(0, 1))
    return read.flatten(0, 1), w.flatten(0, 1), after.view_as(state)


def states(writes: Writes, kept: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The states before all chunks [M, V, K] and that after the last [B, H, V, K], see `scan_linear`; nothing is recorded."""
    (v, k, kept), memory = _by_head((*writes, kept), state), state.flatten(0, 1)
    before = state.new_empty(*v.shape[:2], *memory.shape[1:])
    for n in range(v.shape[1]):
        before[:, n] = memory
        memory = (kept[:, n] * memory).baddbmm_(v[:, n].mT, k[:, n])
    return before.flatten(0, 1), memory.view_as(state)


def gradients_of_linear(
    *, into_read: Tensor, into_after: Tensor, q: Tensor, writes: Writes, kept: Tensor, before: Tensor
) -> tuple[Tensor, ...]:
    """The gradients of `scan_linear` into q, v, k, kept and state, from those into what it returns and the states `before`."""
    into_read, q, v, k, kept, before = _by_head((into_read, q, *writes, kept, before), into_after)
    into_q, into_v, into_k, into_kept = (torch.empty_like(x) for x in (q, v, k, kept))
    state = into_after.flatten(0, 1)
    for n in reversed(range(q.shape[1])):
        into_q[:, n] = torch.bmm(into_read[:, n], before[:, n])
        into_v[:, n] = torch.bmm(k[:, n], state.mT)
        into_k[:, n] = torch.bmm(v[:, n], state)
        into_kept[:, n] = of_kept(state, before[:, n], kept[:, n])
        state = (kept[:, n] * state).baddbmm_(into_read[:, n].mT, q[:, n])
    return *(x.flatten(0, 1) for x in (into_q, into_v, into_k, into_kept)), state.view_as(into_after)


def _by_head(tensors: Iterable[Tensor], state: Tensor) -> list[Tensor]:
    """[M, ...] as [B H, N, ...], for a state [B, H, V, K]."""
    return [x.unflatten(0, (state.shape[0] * state.shape[1], -1)) for x in tensors]


class _ScanLinear(torch.autograd.Function):
    """`scan_linear`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, v: Tensor, k: Tensor, kept: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        (q_h, v_h, k_h, kept_h), memory = _by_head((q, v, k, kept), state), state.flatten(0, 1)
        before = state.new_empty(*q_h.shape[:2], *memory.shape[1:])
        read = v.new_empty(*q_h.shape[:3], v.shape[2])
        for n in range(q_h.shape[1]):
            before[:, n] = memory
            read[:, n] = torch.bmm(q_h[:, n], memory.mT)
            memory = (kept_h[:, n] * memory).baddbmm_(v_h[:, n].mT, k_h[:, n])
        ctx.save_for_backward(q, v, k, kept, before.flatten(0, 1))
        return read.flatten(0, 1), memory.view_as(state)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, into_read: Tensor, into_after: Tensor) -> tuple[Tensor, ...]:
        q, v, k, kept, before = ctx.saved_tensors
        return gradients_of_linear(into_read=into_read, into_after=into_after, q=q, writes=Writes(v, k), kept=kept, before=before)


class _ScanCorrected(torch.autograd.Function):
    """`scan_corrected` on [B H, N, ...]."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        from_zero: Tensor,
        erasing: Tensor,
        a: Tensor,
        kept: Tensor,
        v: Tensor | None,
        k: Tensor | None,
        moved: Tensor | None,
        state: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        before, w, half = state.new_empty(*q.shape[:2], *state.shape[1:]), torch.empty_like(from_zero), state.shape[2] // 2
        read = q.new_empty(*q.shape[:3], state.shape[1])
        for n in range(q.shape[1]):
            before[:, n] = state
            read[:, n] = torch.bmm(q[:, n], state.mT)
            w_n = torch.baddbmm(from_zero[:, n], erasing[:, n], state.mT, alpha=-1.0)
            after = (kept[:, n] * state).baddbmm_(w_n.mT, a[:, n])
            if moved is not None:
                after[..., :half].addcmul_(moved[:, n], state[..., half:])
            if v is not None and k is not None:
                after.baddbmm_(v[:, n].mT, k[:, n])
            w[:, n], state = w_n, after
        ctx.save_for_backward(q, erasing, a, kept, v, k, moved, before, w)
        return read, w, state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, into_read: Tensor, into_w: Tensor, state: Tensor) -> tuple[Tensor | None, ...]:
        q, erasing, a, kept, v, k, moved, before, w = ctx.saved_tensors
        into_q, into_from_zero, into_erasing, into_a, into_kept = (torch.empty_like(x) for x in (q, w, erasing, a, kept))
        into_v, into_k, into_moved = (None if x is None else torch.empty_like(x) for x in (v, k, moved))
        half = state.shape[2] // 2
        # `state` is the gradient into the state behind chunk n.
        for n in reversed(range(q.shape[1])):
            into_q[:, n] = torch.bmm(into_read[:, n], before[:, n])
            into_kept[:, n] = of_kept(state, before[:, n], kept[:, n])
            into_a[:, n] = torch.bmm(w[:, n], state)
            into_w_n = torch.baddbmm(into_w[:, n], a[:, n], state.mT)
            into_erasing[:, n] = torch.bmm(into_w_n, before[:, n]).neg_()
            into_from_zero[:, n] = into_w_n
            earlier = (kept[:, n] * state).baddbmm_(into_w_n.mT, erasing[:, n], alpha=-1.0)
            if into_moved is not None:
                earlier[..., half:].addcmul_(moved[:, n], state[..., :half])
                into_moved[:, n] = of_kept(state[..., :half], before[:, n, :, half:], moved[:, n])
            if into_v is not None and into_k is not None:
                into_v[:, n] = torch.bmm(k[:, n], state.mT)
                into_k[:, n] = torch.bmm(v[:, n], state)
            state = earlier.baddbmm_(into_read[:, n].mT, q[:, n])
        return into_q, into_from_zero, into_erasing, into_a, into_kept, into_v, into_k, into_moved, state
