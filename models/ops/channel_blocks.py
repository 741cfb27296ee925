"""Products of what tokens of a chunk read and write, where each of K channels has any decay of its own, as matrix products.

The decay of a channel between a column and a later row is that from the column to the end of its block times that from the start
of the next block to the row, if both blocks are neighbours, so that products over channels are matrix products. Blocks of 1, 2,
4, ... tokens are joined until one of them is the chunk.

Decays are multiplied and never divided, so none is too strong. `models.ops.channel_decay` needs no blocks and two thirds of the
time, as long as decays are weak.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from models.ops.channel_decay import Products


def block_products(rows: Sequence[Tensor], columns: Sequence[Tensor], decay: Tensor) -> Products:
    """The products of rows and columns, each [M, C, K], in M chunks of C tokens with a decay [M, C, K] from 0 to 1.

    A row sees the columns of the tokens before its own, with the decays of the tokens between. Where its own token decays what it
    reads, the row is handed over times that decay.
    """
    (chunks, size, _), num_rows, num_columns = decay.shape, len(rows), len(columns)
    missing = (1 << (size - 1).bit_length()) - size
    sides = [*rows, *columns]
    if missing:
        sides = [F.pad(x, (0, 0, 0, missing)) for x in sides]
        decay = F.pad(decay, (0, 0, 0, missing), value=1.0)
    pairs, read, written, kept = _BlockProducts.apply(num_rows, decay, *sides)
    pairs = pairs.view(chunks, size + missing, num_rows, size + missing, num_columns)
    return Products(
        pairs=[list(row[:, :size, :size].unbind(3)) for row in pairs.unbind(2)],
        rows=list(read[:, :size].unbind(2)),
        columns=list(written[:, :size].unbind(2)),
        kept=kept,
    )


class _BlockProducts(torch.autograd.Function):
    """All pairs [M, C R, C W], rows [M, C, R, K], columns [M, C, W, K] and what is kept, of R rows and W columns a token.

    What a join has multiplied is kept for the gradient: T K log(C) numbers a head.
    """

    @staticmethod
    def forward(ctx: Any, num_rows: int, decay: Tensor, *sides: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows, columns, kept = torch.stack(sides[:num_rows], 2), torch.stack(sides[num_rows:], 2), decay
        chunks, size, width = decay.shape
        pairs = kept.new_zeros(chunks, size * rows.shape[2], size * columns.shape[2])
        saved = []
        for half in _halves(size):
            second, first = _half(rows, half, 1), _half(columns, half, 0)
            read, written = second.clone(), first.clone()
            before, after = kept.reshape(-1, 2, 1, width).unbind(1)
            across = _across(pairs, size, half)
            across.copy_(torch.bmm(read, written.mT).view(across.shape))
            second.mul_(before)
            first.mul_(after)
            saved += [read, written, before, after]
            kept = before * after
        ctx.save_for_backward(*saved)
        return pairs, rows, columns, kept.reshape(chunks, 1, width)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, into_pairs: Tensor, into_rows: Tensor, into_columns: Tensor, into_kept: Tensor
    ) -> tuple[Tensor | None, ...]:
        saved, (_, size, _, width) = ctx.saved_tensors, into_rows.shape
        into_rows, into_columns = (x.clone(memory_format=torch.contiguous_format) for x in (into_rows, into_columns))
        for level, half in reversed(list(enumerate(_halves(size)))):
            read, written, before, after = saved[4 * level : 4 * level + 4]
            second, first = _half(into_rows, half, 1), _half(into_columns, half, 0)
            into_kept = into_kept.reshape(-1, 1, width)
            into_before = torch.addcmul((second * read).sum(1, keepdim=True), into_kept, after)
            into_after = torch.addcmul((first * written).sum(1, keepdim=True), into_kept, before)
            into_kept = torch.stack([into_before, into_after], 1)
            across = _across(into_pairs, size, half).flatten(0, 1)
            second.mul_(before).add_(_product(across, written))
            first.mul_(after).add_(_product(across.mT, read))
        return None, into_kept.reshape(-1, size, width), *into_rows.unbind(2), *into_columns.unbind(2)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a b of many matrices: where a has one or two columns, sums of products take a tenth of the time of torch.bmm on a CPU."""
    if a.shape[2] > 2:
        return torch.bmm(a, b)
    product = a[:, :, :1] * b[:, :1]
    return product if a.shape[2] == 1 else product.addcmul_(a[:, :, 1:], b[:, 1:])


def _halves(size: int) -> list[int]:
    """How many tokens each of the two blocks has that are joined, from join to join."""
    return [1 << n for n in range(size.bit_length() - 1)]


def _half(x: Tensor, half: int, which: int) -> Tensor:
    """The first or the second of every two blocks, [M C / (2 half), half R, K] of x [M, C, R, K]."""
    return x.view(-1, 2, half * x.shape[2], x.shape[3])[:, which]


def _across(pairs: Tensor, size: int, half: int) -> Tensor:
    """The rows of every second block and the columns of the first before it: [M, C / (2 half), half R, half W]."""
    blocks = size // (2 * half)
    split = pairs.unflatten(2, (blocks, 2, -1)).unflatten(1, (blocks, 2, -1))
    return split[:, :, 1, :, :, 0].diagonal(dim1=1, dim2=3).movedim(-1, 1)
