"""One command in several processes that torchrun started: rank 0 does it, and the others follow what it tells.

Rank 0 plans, holds the lock, prints and writes. The others plan the same runs, compute their rows of every batch and wait in
between. Where all ranks are at one point, a run that fails is followed by the next one. A rank that is killed, or fails by
itself within a step, ends the command; the same command then goes on from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import torch

from conf.settings import RequestError
from suite.compute.parallel import World, alone, at, hear, is_agreed_by_all, joined, leave_word, part, tell, words
from suite.machine.devices import select_device
from suite.machine.ranks import place_among
from suite.plan import Run, task_of
from suite.running.apart import GOES_ON, ended_here, is_of_connection, numbering, watched
from suite.running.failing import RankLost, status_of, told_by
from suite.running.signals import INTERRUPTED, ignore_signals
from suite.running.train import follow
from suite.store.run_directory import RunDirectory

FAILURE, WRONG = 1, 2


@contextlib.contextmanager
def ranks() -> Iterator[World]:
    """The processes of this command: those that a launcher started, or this one alone. Raises RequestError."""
    place = place_among(os.environ)
    if place is None:
        yield alone(torch.device("cpu"))
        return
    world = joined(place)
    leave_word(world, {"numbering": numbering(), "pid": os.getpid()})
    with watched(world):
        yield world


def check_ranks(runs: Sequence[Run], *, launches: bool) -> None:
    """Raises RequestError where processes and `compute.parallel` do not go together. launches: whether others do the runs."""
    place = place_among(os.environ)
    for run in runs:
        parallel = run.compute.parallel
        if place is None:
            if parallel != "none":
                command = f"torchrun --nproc-per-node=GPUS -m suite run compute={parallel} ..."
                raise RequestError(f"compute.parallel={parallel} is for processes that torchrun starts, {command}")
            continue
        if parallel == "none" and place.size > 1:
            raise RequestError(f"compute.parallel=none, permitted in {place.size} processes of torchrun are ddp, fsdp")
        there = torch.cuda.device_count()
        if select_device(run.compute.device).type == "cuda" and place.local_size > there:
            raise RequestError(f"--nproc-per-node={place.local_size}, permitted are 1 to {there}: a process has a GPU of its own")
    if launches and place is not None:
        raise RequestError("hydra/launcher starts processes of its own, permitted with torchrun is none")


def lead(world: World, do: Callable[[], int]) -> int:
    """Does the command as rank 0, and tells the others how it ended; returns the exit status."""
    status, are_there = FAILURE, True
    try:
        status = do()
    except RequestError:
        status = WRONG
        raise
    except RankLost:
        are_there = False
        leave_word(world, {"status": status})
    except KeyboardInterrupt:
        are_there = False
        leave_word(world, {"status": INTERRUPTED})
        raise
    finally:
        if are_there:
            tell(world, {"do": "end", "status": status})
            part(world)
    return status


def begin_together(world: World, run: Run) -> World:
    """Has all ranks train a run; returns the world in which this one does."""
    tell(world, {"do": "train", "run": run.run_id})
    return at(world, select_device(run.compute.device))


def plan_together(world: World, runs: Sequence[Run]) -> None:
    """Has all ranks plan what rank 0 has planned. Raises RequestError where one can't, or plans something else."""
    tell(world, {"do": "plan", "runs": [run.run_id for run in runs]})
    if not is_agreed_by_all(world, True):
        rank, word = next((rank, word) for rank, word in sorted(words(world).items()) if "refused" in word)
        raise RequestError(f"rank {rank} on {word['host']}: {word['refused']}")


def follow_command(world: World, plan: Callable[[], Sequence[Run]]) -> int:
    """What ranks other than 0 do for as long as the command lasts; returns its exit status. plan: makes the runs of it."""
    try:
        with LastWord(world):
            return _follow(world, plan)
    except KeyboardInterrupt:
        return INTERRUPTED
    except RankLost:
        # Nobody else can say so, and one is enough.
        if world.rank == 1 and (first := ended_here(words(world)).get(0)):
            print(f"rank 0 (process {first}) was ended from outside; {GOES_ON}", file=sys.stderr)
        return int(words(world).get(0, {}).get("status", FAILURE))


def _follow(world: World, plan: Callable[[], Sequence[Run]]) -> int:
    runs: dict[str, Run] = {}
    while (told := hear(world))["do"] != "end":
        if told["do"] == "plan":
            runs = _plan_as_told(world, plan, told["runs"])
            continue
        run = runs[told["run"]]
        torch.set_num_threads(run.compute.threads)
        here = at(world, select_device(run.compute.device))
        follow(run, task_of(run.config), RunDirectory(Path(run.paths.results), run.run_id), here)
    part(world)
    return int(told["status"])


def _plan_as_told(world: World, plan: Callable[[], Sequence[Run]], run_ids: Sequence[str]) -> dict[str, Run]:
    refused, runs = "", {}
    try:
        runs = {run.run_id: run for run in plan()}
        if list(runs) != list(run_ids):
            refused = "it plans other runs than rank 0, so files that the request names differ"
    except RequestError as error:
        refused = str(error)
    if refused:
        leave_word(world, {"refused": refused, "host": socket.gethostname()})
    is_agreed_by_all(world, not refused)
    return runs


class LastWord:
    """Around what a follower does: leaves word of how it ended, so that rank 0 can tell it from a process that was killed."""

    def __init__(self, world: World) -> None:
        self.world = world

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            return
        ignore_signals()
        if not isinstance(error, Exception):
            leave_word(self.world, {"status": INTERRUPTED})
            return
        if is_of_connection(error):
            leave_word(self.world, {"status": FAILURE})
            raise RankLost("interrupted", "rank 0 or another one is gone") from error
        status, told = status_of(error), "".join(traceback.format_exception(error))
        leave_word(self.world, {"status": status, "reason": told_by(error), "trace": told})
        # A fault of ours leaves its traceback here as well.
        if status != "error":
            raise RankLost(status, told_by(error)) from error
