"""Batches made ahead: the same ones in the same order, and errors where they belong."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from suite.compute import prefetch
from suite.compute.prefetch import Workers, count_workers, prefetched


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_what_is_made_comes_in_order(workers: int) -> None:
    def make(step: int) -> int:
        # The later, the sooner it is there.
        time.sleep(0.002 * (step % 3 == 0))
        return step**2

    assert list(prefetched(make, range(5, 40), workers=Workers(workers, workers))) == [step**2 for step in range(5, 40)]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_is_raised_at_its_step(workers: int) -> None:
    def make(step: int) -> int:
        if step == 3:
            raise ValueError("no such example")
        return step

    seen = []
    with pytest.raises(ValueError, match="no such example"):
        for made in prefetched(make, range(9), workers=Workers(workers, workers)):
            seen.append(made)
    assert seen == [0, 1, 2]


def test_they_are_made_ahead_but_not_all_and_closing_ends_the_threads() -> None:
    made = []
    iterator = prefetched(lambda step: made.append(step), range(10_000), workers=Workers(2, 2))
    next(iterator)
    deadline = time.monotonic() + 10.0
    while len(made) < 8 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert len(made) == 8
    iterator.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("workers", [1, 8])
def test_closing_waits_for_what_is_being_made_and_for_nothing_behind_it(workers: int) -> None:
    closing, begun = threading.Event(), []

    def make(step: int) -> None:
        begun.append(closing.is_set())
        time.sleep(0.05)

    iterator = prefetched(make, range(10_000), workers=Workers(workers, workers))
    next(iterator)
    closing.set()
    iterator.close()
    # One may be taken from each queue before it is cancelled.
    assert sum(begun) <= workers


@pytest.mark.parametrize(
    ("seconds", "step", "most", "last"),
    [
        pytest.param(lambda threads: 0.004 / threads, 0.0, 4, 4, id="threads work side by side"),
        pytest.param(lambda threads: 0.002, 0.0, 2, 1, id="one of them at a time, as under Python's lock"),
        pytest.param(lambda threads: 0.0005, 0.002, 1, 1, id="no step waits"),
    ],
)
def test_threads_are_added_where_steps_wait_and_taken_back_where_nothing_is_faster(
    seconds: Callable[[int], float], step: float, most: int, last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """seconds: from one batch to the next, by so many threads; step: what a training step takes. By a clock of the test's own."""
    clock = 0.0
    monkeypatch.setattr(prefetch, "time", SimpleNamespace(perf_counter=lambda: clock))
    pace = prefetch._Pace(Workers(1, 4))
    counts = []
    for _ in range(12 * prefetch.WINDOW):
        made = seconds(pace.count)
        clock += max(made, step)
        pace.read(waited=max(0.0, made - step))
        counts.append(pace.count)
    assert max(counts) == most and counts[-1] == last


def test_a_step_that_takes_long_once_does_not_make_more_threads_seem_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    monkeypatch.setattr(prefetch, "time", SimpleNamespace(perf_counter=lambda: clock))
    pace = prefetch._Pace(Workers(1, 4))
    counts = []
    for step in range(12 * prefetch.WINDOW):
        # Two threads take half as long again as one, for a step too; one of the first steps writes a checkpoint.
        waited = 0.0005 * (1.0 if pace.count == 1 else 1.5)
        clock += 2 * waited + (0.032 if step == 20 else 0.0)
        pace.read(waited=waited)
        counts.append(pace.count)
    assert max(counts) == 2 and counts[-1] == 1


def test_slow_batches_are_shared_out() -> None:
    """Not all to one thread, however regularly they come."""
    makers = set[str]()

    def make(step: int) -> None:
        if step % 4 == 0:
            makers.add(threading.current_thread().name)
            time.sleep(0.005)

    for _ in prefetched(make, range(80), workers=Workers(4, 4)):
        pass
    assert len(makers) > 1


def test_a_cpu_is_left_to_training() -> None:
    assert count_workers("auto", torch.device("cpu")).most == 0 and count_workers(3, torch.device("cpu")) == Workers(3, 3)
    assert count_workers("auto", torch.device("cuda")).fewest == 1
