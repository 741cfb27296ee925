"""An operator whose gradient is an operator too, with an input that may be missing and an output that only the gradient reads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.backends.differentiable import differentiable


@differentiable("linear_rnn_suite_tests::scaled")
def scaled(q: Tensor, k: Tensor, v: Tensor, state: Tensor, factor: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    size = q * k if factor is None else q * k * factor
    return size * v, 2.0 * state, size.clone()


def scaled_backward(do: Tensor, dstate: Tensor | None, *kept: Tensor | None) -> tuple[Tensor, ...]:
    q, k, v, state, factor, size = kept
    into_size = do * v if factor is None else do * v * factor
    return into_size * k, into_size * q, do * size, torch.zeros_like(state) if dstate is None else 2.0 * dstate


scaled.differentiate(
    scaled_backward,
    num_inputs=4,
    fake=lambda q, k, v, state, factor: (torch.empty_like(v), torch.empty_like(state), torch.empty_like(v)),
)


def plain(q: Tensor, k: Tensor, v: Tensor, state: Tensor, factor: Tensor | None) -> tuple[Tensor, Tensor]:
    return q * k * (1.0 if factor is None else factor) * v, 2.0 * state


def draw(*, with_factor: bool) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(3, 4, dtype=torch.float64, generator=generator) for _ in range(5)]
    leaves = [x.requires_grad_() for x in drawn[:4]]
    return [*leaves, drawn[4] if with_factor else None]


@pytest.mark.parametrize("with_factor", [False, True])
@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize(
    "form",
    [
        scaled,
        scaled.operator,
        torch.compile(scaled, fullgraph=True, backend="aot_eager"),
        # which hands out what was kept once
        partial(checkpoint, scaled, use_reentrant=False),
        partial(checkpoint, scaled.operator, use_reentrant=False),
    ],
)
def test_gradients_are_those_of_plain_operations(with_factor: bool, used: tuple[int, ...], form: Callable[..., Any]) -> None:
    found = []
    for run in (form, plain):
        inputs = draw(with_factor=with_factor)
        outputs = run(*inputs)
        loss = sum(outputs[i].square().sum() for i in used)
        found.append(torch.autograd.grad(loss, inputs[:4], allow_unused=True, materialize_grads=True))
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("with_factor", [False, True])
def test_the_operator_keeps_what_pytorch_asks_of_one(with_factor: bool) -> None:
    torch.library.opcheck(scaled.operator, tuple(draw(with_factor=with_factor)))
