"""Which backends compute Mesa, and how those beside PyTorch are called: as `models.ops.mesa` is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models.ops.mesa import MesaState
from models.ops.solvers import ConjugateGradients

if TYPE_CHECKING:
    from models.mesa.mixer import Mesa

LARGEST_DIM = 128
FLA_DIMS = ((64, 64), (128, 128))
"""K and V with which fla's Mesa was found right on an H200; at 32 its read-outs were off by their own size."""
SMALLEST_REGULARIZER, LARGEST_REGULARIZER = 1e-4, 32_768
"""Between these a Lambda is exact enough in float16, in which kernels of bfloat16 inputs keep it."""
SMALLEST_TOLERANCE = 2e-7
"""What float32 can tell of a residual; below it `models.ops.solvers` goes on in more digits, which no kernel does."""


def computing(settings: Mesa.Settings) -> tuple[str, ...]:
    """The backends that compute `models.mesa.mixer.Mesa` with these settings, fastest first.

    triton: conjugate gradients from any guess of their own, differentiated at the solution, on unit keys of up to 128,
        with a Lambda that float16 holds.
    fla: the same from zero, in a fixed number of steps, with K = V = 64 or 128.
    """
    dims, solver = (settings.key_dim, settings.value_dim), settings.solver
    fused = (
        solver.name == "cg"
        and solver.gradient == "implicit"
        and solver.initial != "previous_token"
        and settings.feature_map == "silu_l2"
        and settings.decode == "solver"
        and not settings.signed_decay
        and max(dims) <= LARGEST_DIM
        and settings.regularizer_floor >= SMALLEST_REGULARIZER
        and settings.regularizer_init < LARGEST_REGULARIZER
    )
    if not fused:
        return ("torch",)
    fixed = solver.tolerance == 0.0
    by_triton = fixed or (solver.stop == "right_hand_side" and solver.tolerance >= SMALLEST_TOLERANCE)
    by_fla = fixed and solver.initial == "zero" and settings.random_steps is None and dims in FLA_DIMS
    return ("triton",) * by_triton + ("fla",) * by_fla + ("torch",)


def by_triton(inputs: Mapping[str, Tensor], *, state: MesaState, solver: ConjugateGradients) -> tuple[Tensor, MesaState]:
    """inputs: q, k, v, log_decay, beta and regularizer; computed in the dtype of v."""
    if inputs["q"].shape[1] == 1 and not torch.is_grad_enabled():
        after = MesaState(*(x.clone(memory_format=torch.contiguous_format) for x in (state.G, state.H)))
        return decode_by_triton_(inputs, state=after, solver=solver), after
    from models.backends.triton.mesa import mesa_chunked

    # Under autocast v is as the projections gave it, while norms have widened q and k, which would cost twice the time.
    narrow = {name: inputs[name].to(inputs["v"].dtype) for name in ("q", "k")}
    result = mesa_chunked(**{**inputs, **narrow}, G=state.G, H=state.H, **_stopping(solver))
    return result.o, MesaState(result.G, result.H)


def decode_by_triton_(inputs: Mapping[str, Tensor], *, state: MesaState, solver: ConjugateGradients) -> Tensor:
    """The same for T = 1, with G and H updated in place."""
    from models.backends.triton.mesa_decode import mesa_decode_

    return mesa_decode_(**inputs, G=state.G, H=state.H, **_stopping(solver))


def _stopping(solver: ConjugateGradients) -> dict[str, Any]:
    return {"tolerance": solver.tolerance, "max_steps": solver.max_steps, "initial": solver.initial}


def by_fla(inputs: Mapping[str, Tensor], *, state: MesaState, solver: ConjugateGradients) -> tuple[Tensor, MesaState]:
    from models.backends import fla

    return fla.mesa(**inputs, state=state, max_steps=solver.max_steps)


RECURRENCES = {"triton": by_triton, "fla": by_fla}
