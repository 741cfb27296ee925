"""How long a piece of work takes, alone or beside another way of doing it, in the same process and on the same inputs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch

from tasks.task import Measurement

# Tokens of a timed pass, and how often both ways are timed in turn.
TIMED_TOKENS = 4096
TIMED_REPEATS = 5
# Work that is timed alone is repeated for about so long, within these numbers of repeats.
TIMED_SECONDS = 0.3
FEWEST_REPEATS, MOST_REPEATS = 5, 50
# Calls after the first that are not counted: on a GPU kernels are tuned and graphs captured in the first ones.
WARM_UPS = {"cuda": 4, "cpu": 1}


class Times(NamedTuple):
    """Milliseconds of a piece of work: cold, its first call, and the quartiles of `count` later ones."""

    cold: float
    low: float
    median: float
    high: float
    count: int


def timed(work: Callable[[], object], device: torch.device) -> Times:
    """Calls the work MOST_REPEATS + 5 times at most."""
    cold, *_, warm = (seconds(work, device) for _ in range(1 + WARM_UPS[device.type]))
    count = min(MOST_REPEATS, max(FEWEST_REPEATS, int(TIMED_SECONDS / warm)))
    if device.type == "cuda":
        spent = _between_events(work, count, device)
    else:
        spent = [1e3 * seconds(work, device) for _ in range(count)]
    return Times(1e3 * cold, *statistics.quantiles(spent, n=4, method="inclusive"), count)


def _between_events(work: Callable[[], object], count: int, device: torch.device) -> list[float]:
    """Milliseconds between the ends of calls that are queued without waiting, as in use."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize(device)
    return [before.elapsed_time(after) for before, after in pairwise(marks)]


def compared_rows(
    one: Callable[[], object], other: Callable[[], object], device: torch.device, *, split: str, tokens: int
) -> list[Measurement]:
    """relative_time, the median ratio of one's time to the other's just after it, and one's microseconds_per_token.

    Both run once before, and in turn: what else the machine does meanwhile falls on both. tokens: those that one works on.
    """
    one()
    other()
    pairs = [(seconds(one, device), seconds(other, device)) for _ in range(TIMED_REPEATS)]
    ratio, spent = statistics.median(a / b for a, b in pairs), statistics.median(a for a, _ in pairs)
    values = {"relative_time": ratio, "microseconds_per_token": 1e6 * spent / tokens}
    return [Measurement(metric, value, split, {}, TIMED_REPEATS) for metric, value in values.items()]


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """The time of one call, the device's work included."""
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
