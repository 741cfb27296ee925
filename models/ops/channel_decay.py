"""Products of what tokens of a chunk read and write, where each of K channels has a decay of its own, as matrix products.

The decay of a channel between a column at s and a row at t >= s is exp(L_t - L_s), with L the sum of log-decays from the start of
the chunk, or of the document that begins in it. It is the product of exp(L_t) and exp(-L_s) as long as no L is below -RANGE,
where the latter would overflow before long. Rows from the first such token of their chunk on are worked out in a way that
multiplies no factor above 1, and takes longer.

So a row depends on the tokens before it, down to the last bit, and on nothing of another document or after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.ops.decay import FORGOTTEN

RANGE = 40.0
"""exp(RANGE) leaves twenty orders of magnitude of float32's range to what it multiplies."""


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


def channel_products(
    rows: Sequence[Side], columns: Sequence[Side], log_decay: Tensor, whatever: Callable[[], Products]
) -> Products:
    """The products of every row and column in chunks with log_decay [M, C, K] <= 0.

    whatever: gives the same for any decay. It alone is asked where a device works ahead of the host, or a compiler does, as what
    there is to do follows from numbers.
    """
    if log_decay.device.type != "cpu" or torch.compiler.is_compiling():
        return whatever()
    factors, count = _factors(log_decay.detach()), len(rows) * len(columns)
    sides = [(side.at, side.strict) for side in (*rows, *columns)]
    outputs = list(_ChannelProducts.apply(factors, len(rows), sides, log_decay, *(side.x for side in (*rows, *columns))))
    factored = Products(
        pairs=[outputs[i : i + len(columns)] for i in range(0, count, len(columns))],
        rows=outputs[count : count + len(rows)],
        columns=outputs[count + len(rows) : -1],
        kept=outputs[-1],
    )
    if factors.safe.all():
        return factored
    exact, end = whatever(), factors.safe[:, -1:].unsqueeze(-1)
    safe = [factors.safe[:, side.at].unsqueeze(-1) for side in rows]
    return Products(
        pairs=[
            [torch.where(where, x, y) for x, y in zip(*both, strict=True)]
            for where, *both in zip(safe, factored.pairs, exact.pairs, strict=True)
        ],
        rows=[torch.where(*each) for each in zip(safe, factored.rows, exact.rows, strict=True)],
        columns=[torch.where(end, x, y) for x, y in zip(factored.columns, exact.columns, strict=True)],
        kept=torch.where(end, factored.kept, exact.kept),
    )


class _Factors(NamedTuple):
    """up, down: [M, C + 1, K], exp(L) and exp(-L) of the sums from that of no token to that of all. safe: [M, C + 1] bool.

    sums: [C + 1, C] or [M, C + 1, C] of 0 and 1, which makes L of log-decays. document: [M, C + 1], how many resets there were;
    None without one.
    """

    up: Tensor
    down: Tensor
    safe: Tensor
    sums: Tensor
    document: Tensor | None


def _factors(log_decay: Tensor) -> _Factors:
    chunks, size, _ = log_decay.shape
    sums, document = log_decay.new_ones(size + 1, size).tril_(-1), None
    if log_decay.amin() == float("-inf"):
        resets = log_decay.amax(-1) == float("-inf")
        document = resets.new_zeros(chunks, size + 1, dtype=torch.long)
        document[:, 1:] = resets.cumsum(-1)
        log_decay = log_decay.masked_fill(resets.unsqueeze(-1), 0.0).clamp_(min=FORGOTTEN)
        sums = sums * (document.unsqueeze(-1) == document[:, 1:].unsqueeze(-2))
    # In float64: an exponential of a number near RANGE has lost digits that the number, in float32, has lost.
    total = torch.matmul(sums.double(), log_decay.double())
    safe = total.amin(-1) >= -RANGE
    up = total.clamp_(min=-RANGE).exp_()
    return _Factors(up.to(log_decay.dtype, copy=True), up.reciprocal_().to(log_decay.dtype), safe, sums, document)


def _visible(factors: _Factors, row: tuple[slice, bool], column: tuple[slice, bool]) -> Tensor:
    """1 where a row sees a column, [R, N], or [M, R, N] where resets are."""
    (at_row, strict), (at_column, _) = row, column
    number = torch.arange(factors.up.shape[1])
    read, written = number[at_row].unsqueeze(-1), number[at_column]
    seen = written < read if strict else written <= read
    if factors.document is not None:
        seen = seen & (factors.document[:, at_row].unsqueeze(-1) == factors.document[:, at_column].unsqueeze(-2))
    return seen.to(factors.up.dtype)


