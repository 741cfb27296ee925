"""Our kernels' gradients under a checkpoint, which hands out what was kept once: see `test_interpreted`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.models.backends import triton_interpreter  # noqa: F401 - before the kernels

# isort: split
from models.backends.triton.cross_entropy import mean_nll
from models.backends.triton.gated_inputs import gated_inputs
from models.backends.triton.mesa import mesa_chunked
from models.backends.triton.rglru import scan
from models.backends.triton.short_convolution import convolve

draw = partial(torch.rand, generator=torch.Generator().manual_seed(0))
SOLVE = {"tolerance": 0.0, "max_steps": 2, "initial": "zero"}


def solved(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, *, output: int) -> Tensor:
    regularizer = torch.ones(k.shape[2:])
    inputs = {"q": q, "k": k, "v": v, "log_decay": -beta.square(), "beta": beta, "regularizer": regularizer}
    return mesa_chunked(**inputs, G=None, H=None, **SOLVE)[output]


def scanned(log_decay: Tensor, u: Tensor, state: Tensor) -> Tensor:
    return scan(log_decay=-log_decay, u=u, state=state)[0]


TOKENS = [draw(1, 5, 1, 16) for _ in range(3)] + [draw(1, 5, 1)]
CASES: dict[str, tuple[Callable[..., Tensor], Sequence[Tensor]]] = {
    "gated inputs": (
        lambda k, beta, log_decay: gated_inputs(k, beta, log_decay, dtype=torch.float32, lowest=-9.0)[0],
        [draw(1, 5, 2, 4), draw(1, 5, 2), -draw(1, 5, 2)],
    ),
    "mesa, read-outs": (partial(solved, output=0), TOKENS),
    "mesa, the state alone": (partial(solved, output=1), TOKENS),
    "rg-lru": (scanned, [draw(1, 5, 3), draw(1, 5, 3), draw(1, 3)]),
    "convolution": (partial(convolve, starts=None), [draw(1, 5, 8), draw(8, 3), draw(1, 2, 8)]),
    "loss": (lambda x, weight: mean_nll(x, weight, torch.arange(4), soft_cap=9.0), [draw(4, 8), draw(6, 8)]),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_without_a_checkpoint(name: str) -> None:
    compute, inputs = CASES[name]
    found = []
    for run in (compute, partial(checkpoint, compute, use_reentrant=False)):
        leaves = [x.clone().requires_grad_() for x in inputs]
        output = run(*leaves)
        found.append(torch.autograd.grad(output.square().sum(), leaves, allow_unused=True))
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
