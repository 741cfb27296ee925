"""Products of forget gates inside a chunk, which every chunked linear recurrence needs.

zeta_ts = prod_{s < r <= t} exp(log_decay_r) is how much of what was written at s is left at t (MesaNet eq. 5).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

FORGOTTEN = -1000.0
"""A log-decay whose exponential is 0 in float64, and so small that sums of hundreds of them stay exact to 1e-10."""


class ChunkDecays(NamedTuple):
    """within: [..., C, C], zeta_ts at row t and column s <= t, 0 above the diagonal.

    from_start: [..., C], what is left at t of the state before the chunk. to_end: [..., C], what is left of s after it.
    """

    within: Tensor
    from_start: Tensor
    to_end: Tensor


def chunk_decays(log_decay: Tensor) -> ChunkDecays:
    """All decays of chunks with log_decay [..., C] <= 0, where -inf is a reset.

    A sum of log-decays stands for their product, in float64, since a difference of two sums must be exact even behind a
    strong decay. -inf - -inf is not a number, so a factor is at least exp(FORGOTTEN), which is already 0.
    """
    within, from_start, to_end = _ChunkDecays.apply(log_decay)
    return ChunkDecays(within, from_start, to_end)


class _ChunkDecays(torch.autograd.Function):
    """`chunk_decays` with one sum per row and column for a gradient: fresh memory costs a CPU more than the arithmetic."""

    @staticmethod
    def forward(ctx: Any, log_decay: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        size, dtype = log_decay.shape[-1], log_decay.dtype
        future = torch.ones(size, size, dtype=torch.bool, device=log_decay.device).triu(1)
        total = log_decay.clamp(min=FORGOTTEN).double().cumsum(-1)
        # Masked before the exponential, which would overflow above the diagonal.
        within = (total.unsqueeze(-1) - total.unsqueeze(-2)).to(dtype).masked_fill_(future, float("-inf")).exp_()
        from_start, to_end = total.to(dtype).exp(), within[..., -1, :].clone()
        ctx.save_for_backward(log_decay, within, from_start, to_end)
        return within, from_start, to_end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, into_within: Tensor, into_from_start: Tensor, into_to_end: Tensor) -> Tensor:
        log_decay, within, from_start, to_end = ctx.saved_tensors
        into_difference, last = into_within * within, into_to_end * to_end
        into_total = into_difference.sum(-1, dtype=torch.float64) - into_difference.sum(-2, dtype=torch.float64)
        into_total += into_from_start * from_start - last
        into_total[..., -1] += last.sum(-1, dtype=torch.float64)
        into_decay = into_total.flip(-1).cumsum(-1).flip(-1)
        return into_decay.to(log_decay.dtype).masked_fill(log_decay < FORGOTTEN, 0.0)


def over_time(*tensors: Tensor, dtype: torch.dtype) -> Iterator[tuple[Tensor, ...]]:
    """The tokens of [B, T, H, K] as columns [B, H, K, 1] and of [B, T, H] as scalars [B, H, 1, 1], one after the other.

    Unbound at once: a slice in the loop would cost a gradient as long as the sequence at every token.
    """
    columns = (x.to(dtype).reshape(*x.shape[:3], -1, 1).unbind(1) for x in tensors)
    return zip(*columns, strict=True)


def split_chunks(x: Tensor, chunk_size: int) -> Tensor:
    """[B, T, ...] -> [B, N, C, ...] with C = min(chunk_size, T), zero-padded at the end to whole chunks.

    Zeros are neutral: a log_decay of 0 keeps the state, a beta of 0 writes nothing.
    """
    chunk_size = min(chunk_size, x.shape[1])
    missing = -x.shape[1] % chunk_size
    padded = F.pad(x, (0, 0) * (x.ndim - 2) + (0, missing)) if missing else x
    return padded.unflatten(1, (-1, chunk_size))


def split_heads(*tensors: Tensor, chunk_size: int, dtype: torch.dtype) -> list[Tensor]:
    """Every [B, T, H, ...] -> [M, C, ...] with M = B H N independent chunks, made by `split_chunks`, in that order."""
    return [split_chunks(x.to(dtype), chunk_size).movedim(3, 1).flatten(0, 2) for x in tensors]


def join_heads(x: Tensor, shape: torch.Size) -> Tensor:
    """The way back from `split_heads`: [M, C, V] -> shape (B, T, H, V), without the padding."""
    batch_size, length, num_heads, _ = shape
    return join_chunks(x.unflatten(0, (batch_size, num_heads, -1)).movedim(1, 3), length)


def join_chunks(x: Tensor, length: int) -> Tensor:
    """[B, N, C, ...] -> [B, T, ...], without the padding."""
    return x.flatten(1, 2)[:, :length]


def states_before(written: Tensor, kept: Tensor, state: Tensor, *, dim: int) -> tuple[Tensor, Tensor]:
    """The states S_n = kept_{n-1} S_{n-1} + written_{n-1} before all N chunks, which lie along `dim`, and that after the last."""
    before = []
    for kept_n, written_n in zip(kept.unbind(dim), written.unbind(dim), strict=True):
        before.append(state)
        state = torch.addcmul(written_n, kept_n, state)
    return torch.stack(before, dim), state


def scan_states(written: Tensor, kept: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """`states_before` for states that are matrices, in less memory.

    written: [M, R, K] with M = B H N, what each chunk adds; kept: [M, 1, 1 or K], what it leaves; state: [B, H, R, K].
    Returns [M, R, K] and the state after the last chunk [B, H, R, K].
    """
    written, kept = (x.unflatten(0, (*state.shape[:2], -1)) for x in (written, kept))
    before, after = _ScanStates.apply(written, kept, state)
    return before.flatten(0, 2), after


class _ScanStates(torch.autograd.Function):
    """`scan_states` on [B, H, N, R, K], without the copies that recording the loop would cost."""

    @staticmethod
    def forward(ctx: Any, written: Tensor, kept: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        before, after = torch.empty_like(written), torch.empty_like(state)
        slots = [*before.unbind(2), after]
        slots[0].copy_(state)
        for n in range(len(slots) - 1):
            torch.addcmul(written[:, :, n], kept[:, :, n], slots[n], out=slots[n + 1])
        ctx.save_for_backward(kept, before)
        return before, after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, into_before: Tensor, into_after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kept, before = ctx.saved_tensors
        into_written, into_state = torch.empty_like(before), torch.empty_like(into_after)
        slots = [into_state, *into_written.unbind(2)]
        slots[-1].copy_(into_after)
        for n in reversed(range(len(slots) - 1)):
            torch.addcmul(into_before[:, :, n], kept[:, :, n], slots[n + 1], out=slots[n])
        return into_written, of_kept(into_written, before, kept), into_state


def of_kept(into: Tensor, before: Tensor, kept: Tensor) -> Tensor:
    """The gradient into kept [..., 1, 1 or K], which multiplies `before` [..., R, K] where `into` arrives."""
    if kept.shape[-1] == 1:
        return torch.linalg.vecdot(into.flatten(-2), before.flatten(-2)).view_as(kept)
    return torch.linalg.vecdot(into, before, dim=-2).view_as(kept)
