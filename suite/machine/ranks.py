"""Which of the processes of one command this one is, as torchrun and its like say it in the environment. Imports no torch."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from conf.settings import RequestError

KEYS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# Where the first process listens: without them there is nobody to meet, whatever else is set.
MEETING = ("MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Place:
    """A process among `size` of them, numbered from 0; on its own machine there are `local_size`, numbered from 0."""

    rank: int
    size: int
    local_rank: int
    local_size: int


def place_among(environment: Mapping[str, str]) -> Place | None:
    """The place that a launcher gave to this process; None for a process that was started by itself. Raises RequestError."""
    if not _is_one_of_several(environment):
        return None
    given = {key: environment.get(key, "1") for key in KEYS}
    for key, value in given.items():
        if not value.isdecimal():
            raise RequestError(f"the environment has {key}={value}, permitted are whole numbers from 0, as torchrun sets them")
    return Place(*(int(value) for value in given.values()))


def is_follower() -> bool:
    """Whether another process of the same command speaks for this one."""
    return os.environ.get("RANK", "0") != "0" and _is_one_of_several(os.environ)


def _is_one_of_several(environment: Mapping[str, str]) -> bool:
    return all(key in environment for key in (*KEYS[:3], *MEETING))


def check_single(verb: str) -> None:
    """Raises RequestError for a verb that several processes do not share."""
    place = place_among(os.environ)
    if place is not None and place.size > 1:
        raise RequestError(f"{verb} is for one process, and torchrun started {place.size}; they share run alone")


def leave(status: int) -> int:
    """The exit status of a command; one of several processes ends here, past what Python takes apart at its end.

    Threads of gloo may still let go of a Python object then, which ends the process with SIGABRT, though all was done.
    """
    if _is_one_of_several(os.environ):
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
    return status
