"""Which library computes a recurrence; backends differ at the op, never at the layer.

Permitted names are those of BACKENDS. `settle` turns "auto" into one of them and refuses, with the reason, one that
can't run: there is never a silent fallback.
"""

from __future__ import annotations

BACKENDS = ("torch",)


def settle(backend: str) -> str:
    """The backend that a run uses, from what was asked: a name of BACKENDS, or "auto".

    Raises ValueError for one that is unknown or can't run here.
    """
    if backend == "auto":
        return "torch"
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} can't run here: permitted are {', '.join((*BACKENDS, 'auto'))}")
    return backend
