"""What is heard of long work, as seldom as it is worth showing. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable

from suite.running.events import Share

EVERY_SECONDS = 0.5


class Hearing:
    """Hears how far the parts of some work are, and passes it on with the seconds left, which what is done so far tells.

    passed: is told the share, and in words what is being done. every: seconds between two words, EVERY_SECONDS if None.
    quiet: seconds of a part in which nothing is said.
    """

    def __init__(
        self,
        passed: Callable[[Share, str], None],
        *,
        every: float | None = None,
        quiet: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._passed, self._quiet, self._clock = passed, quiet, clock
        self._every = EVERY_SECONDS if every is None else every
        self._began, self._spoke, self._what, self._done, self._first = clock(), clock(), "", 0, 0

    def __call__(self, what: str, done: int, total: int) -> None:
        now = self._clock()
        if what != self._what or done < self._done:
            # Another loop, whose first item may have taken long before it was counted.
            self._began, self._what, self._first = now, what, done
        self._done = done
        if now - self._spoke < self._every or now - self._began < self._quiet or total < 1:
            return
        self._spoke = now
        counted = done - self._first
        left = (now - self._began) * (total - done) / counted if counted > 0 else None
        self._passed(Share(done, total, left), what)
