"""What Ctrl-C and a scheduler's SIGTERM do to a process of the suite."""

from __future__ import annotations

import signal
from types import FrameType


def stop_once() -> None:
    """Makes the first SIGINT or SIGTERM a KeyboardInterrupt and ignores the rest.

    A terminal sends Ctrl-C to all processes, a scheduler sends SIGTERM, and a second one must not break what the first
    has begun to write. Set in every process, since a script may have started it with SIGINT ignored.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            # Not SIG_IGN, of which Python complains when the next signal is on its way already.
            signal.signal(each, lambda *_: None)
        raise KeyboardInterrupt

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stop)
