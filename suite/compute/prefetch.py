"""Batches made ahead of the steps that read them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import torch

from suite.machine.devices import count_cores

Made = TypeVar("Made")

# Enough ahead that no thread waits for the step; a batch is small.
AHEAD_PER_WORKER = 4
MOST_WORKERS = 16
WINDOW = 32
"""Steps whose rate says whether more threads made batches come faster."""
WAITING = 0.1
"""The share of its time that a step waits for its batch, from which on more threads are tried."""
WORTH = 1.2
"""How many times faster twice as many threads have to be."""
ATTEMPTS_APART = 1024
"""Steps from one attempt that was not worth it to the next."""


class Workers(NamedTuple):
    """How many threads make batches: the fewest at first, and up to the most. With none, batches are made where they are read."""

    fewest: int
    most: int


NO_WORKERS = Workers(0, 0)


def prefetched(make: Callable[[int], Made], steps: Sequence[int], *, workers: Workers) -> Generator[Made]:
    """make(step) of every step, in order; made ahead by threads, or with no workers here, when it is asked for.

    `make` depends on the step alone, so nothing depends on how many workers there are; what it raises is raised here, at
    its step. Close the iterator to end its threads.
    """
    if workers.most == 0:
        yield from map(make, steps)
        return
    pace = _Pace(workers)
    coming: deque[Future[Made]] = deque()
    threads: list[_Thread] = []
    try:
        for step in steps:
            for number in range(len(threads), pace.count):
                threads.append(_Thread(number))
            # Each has a queue of its own, as one for all would be read by those, too, that are to rest.
            coming.append(min(threads[: pace.count], key=_Thread.pending).submit(make, step))
            while len(coming) >= AHEAD_PER_WORKER * pace.count:
                asked = time.perf_counter()
                batch = coming.popleft().result()
                pace.read(waited=time.perf_counter() - asked)
                yield batch
        while coming:
            yield coming.popleft().result()
    finally:
        # What waits is cancelled for all threads first: else each would go on with its own while another is waited for.
        for thread in threads:
            thread.pool.shutdown(wait=False, cancel_futures=True)
        for thread in threads:
            thread.pool.shutdown()


class _Thread:
    """One thread and what it has still to make."""

    def __init__(self, number: int) -> None:
        self.pool = ThreadPoolExecutor(1, thread_name_prefix=f"prefetch-{number}")
        self._given: deque[Future[Any]] = deque()

    def pending(self) -> int:
        while self._given and self._given[0].done():
            self._given.popleft()
        return len(self._given)

    def submit(self, make: Callable[[int], Made], step: int) -> Future[Made]:
        made = self.pool.submit(make, step)
        self._given.append(made)
        return made


class _Pace:
    """How many threads make batches at once: twice as many where steps wait for theirs, if that makes them come faster.

    It does where NumPy works on large arrays, or a file is read. Where Python itself takes the time, threads take its lock from
    each other and from the training step, and more of them are slower: then they are fewer again, until the next attempt.
    """

    def __init__(self, workers: Workers) -> None:
        self.count, self._most = workers.fewest, workers.most
        self._fewer: tuple[int, float] | None = None
        """The number of threads before the attempt that is under way, and how many steps a second it had."""
        self._rate: float | None = None
        """Steps a second of the window before, if it had as many threads and its steps waited, too."""
        self._measure(after=AHEAD_PER_WORKER)

    def read(self, *, waited: float) -> None:
        """A step has its batch, for which it waited so many seconds."""
        self._skipped -= 1
        if self._skipped > 0:
            return
        if self._skipped == 0:
            self._since = time.perf_counter()
            return
        self._waited += waited
        if self._skipped == -WINDOW:
            self._decide(time.perf_counter() - self._since)

    def _measure(self, *, after: int) -> None:
        self._skipped, self._waited, self._since = after, 0.0, 0.0

    def _decide(self, seconds: float) -> None:
        rate, waits = WINDOW / seconds, self._waited > WAITING * seconds
        if self._fewer is not None and rate < WORTH * self._fewer[1]:
            self.count, self._fewer, self._rate = self._fewer[0], None, None
            self._measure(after=ATTEMPTS_APART)
            return
        self._fewer = None
        before, self._rate = self._rate, rate if waits else None
        if self.count < self._most and waits and before is not None:
            # The faster of two windows: behind one in which a checkpoint was written, any number of threads would seem faster.
            self._fewer, self._rate = (self.count, max(before, rate)), None
            self.count = min(2 * self.count, self._most)
        # what is read first was made by the threads before
        self._measure(after=AHEAD_PER_WORKER * self.count)


def count_workers(asked: int | str, device: torch.device) -> Workers:
    """`compute.prefetch`; auto is one to a thread for each core but one that a run on a GPU has, and none on a CPU."""
    if asked != "auto":
        return Workers(int(asked), int(asked))
    if device.type == "cpu":
        return NO_WORKERS
    cores = count_cores() // max(1, torch.cuda.device_count())
    return Workers(1, min(MOST_WORKERS, max(1, cores - 1)))
