"""Every adapter to mamba-ssm."""

from __future__ import annotations

import importlib.util


def obstacle() -> str | None:
    """Why mamba-ssm can't run on a CUDA device here, with the remedy; None where nothing is in its way."""
    if importlib.util.find_spec("mamba_ssm") is None:
        return "mamba-ssm is not installed: pip install --no-build-isolation --no-deps mamba-ssm"
    return None
