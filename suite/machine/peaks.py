"""What devices compute at most, from their makers' sheets (peaks.yaml), and what share of it a training reaches."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from conf.settings import Refusal, near

MOST_DEVICES = 65536


@dataclass(frozen=True)
class Devices:
    """Several devices of one kind. name: as peaks.yaml has it. bfloat16, float32: FLOP/s of one of them."""

    name: str
    count: int
    bfloat16: float
    float32: float

    def flops_per_second(self, autocast: str) -> float:
        """What one of them computes at most in a second under this train.autocast."""
        return self.bfloat16 if autocast == "bfloat16" else self.float32


def named(typed: str) -> Devices:
    """Devices as people type them: h100, or h100x8 for eight. Raises Refusal."""
    found = re.fullmatch(r"(\w+?)(?:x(\d{1,6}))?", typed)
    name, count = (found[1], int(found[2] or 1)) if found else (typed, 1)
    if name not in _peaks() or not 1 <= count <= MOST_DEVICES:
        names = list(_peaks())
        raise Refusal("on", typed, f"{', '.join(names)}, or so many of them, as in h100x8", near(name, names), "is unknown")
    return Devices(name, count, **_peaks()[name])


def of_device(device_name: str, count: int = 1) -> Devices | None:
    """Devices of which torch calls one so; None where peaks.yaml knows none of this name, as a CPU."""
    found = next((name for name, pattern in _patterns().items() if re.fullmatch(pattern, device_name)), None)
    return None if found is None else Devices(found, count, **_peaks()[found])


def utilisation(flops_per_second: float, devices: Devices, autocast: str) -> float:
    """The share of what the devices compute at most (MFU; Chowdhery et al., PaLM, arXiv 2204.02311, App. B).

    flops_per_second: of the model alone, without what activation checkpointing computes again.
    """
    return flops_per_second / (devices.count * devices.flops_per_second(autocast))


def _peaks() -> dict[str, dict[str, float]]:
    return {name: {key: float(row[key]) for key in ("bfloat16", "float32")} for name, row in _table().items()}


def _patterns() -> dict[str, str]:
    return {name: row["names"] for name, row in _table().items()}


@functools.cache
def _table() -> Mapping[str, Mapping[str, str]]:
    return yaml.safe_load(Path(__file__).with_name("peaks.yaml").read_text(encoding="utf-8"))
