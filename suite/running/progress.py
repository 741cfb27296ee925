"""Shows how runs come along: one live line a run on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import TextIO

from suite.running.execute import Event
from suite.store.foreign import inert, silence

PLAIN_SECONDS = 10.0


def duration(seconds: float) -> str:
    """1:05 or 2:01:05."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class ProgressDisplay:
    """Listens to events and prints them; lines that stay stand above the live ones."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self.total = total
        self._ended: set[str] = set()
        self.stream = stream or sys.stderr
        self.is_live = self.stream.isatty()
        self._active: dict[str, str] = {}
        self._drawn = 0
        self._spoke: dict[str, float] = {}
        self._began: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        if event.kind in ("started", "stage"):
            self._began.setdefault(event.run_id, time.monotonic())
            self._show(event, "starts" if event.kind == "started" else f"evaluates {event.text}")
        elif event.kind == "pulse":
            p = event.pulse
            self._show(
                event,
                f"{100 * p.step / p.steps:3.0f} %  step {p.step}/{p.steps}  loss {p.loss:.3f}  "
                f"{p.tokens_per_second:,.0f} tokens/s  {duration(p.seconds_left)} left",
            )
        elif event.kind == "note":
            self._draw(f"{event.run_id}  {event.title}: {event.text}")
        elif event.kind in ("done", "skipped", "failed"):
            self._end(event)

    def close(self) -> None:
        """Leaves the terminal on a fresh line."""
        self._active.clear()
        self._draw()

    def _show(self, event: Event, text: str) -> None:
        line = inert(f"{event.run_id}  {event.title}: {text}")
        if self.is_live:
            self._active[event.run_id] = line
            self._draw()
        elif time.monotonic() - self._spoke.get(event.run_id, -PLAIN_SECONDS) >= PLAIN_SECONDS:
            self._spoke[event.run_id] = time.monotonic()
            self._draw(line)

    def _end(self, event: Event) -> None:
        """Every worker comes to every run; the first one that says how it ended is the one that is heard."""
        if event.run_id in self._ended or (event.kind == "skipped" and event.run_id in self._began):
            return
        self._ended.add(event.run_id)
        self._active.pop(event.run_id, None)
        took = time.monotonic() - self._began.get(event.run_id, time.monotonic())
        words = {"done": f"done in {duration(took)}", "skipped": event.text, "failed": event.text}
        self._draw(f"[{len(self._ended)}/{self.total}] {event.run_id}  {event.title}: {words[event.kind]}")

    def _draw(self, line: str | None = None) -> None:
        """Prints a line that stays, and the live lines below it in the place of the former ones."""
        live = self._fitting(list(self._active.values())) if self.is_live else []
        back = f"\x1b[{self._drawn}F\x1b[J" if self._drawn else ""
        try:
            self.stream.write(back + "".join(f"{text}\n" for text in [*([] if line is None else [inert(line)]), *live]))
            self.stream.flush()
        except OSError:
            silence(self.stream)
        self._drawn = len(live)

    def _fitting(self, lines: list[str]) -> list[str]:
        """The lines as far as the terminal shows each on one line, and all of them at once: only such can be replaced."""
        try:
            size = os.get_terminal_size(self.stream.fileno())
        except OSError:
            size = shutil.get_terminal_size()
        columns, height = size.columns or 80, size.lines or 24
        return [line[: columns - 1] for line in lines[: height - 1]]
