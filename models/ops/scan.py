"""What goes from chunk to chunk of a linear recurrence: the state, what a chunk reads of it, and what it writes.

With S_n the state before chunk n, tokens read q_n S_n^T, and a chunk writes w_n along a_n, where

    w_n = values_n - erasing_n S_n^T,   S_{n+1} = S_n Diag(kept_n) + w_n^T a_n

Delta rules erase; linear attention does not.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from models.ops.decay import of_kept


def scan_chunks(
    *, q: Tensor, values: Tensor, erasing: Tensor | None, kept: Tensor, a: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What chunks read of the states before them [M, C, V], what they write w [M, N, V], and the state after the last [B, H, V, K].

    M = B H N chunks. q [M, C, K]: decayed from the start of the chunk. values [M, N, V]; erasing [M, N, K], None for nothing;
    a [M, N, K], decayed to the end of the chunk; kept [M, 1, 1 or K], what a chunk leaves; state [B, H, V, K].
    """
    state, heads = state.flatten(0, 1), state.shape[:2]
    inputs = (None if x is None else x.unflatten(0, (len(state), -1)) for x in (q, values, erasing, kept, a))
    read, w, after = _ScanChunks.apply(*inputs, state)
    return read.flatten(0, 1), values if erasing is None else w.flatten(0, 1), after.unflatten(0, heads)


class _ScanChunks(torch.autograd.Function):
    """The loop on [B H, N, ...], of which no more is done chunk after chunk, forward and backward, than has to be.

    Results of a chunk are small, stay in the cache and are copied to where they are kept: a product that is written into a
    part of a tensor is worked out matrix by matrix.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, q: Tensor, values: Tensor, erasing: Tensor | None, kept: Tensor, a: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        before = state.new_empty(*values.shape[:2], *state.shape[1:])
        w = values if erasing is None else torch.empty_like(values)
        for n in range(values.shape[1]):
            before[:, n] = state
            w_n = values[:, n]
            if erasing is not None:
                w_n = torch.baddbmm(w_n, erasing[:, n], state.mT, alpha=-1.0)
                w[:, n] = w_n
            state = torch.baddbmm(kept[:, n] * state, w_n.mT, a[:, n])
        ctx.save_for_backward(q, erasing, kept, a, before, w)
        return torch.matmul(q, before.mT), None if erasing is None else w, state

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, into_read: Tensor, into_w: Tensor | None, into_after: Tensor) -> tuple[Tensor | None, ...]:
        q, erasing, kept, a, before, w = ctx.saved_tensors
        # `into` has the gradient into the state behind each chunk.
        into, into_values, state = torch.empty_like(before), torch.empty_like(w), into_after
        for n in reversed(range(before.shape[1])):
            into[:, n] = state
            kept_n = kept[:, n] * state
            if erasing is not None:
                into_values_n = torch.baddbmm(into_w[:, n], a[:, n], state.mT)
                into_values[:, n] = into_values_n
                kept_n.baddbmm_(into_values_n.mT, erasing[:, n], alpha=-1.0)
            state = kept_n.baddbmm_(into_read[:, n].mT, q[:, n])
        into_q, into_a, into_kept = torch.matmul(into_read, before), torch.matmul(w, into), of_kept(into, before, kept)
        if erasing is None:
            return into_q, torch.matmul(a, into.mT), None, into_kept, into_a, state
        into_erasing = torch.matmul(into_values, before).neg_()
        return into_q, into_values, into_erasing, into_kept, into_a, state
