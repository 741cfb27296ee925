"""Keys times write strengths and bounded log-decays in Triton on a GPU; `test_interpreted` has them on a CPU."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
LOWEST = -128.0
# Whole blocks and others, K of no power of two, and no token at all.
SHAPES = [(2, 65, 3, 64), (1, 1, 1, 1), (3, 7, 5, 80), (2, 33, 2, 256), (2, 0, 3, 16)]


def plain(k: Tensor, beta: Tensor, log_decay: Tensor, *, dtype: torch.dtype, lowest: float) -> tuple[Tensor, Tensor]:
    return (k * beta.unsqueeze(-1)).to(dtype), log_decay.float().clamp(min=lowest)


def results(form, inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    outputs = form(*leaves, dtype=dtype, lowest=LOWEST)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator).to(x) for x in outputs]
    return [*outputs, *torch.autograd.grad(outputs, leaves, weights)]


def assert_is_the_product(shape: tuple[int, int, int, int], keys: torch.dtype, dtype: torch.dtype, device: str) -> None:
    """To the bit, but for a sum over K, which is of another order."""
    from models.backends.triton.gated_inputs import gated_inputs

    generator = torch.Generator().manual_seed(sum(shape))
    k = torch.randn(*shape[:2], 2, *shape[2:], generator=generator).to(device, keys).unbind(2)[1]
    beta = torch.rand(shape[:3], generator=generator).to(device)
    log_decay = -200.0 * torch.rand(shape[:3], generator=generator)
    log_decay[:, ::3] = float("-inf")
    log_decay[:, 1::3] = LOWEST
    inputs = [k, beta, log_decay.to(device)]
    ours, theirs = results(gated_inputs, inputs, dtype), results(plain, inputs, dtype)
    for index, (x, y) in enumerate(zip(ours, theirs, strict=True)):
        assert x.dtype == y.dtype and x.is_contiguous()
        if index == 3:
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(x, y)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("keys", "dtype"), [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16), (torch.float32, torch.float32)]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_product(shape: tuple[int, int, int, int], keys: torch.dtype, dtype: torch.dtype) -> None:
    assert_is_the_product(shape, keys, dtype, "cuda")
