"""Processes as torchrun starts them, with real ports, signals and files, forked from one that has imported torch already."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from suite.cli import command

SECONDS = 120.0
SHOWS_WHERE = signal.SIGUSR1
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["tests.suite.running.preloaded"])


@dataclass(frozen=True)
class Team:
    """The ranks of one command and where each of them prints."""

    processes: Sequence[BaseProcess]
    logs: Sequence[Path]

    def ends(self) -> list[int | None]:
        """The exit status of every rank, waited for; a rank that was killed has the negative number of its signal.

        Fails where one does not end, with what every rank has printed and where it stands.
        """
        limit = time.monotonic() + SECONDS
        for process in self.processes:
            process.join(max(0.0, limit - time.monotonic()))
        on = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        for rank in on:
            self.send(rank, SHOWS_WHERE)
            self.processes[rank].join(1.0)
        assert not on, "\n".join(f"rank {rank}{' runs on' * (rank in on)}: {self.said(rank)}" for rank in range(len(self.logs)))
        return [process.exitcode for process in self.processes]

    def said(self, rank: int = 0) -> str:
        """What a rank has printed."""
        return self.logs[rank].read_text()

    def send(self, rank: int, number: int) -> None:
        """Sends a signal to a rank."""
        pid = self.processes[rank].pid
        assert pid is not None, "a rank that runs has a number"
        os.kill(pid, number)


@contextlib.contextmanager
def team(folder: Path, *requests: Sequence[str], fault: Callable[[int], None] | None = None) -> Iterator[Team]:
    """A rank for every request, the arguments of `run`; whoever runs on at the end is killed. fault: what each calls first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    logs = [folder / f"rank-{rank}.log" for rank in range(len(requests))]
    processes = [
        FORKED.Process(target=_rank, args=(rank, len(requests), port, list(request), logs[rank], fault))
        for rank, request in enumerate(requests)
    ]
    for process in processes:
        process.start()
    try:
        yield Team(processes, logs)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()


def _rank(rank: int, size: int, port: int, request: list[str], log: Path, fault: Callable[[int], None] | None) -> None:
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in places.items()} | {"MASTER_ADDR": "127.0.0.1"})
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["suite", "run", *request]
    torch.set_num_threads(1)
    # The process that it was forked from ignores Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.register(SHOWS_WHERE)
    if fault is not None:
        fault(rank)
    raise SystemExit(command())


def until(is_so: Callable[[], bool], what: str) -> None:
    """Waits. Fails where it takes too long."""
    limit = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < limit, f"waited too long for {what}"
        time.sleep(0.05)
