"""How the ranks of a run find out that they are no longer at one point, and whose fault that is."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

from suite.compute.parallel import LeftAlone, World, give_up, words
from suite.running.failing import RankLost, status_of, told_by
from suite.running.health import Diverged
from suite.running.signals import INTERRUPTED, ignore_signals
from suite.store.lock import Superseded
from tasks.files import machine

GOES_ON = "the same command goes on from the last checkpoint"
# A process that is killed closes what others read a moment before it can be seen to be gone.
LOOK_SECONDS, LOOKS = 0.1, 30
# Between two looks of a rank at the others, for each of them: all of them look, at one store.
WATCH_SECONDS = 0.25


class Apart:
    """Around what all ranks do together: what fails on one of them alone becomes a RankLost on rank 0.

    An interruption of one of them interrupts rank 0, which a signal reaches a moment later than the others, or not at all.
    """

    def __init__(self, world: World) -> None:
        self.world = world

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None or not self.world.is_joined or isinstance(error, Superseded | LeftAlone):
            return
        # Numbers of a sum that was given up are none, which is no divergence.
        if isinstance(error, Diverged) and not is_left(self.world):
            return
        # Whoever started the ranks ends them once one is gone, and this one has something to say.
        ignore_signals()
        lost = _lost(self.world, is_sure=is_of_connection(error) or isinstance(error, Diverged))
        if lost is None and isinstance(error, Exception):
            lost = RankLost(status_of(error), f"rank 0: {told_by(error)}")
        if lost is not None:
            raise lost from error


def is_of_connection(error: BaseException) -> bool:
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


@contextlib.contextmanager
def watched(world: World) -> Iterator[None]:
    """Has a thread look whether the other ranks are there, and give up what this one computes with one that has left.

    Gloo notices by itself that a process is gone, and NCCL that another machine is; but on one machine a GPU waits in a sum for
    the rank that will never join it, and the host for the GPU, which no signal ends.
    """
    if not (world.is_joined and torch.cuda.is_available()):
        yield
        return
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(WATCH_SECONDS * world.size):
            # A moment later whoever reads a closed connection has noticed, and is on its way out.
            if is_left(world) and not is_over.wait(LOOKS * LOOK_SECONDS):
                give_up()
                return

    watcher = threading.Thread(target=watch, name="watches-ranks", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()
        if is_left(world):
            # Nothing is waited for, as it would be where groups are taken apart.
            give_up()


def is_left(world: World) -> bool:
    """Whether another rank has left a run before its end: it was ended on this machine, or has said so."""
    told = words(world)
    return bool(ended_here(told)) or any("status" in word for word in told.values())


def ended_here(told: Mapping[int, Mapping[str, Any]]) -> dict[int, int]:
    """The process ids of ranks of this machine that have ended, by rank. told: the words of ranks."""
    here = {
        rank: int(word["pid"]) for rank, word in sorted(told.items()) if word.get("numbering") == numbering() and "pid" in word
    }
    return {rank: pid for rank, pid in here.items() if not is_alive(pid)}


def _lost(world: World, *, is_sure: bool) -> RankLost | KeyboardInterrupt | None:
    """Which of the other ranks can't go on, and why; None where none of them is known to. is_sure: whether one of them can't."""
    for _ in range(LOOKS if is_sure else 1):
        told = words(world)
        for rank, word in sorted(told.items()):
            if "reason" in word:
                lost = RankLost(str(word["status"]), f"rank {rank}: {word['reason']}")
                lost.add_note(str(word["trace"]))
                return lost
        if is_sure and any(word.get("status") == INTERRUPTED for word in told.values()):
            return KeyboardInterrupt()
        for rank, pid in ended_here(told).items():
            return RankLost("interrupted", f"rank {rank} (process {pid}) was ended from outside; {GOES_ON}")
        time.sleep(LOOK_SECONDS if is_sure else 0.0)
    return RankLost("interrupted", f"another rank does not answer any more; {GOES_ON}") if is_sure else None


@functools.cache
def numbering() -> str:
    """Tells apart processes that call others by other numbers: those of another machine, of its last start, or of a container."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return f"{machine()} {namespace}"


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs; one that has ended and that nobody has asked about yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return not Path("/proc/self/stat").exists()
    return state not in "ZX"
