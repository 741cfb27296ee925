"""Products by blocks are the definition's for any decay, gradients as well."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.ops.channel_blocks import block_products

M, K = 2, 3


def draw(size: int, *, weakest: float) -> list[Tensor]:
    """Two rows, a column and the decay of a chunk; a tenth of the decays leave nothing."""
    generator = torch.Generator().manual_seed(size)
    drawn = [torch.randn(M, size, K, generator=generator, dtype=torch.float64) for _ in range(3)]
    decay = weakest * torch.rand(M, size, K, generator=generator, dtype=torch.float64)
    decay[torch.rand(M, size, K, generator=generator) < 0.1] = 0.0
    return [x.requires_grad_() for x in (*drawn, decay)]


def flat(q: Tensor, e: Tensor, a: Tensor, decay: Tensor) -> list[Tensor]:
    products = block_products([q, e], [a], decay)
    return [*(pair for row in products.pairs for pair in row), *products.rows, *products.columns, products.kept]


def defined(q: Tensor, e: Tensor, a: Tensor, decay: Tensor) -> list[Tensor]:
    size = decay.shape[1]

    def between(s: int, t: int) -> Tensor:
        return decay[:, s:t].prod(1)

    def pairs(row: Tensor) -> Tensor:
        seen = [
            (row[:, t] * between(s + 1, t) * a[:, s]).sum(-1) if s < t else row.new_zeros(M)
            for t in range(size)
            for s in range(size)
        ]
        return torch.stack(seen, -1).view(M, size, size)

    rows = [torch.stack([row[:, t] * between(0, t) for t in range(size)], 1) for row in (q, e)]
    column = torch.stack([a[:, s] * between(s + 1, size) for s in range(size)], 1)
    return [pairs(q), pairs(e), *rows, column, between(0, size).unsqueeze(1)]


@pytest.mark.parametrize("size", [2, 7, 16])
@pytest.mark.parametrize("weakest", [1.0, 1e-9])
def test_products_and_gradients_are_the_definition_s(size: int, weakest: float) -> None:
    inputs = draw(size, weakest=weakest)
    found, expected = flat(*inputs), defined(*inputs)
    arriving = [torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype) for x in expected]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, inputs, arriving), torch.autograd.grad(expected, inputs, arriving))


def test_float32_is_finite_where_decays_leave_nothing() -> None:
    inputs = [x.detach().float().requires_grad_() for x in draw(16, weakest=1e-30)]
    found = flat(*inputs)
    gradients = torch.autograd.grad(found, inputs, [torch.ones_like(x) for x in found])
    assert all(x.isfinite().all() for x in (*found, *gradients))
