"""When a whole sweep will be done, from what its runs have taken so far. Imports no torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import mean

from suite.running.events import Event, Outlook

# The share of a training after which its own speed counts: the first steps are slower than the rest.
TELLING_SHARE = 0.05
ENDS = ("done", "skipped", "failed", "lost")


class Estimate:
    """Listens to the events of the runs, each with the second at which it is heard.

    A training takes its work times the seconds that its kind took a unit of work, or all kinds where that one has not been
    seen; an evaluation as long as those of its title took, of its kind or of all. What nothing is known of takes no time.
    """

    def __init__(self, outlooks: Iterable[Outlook], workers: int) -> None:
        self._workers = workers
        self._outlooks = {each.run_id: each for each in outlooks}
        # The parts of a run that are left, "" for its training; and the one that is going on, with its beginning.
        self._left = {each.run_id: [*([""] if each.work else []), *each.stages] for each in self._outlooks.values()}
        self._going: dict[str, tuple[str, float]] = {}
        # When a part will have ended by its own word, and how long it will have taken.
        self._ending: dict[str, float] = {}
        self._speeds: dict[str, dict[str, float]] = defaultdict(dict)
        self._spent: dict[tuple[str, str], list[float]] = defaultdict(list)

    def hear(self, event: Event, now: float) -> None:
        run_id = event.run_id
        if run_id not in self._outlooks:
            return
        if event.kind in ("started", "stage", *ENDS):
            self._end_part(run_id, now, is_whole=event.kind not in ("failed", "lost"))
        if event.kind in ("started", "stage"):
            self._going[run_id] = ("" if event.kind == "started" else event.text), now
        elif event.kind in ENDS:
            self._left[run_id] = []
        elif event.kind == "pulse" and event.pulse:
            pulse = event.pulse
            self._ending[run_id] = now + pulse.seconds_left
            if pulse.step < pulse.steps and pulse.step >= TELLING_SHARE * pulse.steps:
                self._time_training(run_id, pulse.seconds_left * pulse.steps / (pulse.steps - pulse.step))
        elif event.kind == "share" and event.share and event.share.seconds_left is not None:
            self._ending[run_id] = now + event.share.seconds_left

    def _end_part(self, run_id: str, now: float, *, is_whole: bool) -> None:
        if run_id not in self._going:
            return
        part, began = self._going.pop(run_id)
        self._ending.pop(run_id, None)
        if part in self._left[run_id]:
            self._left[run_id].remove(part)
        kind = self._outlooks[run_id].kind
        if part and is_whole:
            self._spent[kind, part].append(now - began)
        elif is_whole and run_id not in self._speeds[kind]:
            # What a training says of itself counts the attempts before this one too.
            self._time_training(run_id, now - began)

    def _time_training(self, run_id: str, seconds: float) -> None:
        outlook = self._outlooks[run_id]
        if outlook.work:
            self._speeds[outlook.kind][run_id] = seconds / outlook.work

    def seconds_left(self, now: float) -> float | None:
        """Until the last run has ended, if that can be said: the workers share what is left, and a run is one worker's."""
        speeds = {kind: mean(of_runs.values()) for kind, of_runs in self._speeds.items() if of_runs}
        if not (speeds or self._spent) or (not speeds and any("" in parts for parts in self._left.values())):
            return None
        typical = _Typical(speeds, self._spent)
        left = [self._left_of(run_id, parts, typical, now) for run_id, parts in self._left.items()]
        return max(sum(left) / self._workers, max(left, default=0.0))

    def _left_of(self, run_id: str, parts: list[str], typical: _Typical, now: float) -> float:
        outlook = self._outlooks[run_id]
        seconds = sum(typical.seconds(outlook, part) for part in parts)
        if run_id in self._going:
            part, began = self._going[run_id]
            expected = typical.seconds(outlook, part)
            seconds -= expected if part in parts else 0.0
            seconds += max(0.0, self._ending.get(run_id, began + expected) - now)
        return seconds


class _Typical:
    """What parts of runs take, as far as it has been seen."""

    def __init__(self, speeds: Mapping[str, float], spent: Mapping[tuple[str, str], list[float]]) -> None:
        titles = {title for _, title in spent}
        self._speeds, self._speed = speeds, mean(speeds.values()) if speeds else 0.0
        self._spent = {place: mean(seconds) for place, seconds in spent.items()}
        self._of_title = {title: mean(x for (_, of), each in spent.items() if of == title for x in each) for title in titles}

    def seconds(self, outlook: Outlook, part: str) -> float:
        if part:
            return self._spent.get((outlook.kind, part), self._of_title.get(part, 0.0))
        return outlook.work * self._speeds.get(outlook.kind, self._speed)
