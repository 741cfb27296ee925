"""How rank 0 finds out that the ranks of a run are no longer at one point, and whose fault that is."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from types import TracebackType

import torch.distributed as dist

from suite.compute.parallel import LeftAlone, World, words
from suite.running.failing import RankLost, status_of, told_by
from suite.running.health import Diverged
from suite.running.signals import ignore_signals
from suite.store.lock import Superseded

GOES_ON = "the same command goes on from the last checkpoint"
# A process that is killed closes what others read a moment before it can be seen to be gone.
LOOK_SECONDS, LOOKS = 0.1, 30


class Apart:
    """Around what all ranks do together: what fails on one of them alone becomes a RankLost on rank 0."""

    def __init__(self, world: World) -> None:
        self.world = world

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None or not self.world.is_joined or isinstance(error, Diverged | Superseded | LeftAlone):
            return
        # Whoever started the ranks ends them once one is gone, and this one has something to say.
        ignore_signals()
        lost = _lost(self.world, is_sure=is_of_connection(error))
        if lost is None and isinstance(error, Exception):
            lost = RankLost(status_of(error), f"rank 0: {told_by(error)}")
        if lost is not None:
            raise lost from error


def is_of_connection(error: BaseException) -> bool:
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _lost(world: World, *, is_sure: bool) -> RankLost | None:
    """Which of the other ranks can't go on, and why; None where none of them is known to. is_sure: whether one of them can't."""
    for _ in range(LOOKS if is_sure else 1):
        for rank, word in sorted(words(world).items()):
            if "reason" in word:
                lost = RankLost(str(word["status"]), f"rank {rank}: {word['reason']}")
                lost.add_note(str(word["trace"]))
                return lost
            if "pid" in word and word["host"] == socket.gethostname() and not is_alive(int(word["pid"])):
                return RankLost("interrupted", f"rank {rank} (process {word['pid']}) was ended from outside; {GOES_ON}")
        time.sleep(LOOK_SECONDS if is_sure else 0.0)
    return RankLost("interrupted", f"another rank does not answer any more; {GOES_ON}") if is_sure else None


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs; one that has ended and that nobody has asked about yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return not Path("/proc/self/stat").exists()
    return state not in "ZX"
