"""The gradient of an embedding that is summed in copies is the gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from models.backends import load, spread_embedding
from models.backends.calls import MOST_COPIES, MOST_ELEMENTS, copies_of_gradient
from models.ops import embedding


@pytest.mark.parametrize(("shape", "num_rows", "dim"), [((3, 65), 19, 8), ((7,), 5, 1), ((2, 3, 4), 100, 4), ((1, 1), 1, 2)])
def test_values_and_gradients_are_those_of_pytorch(shape: tuple[int, ...], num_rows: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    # Half of the ids are one, as the filler of a task of recall is.
    ids = torch.randint(num_rows, shape, generator=generator) * torch.randint(2, shape, generator=generator)
    weight = torch.randn(num_rows, dim, generator=generator, dtype=torch.float64, requires_grad=True)
    ours, theirs = spread_embedding.rows(ids, weight), F.embedding(ids, weight)
    assert torch.equal(ours, theirs) and torch.equal(embedding.rows(ids, weight), theirs)
    into = torch.randn(theirs.shape, generator=generator, dtype=torch.float64)
    (actual,), (expected,) = (torch.autograd.grad(each, weight, into) for each in (ours, theirs))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_copies_hold_no_more_than_they_may_and_there_is_always_one() -> None:
    for tokens, num_rows, dim, copies in (
        (32_768, 8192, 64, 16),
        (4096, 8192, 64, 2),
        (8, 50_257, 1024, 1),
        (2**20, 50_257, 1024, 1),
    ):
        counted = copies_of_gradient(torch.empty(tokens, device="meta"), torch.empty(num_rows, dim, device="meta"))
        assert counted == copies and (counted == 1 or counted * num_rows * dim <= MOST_ELEMENTS) and counted <= MOST_COPIES


def test_it_is_for_compiled_training_on_a_gpu_alone() -> None:
    suits = load(embedding, "torch").suits
    assert not suits(torch.zeros(32_768, dtype=torch.int64), torch.zeros(8192, 64))


@pytest.mark.gpu
def test_a_compiled_gradient_on_a_gpu_is_that_of_a_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(64, (32, 128), generator=generator) * torch.randint(2, (32, 128), generator=generator)
    weight = torch.randn(64, 32, generator=generator, dtype=torch.float64)
    kernel, taken = load(embedding, "torch"), []

    @torch.compile
    def compiled(ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        taken.append(kernel.suits(ids, weight))
        return (kernel.computes if taken[-1] else embedding.rows)(ids, weight)

    gradients = []
    for device, form in (("cpu", embedding.rows), ("cuda", compiled)):
        there = weight.to(device, copy=True).requires_grad_()
        form(ids.to(device), there).sin().sum().backward()
        gradients.append(there.grad.cpu())
    assert all(taken)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-10, atol=1e-10)
