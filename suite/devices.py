"""Which device a run is computed on."""

from __future__ import annotations

import torch


def select_device(name: str) -> torch.device:
    """The device that `compute.device` names; auto is a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
