"""The forms of the Mesa op as functions of named tensors, inputs for them, and the gradients into these."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from models.ops import mesa
from models.ops.solvers import Solver
from tests.models.built import solver

B, H, K, V = 2, 2, 6, 5
CHUNK_SIZE = 8
OVER_TIME = ("q", "k", "v", "log_decay", "beta")
STATE = ("G", "H")
NAMES = (*OVER_TIME, "regularizer", *STATE)

Tensors = dict[str, Tensor]
Run = Callable[[Tensors], list[Tensor]]


def built(
    name: str,
    max_steps: int,
    tolerance: float = 0.0,
    *,
    stop: str = "right_hand_side",
    initial: str = "diagonal",
    gradient: str = "implicit",
) -> Solver:
    settings = {"max_steps": max_steps, "tolerance": tolerance, "stop": stop, "initial": initial, "gradient": gradient}
    return solver({"name": name, **settings})


EXACT = built("cg", 60)


def draw(length: int, seed: int = 0) -> Tensors:
    """Well-conditioned inputs in the middle of a sequence, in float64."""
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    root = normal(B, H, K, K)
    return {
        "q": F.normalize(normal(B, length, H, K), dim=-1),
        "k": F.normalize(normal(B, length, H, K), dim=-1),
        "v": normal(B, length, H, V),
        "log_decay": F.logsigmoid(normal(B, length, H) + 2.0),
        "beta": normal(B, length, H).sigmoid(),
        "regularizer": 0.25 + normal(H, K).abs(),
        "G": normal(B, H, V, K),
        "H": root @ root.mT / K,
    }


def with_signs(inputs: Tensors) -> Tensors:
    """Some decays below 0, under a Lambda that keeps H + Lambda positive definite."""
    drawn = torch.rand(inputs["beta"].shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return {**inputs, "sign": torch.where(drawn < 0.3, -1.0, 1.0).double(), "regularizer": inputs["regularizer"] + 30.0}


def with_a_regularizer_per_token(inputs: Tensors) -> Tensors:
    drawn = torch.rand(inputs["k"].shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return {**inputs, "regularizer": 0.25 + drawn}


VARIANTS = {"plain": dict, "signs": with_signs, "regularizer_per_token": with_a_regularizer_per_token}


def run(form: Callable[..., tuple[Tensor, mesa.MesaState]], inputs: Tensors) -> list[Tensor]:
    rest = {name: x for name, x in inputs.items() if name not in STATE}
    o, state = form(mesa.Inputs(**rest), state=mesa.MesaState(inputs["G"], inputs["H"]))
    return [o, state.G, state.H]


def recurrent(inputs: Tensors) -> list[Tensor]:
    return run(mesa.recurrent, inputs)


def chunked(inputs: Tensors, solver: Solver = EXACT, chunk_size: int = CHUNK_SIZE) -> list[Tensor]:
    return run(partial(mesa.chunked, solver=solver, chunk_size=chunk_size), inputs)


def decoded(inputs: Tensors, solver: Solver = EXACT) -> list[Tensor]:
    """Token by token."""
    outputs, state = [], mesa.MesaState(inputs["G"], inputs["H"])
    over_time = {name for name, x in inputs.items() if name not in STATE and not (name == "regularizer" and x.ndim == 2)}
    for t in range(inputs["q"].shape[1]):
        rest = {name: x[:, t : t + 1] if name in over_time else x for name, x in inputs.items() if name not in STATE}
        o, state = mesa.decode(mesa.Inputs(**rest), state=state, solver=solver)
        outputs.append(o)
    return [torch.cat(outputs, dim=1), state.G, state.H]


def with_gradients(form: Run, inputs: Tensors) -> tuple[list[Tensor], list[Tensor]]:
    """o and the final states, and the gradient of a fixed random weighting of them into every input.

    H is symmetric, and so is its gradient.
    """
    leaves = [inputs[name].clone().requires_grad_() for name in NAMES]
    outputs = form({**inputs, **dict(zip(NAMES, leaves, strict=True))})
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    *others, into_H = torch.autograd.grad(outputs, leaves, [normal(y.shape).to(y) for y in outputs])
    return [y.detach() for y in outputs], [*others, (into_H + into_H.mT) / 2]


def gradients(form: Run, inputs: Tensors) -> list[Tensor]:
    return with_gradients(form, inputs)[1]


def worst_error(actual: Tensor, expected: Tensor) -> float:
    """The largest |actual - expected| / |expected| of any vector along the last axis."""
    return ((actual.double() - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-30)).max().item()


def trace(inputs: Tensors, solver: Solver, chunk_size: int = CHUNK_SIZE, *, spectrum: bool = False) -> mesa.SolverTrace:
    rest = {name: x for name, x in inputs.items() if name not in STATE}
    state = mesa.MesaState(inputs["G"], inputs["H"])
    return mesa.trace(mesa.Inputs(**rest), state=state, solver=solver, chunk_size=chunk_size, spectrum=spectrum)
