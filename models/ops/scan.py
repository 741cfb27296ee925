"""What goes from chunk to chunk of a linear recurrence: the state, what a chunk reads of it, and what it writes.

With S_n the state before chunk n, tokens read q_n S_n^T, and a chunk writes w_n along a_n and v_n along k_n, where

    w_n = from_zero_n - erasing_n S_n^T,   S_{n+1} = S_n Diag(kept_n) + w_n^T a_n + v_n^T k_n

Delta rules write what they have corrected, w, and linear attention v. With momentum, S has two halves of columns, of which the
first also gets `moved` times the second.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

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
    read, _, after = _scan(q, None, writes, kept, state, None)
    return read, after


def scan_corrected(
    *, q: Tensor, corrections: Corrections, writes: Writes | None, kept: Tensor, state: Tensor, moved: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """What chunks read of the states before them, the corrections w [M, N, V], and the state after the last, see `scan_linear`.

    moved: [M, 1, 1], None where a state has no halves.
    """
    return _scan(q, corrections, writes, kept, state, moved)


def _scan(
    q: Tensor, corrections: Corrections | None, writes: Writes | None, kept: Tensor, state: Tensor, moved: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    tensors = (q, *(corrections or (None, None, None)), *(writes or (None, None)), kept, moved)
    read, w, after = _ScanChunks.apply(*_by_head(tensors, state), state.flatten(0, 1))
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
    tensors = _by_head((into_read, q, *writes, kept, before), into_after)
    into_read, q, v, k, kept, before = tensors
    into_q, into_v, into_k, into_kept = (torch.empty_like(x) for x in (q, v, k, kept))
    state = into_after.flatten(0, 1)
    for n in reversed(range(q.shape[1])):
        into_q[:, n] = torch.bmm(into_read[:, n], before[:, n])
        into_v[:, n] = torch.bmm(k[:, n], state.mT)
        into_k[:, n] = torch.bmm(v[:, n], state)
        into_kept[:, n] = of_kept(state, before[:, n], kept[:, n])
        state = (kept[:, n] * state).baddbmm_(into_read[:, n].mT, q[:, n])
    return *(x.flatten(0, 1) for x in (into_q, into_v, into_k, into_kept)), state.view_as(into_after)


def _by_head(tensors: Iterable[Tensor | None], state: Tensor) -> list[Tensor | None]:
    """[M, ...] as [B H, N, ...], for a state [B, H, V, K]."""
    return [None if x is None else x.unflatten(0, (state.shape[0] * state.shape[1], -1)) for x in tensors]


class _ScanChunks(torch.autograd.Function):
    """The loop on [B H, N, ...], forward and backward, in which products of a chunk are read while the cache still has them.

    What comes of a chunk is copied to where it is kept: PyTorch works products out matrix by matrix when they are to be
    written into a part of a tensor.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        q: Tensor,
        from_zero: Tensor | None,
        erasing: Tensor | None,
        a: Tensor | None,
        v: Tensor | None,
        k: Tensor | None,
        kept: Tensor,
        moved: Tensor | None,
        state: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        half = state.shape[2] // 2
        before = state.new_empty(*q.shape[:2], *state.shape[1:])
        read = q.new_empty(*q.shape[:3], state.shape[1])
        w = q.new_empty(*q.shape[:2], 0, 0) if from_zero is None else torch.empty_like(from_zero)
        for n in range(q.shape[1]):
            before[:, n] = state
            read[:, n] = torch.bmm(q[:, n], state.mT)
            after = kept[:, n] * state
            if moved is not None:
                after[..., :half].addcmul_(moved[:, n], state[..., half:])
            if from_zero is not None:
                w_n = torch.baddbmm(from_zero[:, n], erasing[:, n], state.mT, alpha=-1.0)
                after.baddbmm_(w_n.mT, a[:, n])
                w[:, n] = w_n
            if v is not None:
                after.baddbmm_(v[:, n].mT, k[:, n])
            state = after
        ctx.save_for_backward(q, erasing, a, v, k, kept, moved, before, w)
        return read, w, state

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, into_read: Tensor, into_w: Tensor, into_after: Tensor) -> tuple[Tensor | None, ...]:
        q, erasing, a, v, k, kept, moved, before, w = ctx.saved_tensors
        into_from_zero, into_erasing, into_a, into_v, into_k, into_moved = (
            None if x is None else torch.empty_like(x) for x in (None if a is None else w, erasing, a, v, k, moved)
        )
        into_q, into_kept, state, half = torch.empty_like(q), torch.empty_like(kept), into_after, into_after.shape[2] // 2
        for n in reversed(range(q.shape[1])):
            earlier = kept[:, n] * state
            into_q[:, n] = torch.bmm(into_read[:, n], before[:, n])
            into_kept[:, n] = of_kept(state, before[:, n], kept[:, n])
            if moved is not None:
                earlier[..., half:].addcmul_(moved[:, n], state[..., :half])
                into_moved[:, n] = of_kept(state[..., :half], before[:, n, :, half:], moved[:, n])
            if a is not None:
                into_w_n = torch.baddbmm(into_w[:, n], a[:, n], state.mT)
                into_a[:, n] = torch.bmm(w[:, n], state)
                earlier.baddbmm_(into_w_n.mT, erasing[:, n], alpha=-1.0)
                into_erasing[:, n] = torch.bmm(into_w_n, before[:, n]).neg_()
                into_from_zero[:, n] = into_w_n
            if v is not None:
                into_v[:, n] = torch.bmm(k[:, n], state.mT)
                into_k[:, n] = torch.bmm(v[:, n], state)
            state = earlier.baddbmm_(into_read[:, n].mT, q[:, n])
        return into_q, into_from_zero, into_erasing, into_a, into_v, into_k, into_kept, into_moved, state
