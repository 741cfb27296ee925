"""What a person sees while runs go on: lines of runs, the estimate for all of them, and how far evaluations are."""

from __future__ import annotations

from io import StringIO

import pytest

from suite.running.estimate import Estimate
from suite.running.events import Event, Outlook, Pulse, Share
from suite.running.hearing import Hearing
from suite.running.progress import ProgressDisplay
from tasks.progress import counted, heard, tell


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def outlooks(count: int, kind: str = "gla", work: float = 100.0, stages: tuple[str, ...] = ()) -> list[Outlook]:
    return [Outlook(f"{kind}{i}", kind, work, stages) for i in range(count)]


def hear(estimate: Estimate, run_id: str, *events: tuple[float, str, str]) -> None:
    for now, kind, text in events:
        estimate.hear(Event(run_id, "", kind, text), now)


def pulse(step: int, seconds_left: float) -> Pulse:
    return Pulse(step, 100, 1.0, 1.0, seconds_left)


def test_nothing_is_estimated_before_a_run_says_how_fast_it_is():
    estimate = Estimate(outlooks(4), workers=1)
    assert estimate.seconds_left(0.0) is None
    hear(estimate, "gla0", (0.0, "started", "train"))
    estimate.hear(Event("gla0", "", "pulse", pulse=pulse(4, 96.0)), 4.0)
    assert estimate.seconds_left(4.0) is None
    estimate.hear(Event("gla0", "", "pulse", pulse=pulse(10, 90.0)), 10.0)
    assert estimate.seconds_left(10.0) == pytest.approx(90 + 3 * 100)


def test_workers_share_what_is_left_but_not_a_single_run():
    estimate = Estimate(outlooks(5), workers=2)
    hear(estimate, "gla0", (0.0, "started", "train"), (10.0, "done", ""))
    assert estimate.seconds_left(10.0) == pytest.approx(4 * 10 / 2)
    alone = Estimate(outlooks(2), workers=4)
    hear(alone, "gla0", (0.0, "started", "train"), (10.0, "done", ""))
    assert alone.seconds_left(10.0) == pytest.approx(10)


def test_a_run_counts_by_its_work_and_a_model_by_its_own_speed():
    """4 units in 8 s are 2 s a unit; the unknown model is taken for the mean of the known ones, 2 and 4."""
    runs = [*outlooks(2, "slow", 4.0), *outlooks(2, "fast", 10.0), *outlooks(1, "new", 7.0)]
    estimate = Estimate(runs, workers=1)
    hear(estimate, "slow0", (0.0, "started", "train"), (16.0, "done", ""))
    hear(estimate, "fast0", (16.0, "started", "train"), (36.0, "done", ""))
    assert estimate.seconds_left(36.0) == pytest.approx(4 * 4 + 10 * 2 + 7 * 3)


def test_evaluations_take_what_those_of_their_name_took():
    runs = [*outlooks(2, "gla", 10.0, ("test", "position")), *outlooks(1, "mesanet", 0.0, ("position",))]
    estimate = Estimate(runs, workers=1)
    hear(estimate, "gla0", (0.0, "started", "train"), (10.0, "stage", "test"), (13.0, "stage", "position"), (20.0, "done", ""))
    assert estimate.seconds_left(20.0) == pytest.approx((10 + 3 + 7) + 7)
    hear(estimate, "mesanet0", (20.0, "stage", "position"))
    estimate.hear(Event("mesanet0", "", "share", "position", share=Share(1, 4, 30.0)), 30.0)
    assert estimate.seconds_left(35.0) == pytest.approx(20 + 25)


def test_a_run_that_failed_early_says_nothing_of_speeds():
    estimate = Estimate(outlooks(3), workers=1)
    hear(estimate, "gla0", (0.0, "started", "train"), (1.0, "failed", "diverged"))
    assert estimate.seconds_left(1.0) is None


