"""What a kernel that knows no write strengths takes in their place: keys times those of their tokens, and bounded log-decays.

One kernel forward and one backward, which makes all gradients. Outside a compiler PyTorch takes four forward and seven backward
where keys have a narrower dtype than their strengths, and moves five times the bytes; a compiler has these products in a kernel
with what stands beside them.

    B batch, T time, H heads, K key dim
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from models.backends.triton.launch import launch

NUMBERS = 4096
"""Numbers of keys that a program has."""


def gated_inputs(k: Tensor, beta: Tensor, log_decay: Tensor, *, dtype: torch.dtype, lowest: float) -> tuple[Tensor, Tensor]:
    """beta k, multiplied in float32 and rounded to dtype, and log_decay in float32, at least `lowest`.

    k: [B, T, H, K]. beta, log_decay: [B, T, H], the latter may be -inf. Both results are contiguous, and differentiable once.
    """
    results: tuple[Tensor, Tensor] = _GatedInputs.apply(k.contiguous(), beta.contiguous(), log_decay.contiguous(), dtype, lowest)
    return results


class _GatedInputs(Function):
    @staticmethod
    def forward(ctx: Any, k: Tensor, beta: Tensor, log_decay: Tensor, dtype: torch.dtype, lowest: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(k, beta, log_decay)
        ctx.lowest = lowest
        weighted = torch.empty_like(k, dtype=dtype)
        bounded = torch.empty_like(log_decay, dtype=torch.float32)
        _launch(_forward_kernel, lowest, k, beta, log_decay, weighted, bounded)
        return weighted, bounded

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dweighted: Tensor, dbounded: Tensor) -> tuple[Tensor | None, ...]:
        # Asked for once: under a checkpoint they are computed anew, and no second time.
        saved = ctx.saved_tensors
        gradients = tuple(torch.empty_like(x) for x in saved)
        _launch(_backward_kernel, ctx.lowest, *saved, dweighted.contiguous(), dbounded.contiguous(), *gradients)
        return *gradients, None, None


def _launch(kernel: triton.JITFunction, lowest: float, k: Tensor, beta: Tensor, *others: Tensor) -> None:
    num_rows, key_dim = beta.numel(), k.shape[-1]
    block = triton.next_power_of_2(key_dim)
    rows = max(1, NUMBERS // block)
    with torch.cuda.device_of(k):
        arguments = (k, beta, *others, lowest, num_rows, key_dim)
        launch(kernel, (triton.cdiv(num_rows, rows), 1, 1), arguments, {"ROWS": rows, "BLOCK": block, "num_warps": 4})


@triton.jit
def _place(num_rows, key_dim, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """A program's rows [ROWS], where their numbers lie [ROWS, BLOCK], and which of either there are."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    is_row = row < num_rows
    return row, row[:, None] * key_dim + column[None, :], is_row, is_row[:, None] & (column < key_dim)[None, :]


@triton.jit
def _forward_kernel(
    k, beta, log_decay, weighted, bounded, lowest, num_rows, key_dim, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row, at, is_row, inside = _place(num_rows, key_dim, ROWS, BLOCK)
    weight = tl.load(beta + row, mask=is_row, other=0.0).to(tl.float32)
    x = tl.load(k + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(weighted + at, x * weight[:, None], mask=inside)
    decay = tl.load(log_decay + row, mask=is_row, other=0.0).to(tl.float32)
    tl.store(bounded + row, tl.where(decay < lowest, lowest, decay), mask=is_row)


@triton.jit
def _backward_kernel(
    k, beta, log_decay, dweighted, dbounded, dk, dbeta, dlog_decay, lowest, num_rows, key_dim,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, at, is_row, inside = _place(num_rows, key_dim, ROWS, BLOCK)
    weight = tl.load(beta + row, mask=is_row, other=0.0).to(tl.float32)
    x = tl.load(k + at, mask=inside, other=0.0).to(tl.float32)
    dx = tl.load(dweighted + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(dk + at, dx * weight[:, None], mask=inside)
    tl.store(dbeta + row, tl.sum(dx * x, axis=1), mask=is_row)
    decay = tl.load(log_decay + row, mask=is_row, other=0.0).to(tl.float32)
    passed = tl.load(dbounded + row, mask=is_row, other=0.0)
    tl.store(dlog_decay + row, tl.where(decay < lowest, 0.0, passed), mask=is_row)
