"""How long one way of computing takes beside another, in the same process and on the same inputs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

# Tokens of a timed pass, and how often both ways are timed in turn.
TIMED_TOKENS = 4096
TIMED_REPEATS = 5


def alternate(one: Callable[[], object], other: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """The median ratio of one's time to the other's just after it, and one's median time in seconds.

    Both run once before, and in turn: what else the machine does meanwhile falls on both.
    """
    one()
    other()
    pairs = [(_seconds(one, device), _seconds(other, device)) for _ in range(TIMED_REPEATS)]
    return statistics.median(a / b for a, b in pairs), statistics.median(a for a, _ in pairs)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