def watch(display: ProgressDisplay, clock: Clock, seconds: float, run_id: str, kind: str, text: str = "") -> None:
    clock.now += seconds
    display(Event(run_id, "gla tiny", kind, text))


def test_a_terminal_sees_the_sweep_on_its_last_line():
    clock, terminal = Clock(), Terminal()
    display = ProgressDisplay(40, terminal, estimate=Estimate(outlooks(40), 1), clock=clock)
    watch(display, clock, 0, "gla0", "started")
    watch(display, clock, 100, "gla0", "done")
    watch(display, clock, 1, "gla1", "started")
    live = terminal.getvalue().rpartition("\x1b[J")[2].splitlines()
    assert live == ["gla1  gla tiny: starts", "1 of 40 runs done, about 1:05:00 left"]
    display.close()
    assert terminal.getvalue().endswith("\x1b[2F\x1b[J")


def test_a_file_hears_of_the_sweep_once_a_minute():
    clock, stream = Clock(), StringIO()
    display = ProgressDisplay(20, stream, estimate=Estimate(outlooks(20), 1), clock=clock)
    for i in range(20):
        watch(display, clock, 0, f"gla{i}", "started")
        watch(display, clock, 10, f"gla{i}", "done")
    told = [line for line in stream.getvalue().splitlines() if "runs done" in line]
    assert told == [f"{n} of 20 runs done, about {left} left" for n, left in ((6, "2:20"), (12, "1:20"), (18, "0:20"))]


def test_one_run_has_no_line_for_the_sweep():
    clock, terminal = Clock(), Terminal()
    display = ProgressDisplay(1, terminal, estimate=Estimate(outlooks(1), 1), clock=clock)
    watch(display, clock, 5, "gla0", "started")
    watch(display, clock, 50, "gla0", "note", "something")
    assert "runs done" not in terminal.getvalue()


def test_an_evaluation_shows_its_share_and_the_seconds_left():
    clock, terminal = Clock(), Terminal()
    display = ProgressDisplay(1, terminal, clock=clock)
    display(Event("gla0", "gla tiny", "share", "evaluates position", share=Share(35, 100, 80.0)))
    assert terminal.getvalue() == "gla0  gla tiny:  35 %  evaluates position  1:20 left\n"


def test_a_loop_tells_its_listener_how_far_it_is_and_nobody_else():
    told: list[tuple[str, int, int]] = []
    with heard(lambda *what: told.append(what)):
        assert list(counted([2, 2, 1], 5, lambda size: size)) == [2, 2, 1]
    tell("unheard", 1, 1)
    assert told == [("", 2, 5), ("", 4, 5), ("", 5, 5)]


def test_what_is_heard_is_passed_on_seldom_and_not_for_short_work():
    clock, passed = Clock(), []
    hearing = Hearing(lambda share, what: passed.append((clock.now, what, share)), every=5.0, quiet=2.0, clock=clock)
    for second in range(1, 21):
        clock.now = float(second)
        hearing("tokenising", 10 * second, 200)
    # Its beginning is the first word of it, at second 1 with 10 done: 10 a second.
    assert [now for now, _, _ in passed] == [5.0, 10.0, 15.0, 20.0]
    assert passed[0][1:] == ("tokenising", Share(50, 200, pytest.approx(15.0)))
    short: list[Share] = []
    hearing = Hearing(lambda share, what: short.append(share), every=0.0, quiet=2.0, clock=clock)
    for _ in range(10):
        clock.now += 0.1
        hearing("tokenising", 1, 2)
    assert short == []


def test_another_loop_of_a_stage_counts_from_its_own_beginning():
    clock, passed = Clock(), []
    hearing = Hearing(lambda share, what: passed.append(share), every=1.0, clock=clock)
    for done in (50, 100):
        clock.now += 10
        hearing("", done, 100)
    for done in (1, 2):
        clock.now += 1
        hearing("", done, 11)
    assert [share.seconds_left for share in passed] == [10.0, 0.0, None, pytest.approx(9.0)]
