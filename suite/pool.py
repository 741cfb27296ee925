"""Several runs at the same time on one machine.

Every worker goes through the same list and claims what nobody holds: the runs' locks are the schedule, within one
command as between two.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import queue
import signal
import sys
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from suite.devices import count_cores, select_device
from suite.execute import Listener, execute_all
from suite.plan import Run
from suite.signals import stop_once

PR_SET_PDEATHSIG = 1


def count_jobs(runs: Sequence[Run]) -> int:
    """How many workers a request gets: `compute.jobs`, or one a core (GPU), but no more than there are runs."""
    compute = runs[0].config["compute"]
    if compute["jobs"] != "auto":
        return min(compute["jobs"], len(runs))
    if select_device(compute["device"]).type == "cuda":
        return min(_count_gpus(), len(runs))
    return max(1, min(count_cores() // compute["threads"], len(runs)))


def work(runs: Sequence[Run], results: Path, jobs: int, listener: Listener) -> None:
    """Brings the runs to their end with `jobs` worker processes, or in this process with one."""
    since = time.time()
    if jobs == 1:
        execute_all(runs, results, listener, since=since)
        return
    context = multiprocessing.get_context("spawn")
    events = context.Queue()
    devices = _visible_devices()
    workers = [
        context.Process(target=_worker, args=(devices[i % len(devices)], os.getpid(), runs, results, since, events))
        for i in range(jobs)
    ]
    for worker in workers:
        worker.start()
    try:
        _listen(workers, events, listener)
    except KeyboardInterrupt:
        for worker in workers:
            worker.terminate()
        # A worker ends only when what it has said is read.
        _listen(workers, events, listener)
        raise


def _listen(workers: Sequence[BaseProcess], events: multiprocessing.Queue, listener: Listener) -> None:
    """Passes the workers' events on until the last of them has ended."""
    while any(worker.is_alive() for worker in workers) or not events.empty():
        with contextlib.suppress(queue.Empty):
            listener(events.get(timeout=0.2))


def _worker(device: str, parent: int, runs: Sequence[Run], results: Path, since: float, events: multiprocessing.Queue) -> None:
    stop_once()
    _die_with(parent)
    os.environ["CUDA_VISIBLE_DEVICES"] = device
    try:
        execute_all(runs, results, events.put, since=since)
    except KeyboardInterrupt:
        sys.exit(130)


def _die_with(parent: int) -> None:
    """A worker whose parent was killed would hold its lock on: the kernel ends it too."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def _visible_devices() -> list[str]:
    """The GPUs that the command itself may see, which workers take in turn: several share one where there are more of them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible is not None else [str(i) for i in range(_count_gpus())] or [""]


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count()
