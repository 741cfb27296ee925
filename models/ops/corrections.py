"""The sequential part of every delta rule in chunks: what a chunk writes depends on the state that it starts from.

With S_n the state before chunk n, all of a chunk's corrections are w_n = from_zero_n - S_n erasing_n, and

    S_{n+1} = kept_n S_n + w_n a_n^T,  plus what is written whatever the state.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from models.ops.decay import of_kept


def scan_corrections(
    from_zero: Tensor, erasing: Tensor, kept: Tensor, a: Tensor, written: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The states before all chunks [M, V, K], their corrections w [M, C, V], and the state after the last [B, H, V, K].

    M = B H N chunks: from_zero [M, C, V]; erasing and a [M, C, K]; kept [M, 1, 1 or K]; written [M, V, K], None for nothing;
    state [B, H, V, K].
    """
    inputs = (None if x is None else x.unflatten(0, (len(state.flatten(0, 1)), -1)) for x in (from_zero, erasing, kept, a, written))
    before, w, after = _ScanCorrections.apply(*inputs, state.flatten(0, 1))
    return before.flatten(0, 1), w.flatten(0, 1), after.view_as(state)


class _ScanCorrections(torch.autograd.Function):
    """The loop on [B H, N, ...]. Its gradient needs two products a chunk in turn; all others are of all chunks at once."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, from_zero: Tensor, erasing: Tensor, kept: Tensor, a: Tensor, written: Tensor | None, state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        before, w = state.new_empty(*from_zero.shape[:2], *state.shape[1:]), torch.empty_like(from_zero)
        slots = [*before.unbind(1), torch.empty_like(state)]
        slots[0].copy_(state)
        for n in range(len(slots) - 1):
            torch.baddbmm(from_zero[:, n], erasing[:, n], slots[n].mT, alpha=-1.0, out=w[:, n])
            if written is None:
                torch.mul(slots[n], kept[:, n], out=slots[n + 1])
            else:
                torch.addcmul(written[:, n], slots[n], kept[:, n], out=slots[n + 1])
            slots[n + 1].baddbmm_(w[:, n].mT, a[:, n])
        ctx.save_for_backward(erasing, kept, a, before, w)
        ctx.writes = written is not None
        return before, w, slots[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, into_before: Tensor, into_w: Tensor, into_after: Tensor) -> tuple[Tensor | None, ...]:
        erasing, kept, a, before, w = ctx.saved_tensors
        # `into` is the gradient into the state behind each chunk.
        into, into_from_zero, into_state = torch.empty_like(before), torch.empty_like(w), torch.empty_like(into_after)
        slots = [into_state, *into.unbind(1)]
        slots[-1].copy_(into_after)
        for n in reversed(range(len(slots) - 1)):
            torch.baddbmm(into_w[:, n], a[:, n], slots[n + 1].mT, out=into_from_zero[:, n])
            torch.addcmul(into_before[:, n], slots[n + 1], kept[:, n], out=slots[n])
            slots[n].baddbmm_(into_from_zero[:, n].mT, erasing[:, n], alpha=-1.0)
        into_erasing = torch.matmul(into_from_zero, before).neg_()
        into_a = torch.matmul(w, into)
        into_written = into if ctx.writes else None
        return into_from_zero, into_erasing, of_kept(into, before, kept), into_a, into_written, into_state
