"""Products of forget gates inside a chunk, which every chunked linear recurrence needs.

zeta_ts = prod_{s < r <= t} exp(log_decay_r) is how much of what was written at s is left at t (MesaNet eq. 5).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
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
    size = log_decay.shape[-1]
    future = torch.ones(size, size, dtype=torch.bool, device=log_decay.device).triu(1)
    total = log_decay.clamp(min=FORGOTTEN).double().cumsum(-1)
    difference = (total.unsqueeze(-1) - total.unsqueeze(-2)).to(log_decay.dtype)
    # Masked before the exponential: above the diagonal it would overflow, and its gradient would be NaN.
    within = difference.masked_fill(future, float("-inf")).exp()
    return ChunkDecays(within, total.to(log_decay.dtype).exp(), within[..., -1, :])


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
    """Every [B, T, H, ...] -> [B, H, N, C, ...], chunks as `split_chunks` makes them, contiguous for matrix products."""
    return [split_chunks(x.to(dtype), chunk_size).movedim(3, 1).contiguous() for x in tensors]


def join_chunks(x: Tensor, length: int) -> Tensor:
    """[B, N, C, ...] -> [B, T, ...], without the padding."""
    return x.flatten(1, 2)[:, :length]
