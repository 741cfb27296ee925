"""What Ctrl-C, a scheduler's SIGTERM and its notice to make room do to a process of the suite."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

INTERRUPTED = 130
"""The exit status of a process that was interrupted."""


class Preempted(KeyboardInterrupt):
    """A scheduler needs the machine; what was trained so far stands in a checkpoint."""


class Notice:
    """A scheduler's notice that this process is to make room soon. is_given: whether there was one.

    A training takes its step to the end and saves a checkpoint, whatever else is going on is given up at once.
    """

    def __init__(self) -> None:
        self.is_given, self._is_training = False, False

    def give(self, number: int, frame: FrameType | None) -> None:
        """Handles the signal. Raises Preempted where nothing is trained."""
        is_first, self.is_given = not self.is_given, True
        if is_first and not self._is_training:
            raise Preempted

    def pass_over(self, number: int, frame: FrameType | None) -> None:
        """Handles the signal where another process decides what comes of it."""
        self.is_given = True

    @contextlib.contextmanager
    def awaits_training(self) -> Iterator[None]:
        """Around a training, which looks at `is_given` after every step. Raises Preempted where it has not got to that."""
        self._is_training = True
        try:
            yield
        finally:
            self._is_training = False
        if self.is_given:
            raise Preempted


notice = Notice()
"""The one of this process: a signal's handler knows nothing else."""


def stop_once() -> None:
    """Makes the first SIGINT or SIGTERM a KeyboardInterrupt and ignores the rest.

    A terminal sends Ctrl-C to all processes, a scheduler sends SIGTERM, and a second one must not break what the first
    has begun to write. Set in every process, since a script may have started it with SIGINT ignored.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        ignore_signals()
        raise KeyboardInterrupt

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stop)


def ignore_signals() -> None:
    """Lets a process that is ending anyway write its last words."""
    for each in (signal.SIGINT, signal.SIGTERM):
        # Not SIG_IGN, of which Python complains when the next signal is on its way already.
        signal.signal(each, lambda *_: None)
