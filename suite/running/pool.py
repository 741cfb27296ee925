"""Several runs at the same time on one machine.

Every worker goes through the same list and claims what nobody holds: the runs' locks are the schedule, within one
command as between two.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from models.build import mixer_classes
from suite.compute.parallel import World, alone
from suite.compute.settings import Compute
from suite.machine import mps
from suite.machine.devices import count_cores, select_device
from suite.machine.parent import die_with_parent
from suite.plan import Run
from suite.running.events import Event, Listener
from suite.running.execute import Command, execute_all
from suite.running.signals import INTERRUPTED, stop_once
from suite.store.foreign import counted, reason_of, say
from tasks.build import task_types


def count_jobs(runs: Sequence[Run]) -> int:
    """How many workers a request gets: `compute.jobs`, or one a core (GPU), but no more than there are runs."""
    compute = runs[0].compute
    if compute.parallel != "none":
        # All ranks work on one run after another.
        return 1
    if compute.jobs != "auto":
        return min(compute.jobs, len(runs))
    if select_device(compute.device).type == "cuda":
        return min(torch.cuda.device_count(), len(runs))
    return max(1, min(count_cores() // compute.threads, len(runs)))


def work(runs: Sequence[Run], results: Path, jobs: int, listener: Listener, command: Command, world: World) -> None:
    """Goes through the runs with `jobs` worker processes, or with one in this process, the first of its ranks."""
    devices = len(_visible_devices()) if select_device(runs[0].compute.device).type == "cuda" else 1
    command = replace(command, runs_per_device=-(-jobs // devices))
    if jobs == 1:
        execute_all(runs, results, listener, command=command, world=world)
        return
    with _shared_gpus(runs[0].compute, jobs) as environment:
        _work_in_processes(runs, results, jobs, listener, command, environment)


@contextlib.contextmanager
def _shared_gpus(compute: Compute, jobs: int) -> Iterator[Mapping[str, str]]:
    """The environment of workers of which several may share a GPU, see `compute.mps`."""
    shares = select_device(compute.device).type == "cuda" and jobs > torch.cuda.device_count()
    if not (compute.mps == "auto" and shares and mps.is_there()):
        yield {}
        return
    with contextlib.ExitStack() as ended:
        try:
            environment = ended.enter_context(mps.service())
        except OSError as error:
            say(f"compute.mps=auto: the GPU is shared by turns, since {mps.CONTROL} can't be started: {reason_of(error)}")
            environment = {}
        yield environment


def _work_in_processes(
    runs: Sequence[Run], results: Path, jobs: int, listener: Listener, command: Command, environment: Mapping[str, str]
) -> None:
    context = multiprocessing.get_context("spawn")
    devices = _visible_devices()
    # A class in a folder of the user's own has a name that a new process knows only once it has looked for such classes.
    packed = pickle.dumps(runs)
    workers: dict[Connection, BaseProcess] = {}
    for i in range(jobs):
        # A pipe for each: one that they shared could be left locked by a worker that is killed.
        reader, writer = context.Pipe(duplex=False)
        own = {**environment, mps.VISIBLE: devices[i % len(devices)]}
        arguments = (own, os.getpid(), packed, results, command, writer)
        workers[reader] = context.Process(target=_worker, args=arguments)
        workers[reader].start()
        writer.close()
    readers, heard = list(workers), []

    def hear(event: Event) -> None:
        heard.append(event.kind)
        listener(event)

    try:
        _listen(readers, hear)
    finally:
        # Interrupted: what they say while they end is read, or they would wait for a reader.
        for reader in readers:
            workers[reader].terminate()
        _listen(readers, lambda event: None)
        for worker in workers.values():
            worker.join()
    # They would fail again, whatever started them anew: their tracebacks stand above.
    if not heard and all(worker.exitcode == 1 for worker in workers.values()):
        raise RuntimeError(f"{counted(jobs, 'worker')} failed before a run was begun")


def _listen(readers: list[Connection], listener: Listener) -> None:
    """Passes the workers' events on until the last of them has ended; takes the readers of those that have out of the list."""
    while readers:
        for reader in wait(readers):
            try:
                listener(reader.recv())
            except (EOFError, OSError):
                readers.remove(reader)


def _worker(
    environment: Mapping[str, str], parent: int, packed: bytes, results: Path, command: Command, events: Connection
) -> None:
    stop_once()
    # A worker whose parent was killed would hold its lock on.
    die_with_parent(parent)()
    os.environ.update(environment)
    mixer_classes(), task_types()

    def tell(event: Event) -> None:
        try:
            events.send(event)
        except OSError:
            # Nobody reads any more: the command was killed where the kernel does not end its workers.
            raise KeyboardInterrupt from None

    try:
        # The bytes come from the parent process through memory, never from a file.
        execute_all(pickle.loads(packed), results, tell, command=command, world=alone(torch.device("cpu")))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _visible_devices() -> list[str]:
    """The GPUs that the command itself may see, which workers take in turn: several share one where there are more of them."""
    visible = os.environ.get(mps.VISIBLE)
    return visible.split(",") if visible is not None else [str(i) for i in range(torch.cuda.device_count())] or [""]
