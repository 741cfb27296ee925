"""Shows how runs come along: a live line a run and one for all of them on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

from suite.running.estimate import Estimate
from suite.running.events import Event
from suite.store.foreign import inert, silence

# The shortest time between two lines of a run, and between two of the whole sweep, where lines stay; and on a terminal
# between two estimates, which go through all runs.
PLAIN_SECONDS, SWEEP_SECONDS, LIVE_SECONDS = 10.0, 60.0, 1.0


def duration(seconds: float) -> str:
    """1:05 or 2:01:05."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class ProgressDisplay:
    """Listens to events and prints them; lines that stay stand above the live ones."""

    def __init__(
        self,
        total: int,
        stream: TextIO | None = None,
        *,
        estimate: Estimate | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = total
        self._estimate, self._clock = estimate, clock
        self._ended: set[str] = set()
        self.stream = stream or sys.stderr
        self.is_live = self.stream.isatty()
        self._active: dict[str, str] = {}
        self._drawn = 0
        self._spoke: dict[str, float] = {}
        self._began: dict[str, float] = {}
        self._sweep, self._told = "", clock()

    def __call__(self, event: Event) -> None:
        if self._estimate:
            self._estimate.hear(event, self._clock())
        if event.kind in ("started", "stage"):
            self._began.setdefault(event.run_id, self._clock())
            self._show(event, "starts" if event.kind == "started" else f"evaluates {event.text}")
        elif event.pulse:
            p = event.pulse
            self._show(
                event,
                f"{100 * p.step / p.steps:3.0f} %  step {p.step}/{p.steps}  loss {p.loss:.3f}  "
                f"{p.tokens_per_second:,.0f} tokens/s  {duration(p.seconds_left)} left",
            )
        elif event.share:
            share = event.share
            left = "" if share.seconds_left is None else f"  {duration(share.seconds_left)} left"
            self._show(event, f"{100 * share.done / share.total:3.0f} %  {event.text}{left}")
        elif event.kind == "note":
            self._draw(f"{event.run_id}  {event.title}: {event.text}")
        elif event.kind in ("done", "skipped", "failed"):
            self._end(event)
        self._show_sweep()

    def close(self) -> None:
        """Leaves the terminal on a fresh line."""
        self._active.clear()
        self._sweep = ""
        self._draw()

    def _show(self, event: Event, text: str) -> None:
        line = inert(f"{event.run_id}  {event.title}: {text}")
        if self.is_live:
            self._active[event.run_id] = line
            self._draw()
        elif self._clock() - self._spoke.get(event.run_id, -PLAIN_SECONDS) >= PLAIN_SECONDS:
            self._spoke[event.run_id] = self._clock()
            self._draw(line)

    def _show_sweep(self) -> None:
        """How far all runs are: below the live lines, or where lines stay once a minute; of a single run its own line tells."""
        now = self._clock()
        if self._estimate is None or self.total < 2 or now - self._told < (LIVE_SECONDS if self.is_live else SWEEP_SECONDS):
            return
        self._told, seconds = now, self._estimate.seconds_left(now)
        left = "" if seconds is None else f", about {duration(seconds)} left"
        line = f"{len(self._ended)} of {self.total} runs done{left}"
        if self.is_live:
            self._sweep = line
            self._draw()
        elif left:
            self._draw(line)

    def _end(self, event: Event) -> None:
        """Every worker comes to every run; the first one that says how it ended is the one that is heard."""
        if event.run_id in self._ended or (event.kind == "skipped" and event.run_id in self._began):
            return
        self._ended.add(event.run_id)
        self._active.pop(event.run_id, None)
        took = self._clock() - self._began.get(event.run_id, self._clock())
        words = {"done": f"done in {duration(took)}", "skipped": event.text, "failed": event.text}
        self._draw(f"[{len(self._ended)}/{self.total}] {event.run_id}  {event.title}: {words[event.kind]}")

    def _draw(self, line: str | None = None) -> None:
        """Prints a line that stays, and the live lines below it in the place of the former ones."""
        live = self._fitting(list(self._active.values()), [self._sweep] if self._sweep else []) if self.is_live else []
        back = f"\x1b[{self._drawn}F\x1b[J" if self._drawn else ""
        try:
            self.stream.write(back + "".join(f"{text}\n" for text in [*([] if line is None else [inert(line)]), *live]))
            self.stream.flush()
        except OSError:
            silence(self.stream)
        self._drawn = len(live)

    def _fitting(self, lines: list[str], last: list[str]) -> list[str]:
        """The lines as far as the terminal shows each on one line, and all of them at once: only such can be replaced."""
        try:
            size = os.get_terminal_size(self.stream.fileno())
        except OSError:
            size = shutil.get_terminal_size()
        columns, height = size.columns or 80, size.lines or 24
        return [line[: columns - 1] for line in (*lines[: height - 1 - len(last)], *last)]
