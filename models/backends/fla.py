"""Every adapter to flash-linear-attention."""

from __future__ import annotations

import importlib.util


def obstacle() -> str | None:
    """Why flash-linear-attention can't run on a CUDA device here, with the remedy; None where nothing is in its way."""
    if importlib.util.find_spec("fla") is None:
        return "flash-linear-attention is not installed: pip install flash-linear-attention"
    return None
