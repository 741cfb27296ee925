"""Which library computes a recurrence; backends differ at the op, never at the layer.

Permitted names are those of BACKENDS. `settle` turns "auto" into one of them and refuses, with the reason, one that
can't run: there is never a silent fallback.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Any

BACKENDS = ("torch", "fla", "mamba_ssm", "triton")


def obstacle(backend: str, device: str) -> str | None:
    """Why a backend can't run on a device ("cpu", "cuda"), with the remedy; None where nothing is in its way."""
    if backend == "torch":
        return None
    if device != "cuda":
        return "it needs a CUDA device"
    return importlib.import_module(f"models.backends.{backend}").obstacle()


def settle(backend: str, computing: Sequence[str], device: str) -> str:
    """The backend that a run uses, from what was asked: a name of BACKENDS, or "auto".

    computing: the backends that compute all mixers of the model with their settings, fastest first, torch among them.
    Raises ValueError for one that is unknown, does not compute the model or can't run on the device.
    """
    if backend == "auto":
        return next(name for name in computing if obstacle(name, device) is None)
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is unknown, permitted are {', '.join((*BACKENDS, 'auto'))}")
    if backend not in computing:
        raise ValueError(
            f"backend={backend!r} does not compute this model with its settings: permitted are {', '.join(computing)}"
        )
    reason = obstacle(backend, device)
    if reason is not None:
        raise ValueError(f"backend={backend!r} can't run here: {reason}")
    return backend


def form(
    op: ModuleType, *, backend: str, length: int, chunk_size: int, adapters: Mapping[str, Callable[..., Any]]
) -> Callable[..., Any]:
    """What computes an op (a module of models/ops) for `length` tokens: the backend's adapter, named in `adapters`.

    On torch it is `recurrent` for a single token, and else `chunked`, in chunks of chunk_size tokens.
    """
    if backend != "torch":
        return adapters[backend]
    return op.recurrent if length == 1 else partial(op.chunked, chunk_size=chunk_size)
