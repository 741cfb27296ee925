"""Batches made ahead of the steps that read them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from suite.machine.devices import count_cores

Made = TypeVar("Made")

# Enough ahead that no thread waits for the step; a batch is small.
AHEAD_PER_WORKER = 4
MOST_WORKERS = 16


def prefetched(make: Callable[[int], Made], steps: Sequence[int], *, workers: int) -> Generator[Made]:
    """make(step) of every step, in order; made ahead by threads, or with no workers here, when it is asked for.

    `make` depends on the step alone, so nothing depends on how many workers there are; what it raises is raised here, at
    its step. Close the iterator to end its threads.
    """
    if workers == 0:
        yield from map(make, steps)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prefetch")
    coming: deque[Future[Made]] = deque()
    try:
        for step in steps:
            coming.append(pool.submit(make, step))
            if len(coming) == AHEAD_PER_WORKER * workers:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def count_workers(asked: int | str, device: torch.device) -> int:
    """`compute.prefetch`; auto is a thread for each core but one that a run on a GPU has, and none on a CPU, which trains."""
    if asked != "auto":
        return asked
    if device.type == "cpu":
        return 0
    cores = count_cores() // max(1, torch.cuda.device_count())
    return min(MOST_WORKERS, max(1, cores - 1))