def _first(factors: _Factors, x: Tensor, at: slice) -> Tensor:
    """x [M, R, K] of the document that its chunk begins with, 0 for those of others."""
    if factors.document is None:
        return x
    return x * (factors.document[:, at] == 0).unsqueeze(-1)


def _to_end(factors: _Factors, at: slice) -> Tensor:
    """exp(L_C) [M, 1, K] of the last sum, by which columns are multiplied, [M, N, K] and 0 where a reset lies between."""
    end = factors.up[:, -1:]
    if factors.document is None:
        return end
    return end * (factors.document[:, at] == factors.document[:, -1:]).unsqueeze(-1)


class _ChannelProducts(torch.autograd.Function):
    """The factored products. The gradient into L_t is the sum, over what exp(L_t) multiplies, of it times its own gradient."""

    @staticmethod
    def forward(
        ctx: Any, factors: _Factors, num_rows: int, sides: list[tuple[slice, bool]], log_decay: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        of_rows, of_columns = sides[:num_rows], sides[num_rows:]
        rows = [x * factors.up[:, at] for x, (at, _) in zip(tensors[:num_rows], of_rows, strict=True)]
        columns = [x * factors.down[:, at] for x, (at, _) in zip(tensors[num_rows:], of_columns, strict=True)]
        pairs = [
            torch.bmm(row, column.mT).mul_(_visible(factors, read, written))
            for row, read in zip(rows, of_rows, strict=True)
            for column, written in zip(columns, of_columns, strict=True)
        ]
        rows = [_first(factors, row, at) for row, (at, _) in zip(rows, of_rows, strict=True)]
        columns = [x.mul_(_to_end(factors, at)) for x, (at, _) in zip(columns, of_columns, strict=True)]
        kept = _first(factors, factors.up[:, -1:].clone(), slice(-1, None))
        ctx.num_rows, ctx.sides, ctx.factors = num_rows, sides, factors
        ctx.save_for_backward(log_decay, kept, *tensors, *columns)
        return *pairs, *rows, *columns, kept

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *into: Tensor) -> tuple[Tensor | None, ...]:
        num_rows, sides, factors, count = ctx.num_rows, ctx.sides, ctx.factors, len(ctx.sides)
        log_decay, kept, *saved = ctx.saved_tensors
        tensors, at_end, num_columns = saved[:count], saved[count:], count - num_rows
        into_pairs, into_edges = into[: num_rows * num_columns], into[num_rows * num_columns : -1]
        scales = [(factors.up if i < num_rows else factors.down)[:, at] for i, (at, _) in enumerate(sides)]
        scaled = [x * scale for x, scale in zip(tensors, scales, strict=True)]
        # What arrives at rows times exp(L), and at columns times exp(-L).
        arriving = [_first(factors, x, at).clone() for x, (at, _) in zip(into_edges[:num_rows], sides[:num_rows], strict=True)]
        arriving += [x * _to_end(factors, at) for x, (at, _) in zip(into_edges[num_rows:], sides[num_rows:], strict=True)]
        for n, into_pair in enumerate(into_pairs):
            i, j = n // num_columns, num_rows + n % num_columns
            seen = into_pair * _visible(factors, sides[i], sides[j])
            arriving[i].baddbmm_(seen, scaled[j])
            arriving[j].baddbmm_(seen.mT, scaled[i])
        into_sums = torch.zeros_like(factors.up)
        for i, (x, (at, _), scale) in enumerate(zip(tensors, sides, scales, strict=True)):
            into_sums[:, at].addcmul_(x, arriving[i].mul_(scale), value=1.0 if i < num_rows else -1.0)
        into_sums[:, -1:].addcmul_(into[-1], kept)
        for column, into_column in zip(at_end, into_edges[num_rows:], strict=True):
            into_sums[:, -1] += (column * into_column).sum(1)
        into_decay = torch.matmul(factors.sums.mT, into_sums)
        if factors.document is not None:
            into_decay.masked_fill_(log_decay == float("-inf"), 0.0)
        return None, None, None, into_decay, *arriving
