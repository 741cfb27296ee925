"""Inputs for the Mesa kernels on any device, and how far these are from the float64 recurrent form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from models.backends.triton.mesa import mesa_chunked
from models.ops import mesa

Tensors = dict[str, Tensor]
OVER_TIME = ("q", "k", "v", "log_decay", "beta")
NAMES = (*OVER_TIME, "regularizer", "G", "H")
# bfloat16: three roundings to 8 bits, of the output, of its cotangent and of one factor inside, each 2e-3. float16: of its
# inputs' products with the two-part states. float32: products of two bfloat16 parts, 2^-17 each, and a solve that ends at 1e-6.
TOLERANCE = {torch.bfloat16: 6e-3, torch.float16: 1e-3, torch.float32: 3e-5}
SOLVE_TOLERANCE = {torch.bfloat16: 1e-4, torch.float16: 1e-4, torch.float32: 1e-6}


def draw(*, length: int, key_dim: int, value_dim: int, dtype: torch.dtype, device: str, batch_size: int = 1) -> Tensors:
    """Unit keys and queries of two heads, with resets where there is room, in the middle of a sequence."""
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(length + key_dim + value_dim))
    tokens = (batch_size, length, 2)
    q, k = (F.normalize(normal(*tokens, key_dim), dim=-1) for _ in range(2))
    log_decay = F.logsigmoid(normal(*tokens) + 4.0)
    log_decay[-1, 5:65:59, 0] = float("-inf")
    root = normal(batch_size, 2, key_dim, key_dim) / key_dim**0.5
    inputs = {"q": q.to(dtype), "k": k.to(dtype), "v": normal(*tokens, value_dim).to(dtype), "log_decay": log_decay}
    inputs |= {"beta": normal(*tokens).sigmoid(), "regularizer": 0.25 + normal(2, key_dim).abs()}
    inputs |= {"G": normal(batch_size, 2, value_dim, key_dim), "H": root @ root.mT}
    return {name: x.to(device) for name, x in inputs.items()}


def draw_cotangents(inputs: Tensors) -> list[Tensor]:
    """Cotangents of o, in the dtype of v, and of G and H after the last token."""
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(1))
    o, G, H = (normal(inputs[name].shape).to(inputs[name].device) for name in ("v", "G", "H"))
    return [o.to(inputs["v"].dtype), G, H]


def kernel(inputs: Tensors, *, tolerance: float, max_steps: int, initial: str = "diagonal") -> tuple[Tensor, Tensor, Tensor]:
    return mesa_chunked(**inputs, tolerance=tolerance, max_steps=max_steps, initial=initial)[:3]


def recurrent(inputs: Tensors) -> tuple[Tensor, Tensor, Tensor]:
    over_time = {name: x for name, x in inputs.items() if name not in ("G", "H")}
    o, state = mesa.recurrent(mesa.Inputs(**over_time), state=mesa.MesaState(inputs["G"], inputs["H"]))
    return o, state.G, state.H


def results(
    form: Callable[[Tensors], Sequence[Tensor]], inputs: Tensors, cotangents: Sequence[Tensor], names: Sequence[str] = NAMES
) -> Tensors:
    """o, G and H after the last token, and the gradients of the inputs as d_<name>."""
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    outputs = form(leaves)
    chosen = outputs[: len(cotangents)]
    weights = [y.to(o.dtype) for y, o in zip(cotangents, chosen, strict=True)]
    gradients = torch.autograd.grad(chosen, [leaves[name] for name in names], weights)
    named = dict(zip(("o", "G", "H"), (x.detach() for x in outputs), strict=True))
    return named | {f"d_{name}": x for name, x in zip(names, gradients, strict=True)}


def errors(actual: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> dict[str, float]:
    """|actual - exact| / |exact| of every tensor; a tensor that is 0 but for rounding counts as of entries of 1e-3."""
    return {name: ((actual[name].double() - y).norm() / (y.norm() + 1e-3 * y.numel() ** 0.5)).item() for name, y in exact.items()}


def assert_equals_recurrent(inputs: Tensors) -> None:
    dtype, cotangents = inputs["v"].dtype, draw_cotangents(inputs)
    solved = partial(kernel, tolerance=SOLVE_TOLERANCE[dtype], max_steps=60)
    exact = results(recurrent, {name: x.double() for name, x in inputs.items()}, cotangents)
    found = errors(results(solved, inputs, cotangents), exact)
    assert max(found.values()) < TOLERANCE[dtype], found
