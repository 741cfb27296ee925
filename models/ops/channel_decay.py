"""Products of what tokens of a chunk read and write, where each of K channels has a decay of its own, as matrix products.

The decay of a channel between a column at s and a row at t >= s is exp(L_t - L_s) with L the sum of log-decays from the start of
the chunk. It is the product of exp(L_t - m) and exp(m - L_s), with m halfway between the first L and the last, as long as L has
no wider a range than RANGE: beyond that a factor would lose digits and at last overflow. `safe_chunk_size` finds the chunks in
which it has not, and where there are none, an op has a way that multiplies no factor above 1.

A token where all channels are reset, by log-decays of -inf, has a factor of 1 here, and rows behind it do not see what is before.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from models.ops.decay import split_chunks

RANGE = 20.0
"""What L may change by in a chunk. Half of it, in float32, is exact to 1e-6, which is the relative error of a factor."""

LEAST_TOKENS = 8
"""In shorter chunks a factorisation saves nothing."""


def safe_chunk_size(log_decay: Tensor, chunk_size: int, *, micro_steps: int = 1) -> int | None:
    """chunk_size tokens, or a half, a quarter, ... of it, such that L, by log_decay [B, n T, H, K] of n micro-steps a token, has
    too wide a range in no chunk.

    None where these would be too short, and where asking would hold up a device that works ahead, or a compiler.
    """
    if log_decay.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    log_decay = log_decay.detach()
    if log_decay.min() == float("-inf"):
        log_decay = log_decay.masked_fill(_resets(log_decay).unsqueeze(-1), 0.0)
    while chunk_size >= min(LEAST_TOKENS, log_decay.shape[1]):
        if split_chunks(log_decay, micro_steps * chunk_size).sum(2).min() >= -RANGE:
            return chunk_size
        chunk_size //= 2
    return None


def _resets(log_decay: Tensor) -> Tensor:
    return log_decay.amax(-1) == float("-inf")


class Side(NamedTuple):
    """What reads, or writes, at the tokens of a chunk: x [M, R, K].

    at: which of the sums L, the first of which is 0 and before all tokens, belongs to each of the R. Rows with `strict` do not
    see the column of the same sum.
    """

    x: Tensor
    at: slice
    strict: bool = False


class Products(NamedTuple):
    """pairs: by row and column, their products [M, R, N] with the decays between, 0 where the column is not seen.

    rows: each [M, R, K], decayed from the start of the chunk. columns: each [M, N, K], decayed to its end. kept: [M, 1, K].
    """

    pairs: list[list[Tensor]]
    rows: list[Tensor]
    columns: list[Tensor]
    kept: Tensor


def channel_products(rows: list[Side], columns: list[Side], log_decay: Tensor) -> Products:
    """The products of every row and column, in chunks with log_decay [M, C, K] of no wider a range than RANGE."""
    sides = [(side.at, side.strict) for side in (*rows, *columns)]
    outputs = list(_ChannelProducts.apply(len(rows), sides, log_decay, *(side.x for side in (*rows, *columns))))
    count = len(rows) * len(columns)
    pairs = [outputs[i : i + len(columns)] for i in range(0, count, len(columns))]
    return Products(pairs, outputs[count : count + len(rows)], outputs[count + len(rows) : -1], outputs[-1])


class _Factors(NamedTuple):
    """up, down: [M, C + 1, K], exp(L - m) and its inverse. start: exp(m), [M, 1, K]. document: [M, C + 1], the number of resets
    so far; None without a reset.
    """

    up: Tensor
    down: Tensor
    start: Tensor
    document: Tensor | None


def _factors(log_decay: Tensor) -> _Factors:
    chunks, size, _ = log_decay.shape
    document = None
    if log_decay.min() == float("-inf"):
        resets = _resets(log_decay)
        document = resets.new_zeros(chunks, size + 1, dtype=torch.long)
        document[:, 1:] = resets.cumsum(-1)
        log_decay = log_decay.masked_fill(resets.unsqueeze(-1), 0.0)
    up = torch.matmul(_sums(log_decay) - 0.5, log_decay).exp_()
    return _Factors(up, up.reciprocal(), (log_decay.sum(1, keepdim=True) / 2.0).exp_(), document)


def _sums(x: Tensor) -> Tensor:
    """[C + 1, C] of 0 and 1, by which x [M, C, K] makes its sums, from that of none to that of all."""
    return x.new_ones(x.shape[1] + 1, x.shape[1]).tril_(-1)


def _visible(factors: _Factors, row: tuple[slice, bool], column: tuple[slice, bool]) -> Tensor:
    """1 where a row sees a column, [R, N], or [M, R, N] where resets are."""
    (at_row, strict), (at_column, _) = row, column
    number = torch.arange(factors.up.shape[1])
    read, written = number[at_row].unsqueeze(-1), number[at_column]
    seen = written < read if strict else written <= read
    if factors.document is not None:
        seen = seen & (factors.document[:, at_row].unsqueeze(-1) == factors.document[:, at_column].unsqueeze(-2))
    return seen.to(factors.up.dtype)


def _within(factors: _Factors, at: slice, edge: int) -> Tensor | float:
    """1 where no reset lies between a token and the first or last sum of its chunk (edge 0, -1), [M, R, 1]."""
    if factors.document is None:
        return 1.0
    return (factors.document[:, at] == factors.document[:, edge].unsqueeze(-1)).unsqueeze(-1).to(factors.up.dtype)


class _ChannelProducts(torch.autograd.Function):
    """`channel_products`. The gradient into L_t is the sum, over what is multiplied by exp(L_t), of it times its own gradient."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, num_rows: int, sides: list[tuple[slice, bool]], log_decay: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        factors = _factors(log_decay)
        end = factors.up[:, -1:]
        rows = [x * factors.up[:, at] for x, (at, _) in zip(tensors[:num_rows], sides[:num_rows], strict=True)]
        columns = [x * factors.down[:, at] for x, (at, _) in zip(tensors[num_rows:], sides[num_rows:], strict=True)]
        pairs = [
            torch.bmm(row, column.mT).mul_(_visible(factors, row_side, column_side))
            for row, row_side in zip(rows, sides[:num_rows], strict=True)
            for column, column_side in zip(columns, sides[num_rows:], strict=True)
        ]
        for row, (at, _) in zip(rows, sides[:num_rows], strict=True):
            row.mul_(factors.start * _within(factors, at, 0))
        for column, (at, _) in zip(columns, sides[num_rows:], strict=True):
            column.mul_(end * _within(factors, at, -1))
        kept = end * factors.start * _within(factors, slice(-1, None), 0)
        ctx.num_rows, ctx.sides = num_rows, sides
        ctx.has_document = factors.document is not None
        document = [factors.document] if factors.document is not None else []
        ctx.save_for_backward(log_decay, kept, *tensors, *columns, factors.up, factors.down, factors.start, *document)
        return *pairs, *rows, *columns, kept

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *into: Tensor) -> tuple[Tensor | None, ...]:
        num_rows, sides, count = ctx.num_rows, ctx.sides, len(ctx.sides)
        log_decay, kept, *saved = ctx.saved_tensors
        tensors, ends = saved[:count], saved[count : 2 * count - num_rows]
        factors = _Factors(*saved[2 * count - num_rows :], *([] if ctx.has_document else [None]))
        num_columns = count - num_rows
        into_pairs, into_edges, into_kept = into[: num_rows * num_columns], into[num_rows * num_columns : -1], into[-1]
        end = factors.up[:, -1:]
        # What arrives at rows times exp(L - m), and at columns divided by it.
        scaled = [x * (factors.up if i < num_rows else factors.down)[:, sides[i][0]] for i, x in enumerate(tensors)]
        arriving = [
            grad * ((factors.start if i < num_rows else end) * _within(factors, sides[i][0], 0 if i < num_rows else -1))
            for i, grad in enumerate(into_edges)
        ]
        for n, into_pair in enumerate(into_pairs):
            i, j = n // num_columns, num_rows + n % num_columns
            into_pair = into_pair * _visible(factors, sides[i], sides[j])
            arriving[i].baddbmm_(into_pair, scaled[j])
            arriving[j].baddbmm_(into_pair.mT, scaled[i])
        into_sums, results = torch.zeros_like(factors.up), []
        for i, (x, (at, _)) in enumerate(zip(tensors, sides, strict=True)):
            results.append(arriving[i].mul_((factors.up if i < num_rows else factors.down)[:, at]))
            into_sums[:, at].addcmul_(x, results[-1], value=1.0 if i < num_rows else -1.0)
        into_sums[:, -1:].addcmul_(into_kept, kept)
        for j, column in enumerate(ends):
            into_sums[:, -1] += (column * into_edges[num_rows + j]).sum(1)
        into_decay = torch.matmul(_sums(log_decay).mT, into_sums)
        if ctx.has_document:
            into_decay.masked_fill_(log_decay == float("-inf"), 0.0)
        return None, None, into_decay, *results
