"""Our own kernels."""

from __future__ import annotations

import importlib.util


def obstacle() -> str | None:
    """Why these kernels can't run on a CUDA device here, with the remedy; None where nothing is in their way."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install triton"
    return None
