"""Batches made ahead: the same ones in the same order, and errors where they belong."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from suite.compute.prefetch import count_workers, prefetched


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_what_is_made_comes_in_order(workers: int) -> None:
    def make(step: int) -> int:
        # The later, the sooner it is there.
        time.sleep(0.002 * (step % 3 == 0))
        return step**2

    assert list(prefetched(make, range(5, 40), workers=workers)) == [step**2 for step in range(5, 40)]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_is_raised_at_its_step(workers: int) -> None:
    def make(step: int) -> int:
        if step == 3:
            raise ValueError("no such example")
        return step

    seen = []
    with pytest.raises(ValueError, match="no such example"):
        for made in prefetched(make, range(9), workers=workers):
            seen.append(made)
    assert seen == [0, 1, 2]


def test_they_are_made_ahead_but_not_all_and_closing_ends_the_threads() -> None:
    made = []
    iterator = prefetched(lambda step: made.append(step), range(10_000), workers=2)
    next(iterator)
    deadline = time.monotonic() + 10.0
    while len(made) < 8 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert len(made) == 8
    iterator.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_a_cpu_is_left_to_training() -> None:
    assert count_workers("auto", torch.device("cpu")) == 0 and count_workers(3, torch.device("cpu")) == 3
    assert count_workers("auto", torch.device("cuda")) >= 1
