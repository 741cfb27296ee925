"""Rows of an embedding whose gradient is summed in several copies: for compiled training on a GPU.

A compiler adds the gradient of every token to its row by an atomic operation, and those of one row wait for each other. In a
task of recall most tokens are the same filler. Tokens take turns among the copies, so that a row's queue is many times shorter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from models.backends.calls import copies_of_gradient


def rows(ids: Tensor, weight: Tensor) -> Tensor:
    """As `models.ops.embedding.rows`; the gradient differs from PyTorch's by the order of its sums."""
    return _Rows.apply(ids, weight)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape, ctx.copies = weight.shape, copies_of_gradient(ids, weight)
        return F.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, into_rows: Tensor) -> tuple[None, Tensor]:
        (ids,), (num_rows, dim) = ctx.saved_tensors, ctx.shape
        turns = torch.arange(ids.numel(), device=ids.device) % ctx.copies
        summed = into_rows.new_zeros(ctx.copies * num_rows, dim)
        summed = summed.index_add(0, ids.flatten() + turns * num_rows, into_rows.flatten(0, -2))
        return None, summed.view(ctx.copies, num_rows, dim).sum(0)
