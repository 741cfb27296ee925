"""Our own kernels."""

from __future__ import annotations

import importlib.util

import torch

SHARED_MEMORY = 114_688
"""Bytes of a multiprocessor that one program of the Mesa layer takes at K = V = 128 in bfloat16, compiled for sm_80.

In float32 it is 147,456 there, and for sm_90 110,592 at most but for the solve of Hopper GPUs, 114,704. No GPU lies between.
"""


def obstacle() -> str | None:
    """Why these kernels can't run on a CUDA device here, with the remedy; None where nothing is in their way."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install triton"
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties()
        if properties.shared_memory_per_block_optin < SHARED_MEMORY:
            found = properties.shared_memory_per_block_optin
            return f"{properties.name} has {found:,} bytes of shared memory a block, needed are {SHARED_MEMORY:,}: backend=torch"
    return None
