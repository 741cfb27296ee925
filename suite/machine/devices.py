"""Which device a run is computed on."""

from __future__ import annotations

import os

import torch


def select_device(name: str) -> torch.device:
    """The device that `compute.device` names; auto is a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """A GPU as its maker calls it, or "CPU"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def count_cores() -> int:
    """The cores that this process may use, or where the system does not say (macOS), those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
