"""What a device can do at most, measured, and how fast a piece of work could therefore be.

The roofline (Williams, Waterman & Patterson 2009): no work is faster than its contractions at the speed of a large matrix
product, nor than the bytes that it has to move at the speed of a copy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from suite.evaluation.studies.timing import seconds

# Large enough that neither launches nor caches help, small enough to take no time beside what is measured.
PRODUCT_SIZE = {"cuda": 8192, "cpu": 1024}
COPIED_BYTES = {"cuda": 2**31, "cpu": 2**28}
ATTEMPTS = 5


class Ceilings(NamedTuple):
    """flops_per_second: of a square matrix product in the precision of the run. bytes_per_second: read and written by a copy."""

    flops_per_second: float
    bytes_per_second: float

    def floor_ms(self, *, flops: float, moved_bytes: float) -> float:
        """The least milliseconds of work with so many contractions that has to move so many bytes."""
        return 1e3 * max(flops / self.flops_per_second, moved_bytes / self.bytes_per_second)


@functools.cache
def measured_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """The best of ATTEMPTS, measured once a process."""
    return Ceilings(_product_speed(device, dtype), _copy_speed(device))


def _product_speed(device: torch.device, dtype: torch.dtype) -> float:
    size, generator = PRODUCT_SIZE[device.type], torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))
    return 2.0 * size**3 / _best_seconds(lambda: a @ b, device)


def _copy_speed(device: torch.device) -> float:
    source = torch.zeros(COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    # A byte that is copied is read and written.
    return 2.0 * len(source) / _best_seconds(lambda: target.copy_(source), device)


def _best_seconds(work: Callable[[], object], device: torch.device) -> float:
    work()
    return min(seconds(work, device) for _ in range(ATTEMPTS))


def total_bytes(tensors: Iterable[Tensor]) -> int:
    """What the tensors occupy."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
