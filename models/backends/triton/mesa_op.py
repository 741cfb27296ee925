"""The op of models/ops/mesa by these kernels, for a sequence and for a token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.backends.triton.mesa import mesa_chunked
from models.backends.triton.mesa_decode import mesa_decode_
from models.ops.mesa import Inputs, MesaState
from models.ops.solvers import ConjugateGradients


def mesa(inputs: Inputs, *, state: MesaState, solver: ConjugateGradients) -> tuple[Tensor, MesaState]:
    """o and the state after, as `models.ops.mesa.chunked` has them, computed in the dtype of v.

    A token without gradients is computed in float32, and its o is float32. Raises ValueError for a sign, and for what
    `mesa_chunked` and `mesa_decode_` refuse.
    """
    q, k, v, log_decay, beta, regularizer, _ = _unsigned(inputs)
    if q.shape[1] == 1 and not torch.is_grad_enabled():
        after = MesaState(*(x.clone(memory_format=torch.contiguous_format) for x in (state.G, state.H)))
        return mesa_(inputs, state=after, solver=solver), after
    # Under autocast v is as the projections gave it, while norms have widened q and k, which would cost twice the time.
    q, k = q.to(v.dtype), k.to(v.dtype)
    gates = {"log_decay": log_decay, "beta": beta, "regularizer": regularizer}
    result = mesa_chunked(q=q, k=k, v=v, **gates, G=state.G, H=state.H, **_stopping(solver))
    return result.o, MesaState(result.G, result.H)


def mesa_(inputs: Inputs, *, state: MesaState, solver: ConjugateGradients) -> Tensor:
    """o in float32, as that of `mesa` for T = 1, with G and H updated in place."""
    read = {name: x for name, x in _unsigned(inputs)._asdict().items() if name != "sign"}
    return mesa_decode_(**read, G=state.G, H=state.H, **_stopping(solver))


def _unsigned(inputs: Inputs) -> Inputs:
    if inputs.sign is not None:
        raise ValueError("sign is given, permitted with backend=triton are decays without one (signed_decay=false)")
    return inputs


def _stopping(solver: ConjugateGradients) -> dict[str, Any]:
    return {"tolerance": solver.tolerance, "max_steps": solver.max_steps, "initial": solver.initial}
