"""lm-eval kept quiet, and whatever its tasks raise made one line that names the task."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from types import TracebackType

import torch

MAX_REASON = 400
"""Characters of another library's message that are passed on."""


class Blame(contextlib.AbstractContextManager["Blame"]):
    """Makes whatever a benchmark's code raises in the block, sys.exit too, a ValueError of one line that names the task.

    What ends a process from outside, and memory that is not there, goes through.
    """

    def __init__(self, task: str, what: str) -> None:
        self.task, self.what = task, what

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not isinstance(error, Exception | SystemExit) or isinstance(error, MemoryError | torch.OutOfMemoryError):
            return
        message, kind_name = " ".join(str(error).split())[:MAX_REASON], type(error).__name__
        if message.startswith("lm-eval task "):
            return
        reason = message if isinstance(error, ValueError) and message else f"{kind_name}: {message}" if message else kind_name
        raise ValueError(f"lm-eval task {self.task!r} {self.what} ({reason})") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Holds back lm-eval's log and its progress bars; errors still reach the caller as exceptions."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
