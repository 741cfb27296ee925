"""What becomes of a run that fails: the words of its status."""

from __future__ import annotations

import torch

from suite.running.health import Diverged
from suite.store.foreign import reason_of
from suite.store.run_directory import Damaged

FAILED = ("diverged", "out_of_memory", "error")
# What may have come from outside, such as other work on a GPU: a training is tried once more before it counts as failed.
TRIED_AGAIN = ("out_of_memory", "error")
# What a CPU's allocator says in a plain RuntimeError.
NO_MEMORY = ("can't allocate memory", "not enough memory")


class RankLost(Exception):
    """The ranks of a run are no longer at one point, so the command ends: one of them was killed, or has failed by itself.

    status: the run's. reason: which rank, and why.
    """

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def status_of(error: BaseException) -> str:
    """How a run ended whose training or evaluation raised an error."""
    if isinstance(error, Diverged):
        return "diverged"
    if isinstance(error, RankLost):
        return error.status
    told = error if error.__cause__ is None else error.__cause__
    allocator = isinstance(told, RuntimeError) and any(words in str(told) for words in NO_MEMORY)
    return "out_of_memory" if allocator or isinstance(error, MemoryError | torch.OutOfMemoryError) else "error"


def told_by(error: BaseException) -> str:
    """The reason in words, on one line."""
    return str(error) if isinstance(error, Diverged | Damaged | RankLost) else reason_of(error)
