"""The processes that tokenise a large text, and what they tell."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, Self

import msgspec

from tasks.language.shards import Job
from tasks.language.worker import Told

ROOT = Path(__file__).parents[2]
# A process tokenises in one thread: several processes share the machine.
ALONE = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class Heard(NamedTuple):
    """What is told of a job. told: None where the process has ended."""

    worker: int
    told: Told | None


class Crew:
    """Processes of `tasks.language.worker`, which end with the block."""

    def __init__(self, count: int) -> None:
        self.heard: queue.SimpleQueue[Heard] = queue.SimpleQueue()
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, **ALONE, "PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-m", "tasks.language.worker"]
        self.processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) for _ in range(count)
        ]
        for number, process in enumerate(self.processes):
            assert process.stdout is not None
            threading.Thread(target=self._listen, args=(number, process.stdout), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in self.processes:
            # Closed or broken, it has nothing to say: a process that waits for a job ends without one.
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()

    def _listen(self, number: int, lines: IO[bytes]) -> None:
        for line in lines:
            self.heard.put(Heard(number, msgspec.json.decode(line, type=Told)))
        self.heard.put(Heard(number, None))

    def work(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Told]]:
        """Has all jobs done; gives what is told of each, in the order in which it is told.

        Raises ValueError with the reason where a job can't be done, and OSError where a process was ended from outside.
        """
        waiting, busy = iter(jobs), dict[int, Job]()
        for number in range(len(self.processes)):
            self._give(number, waiting, busy)
        while busy:
            number, told = self.heard.get()
            if told is None:
                status = self.processes[number].wait()
                why = f"by signal {-status}, perhaps for want of memory" if status < 0 else f"with status {status}"
                raise OSError(f"a process that tokenises ended {why}; the command goes on where it was when it is started again")
            if told.fault:
                raise ValueError(told.fault)
            yield busy[number], told
            if told.is_done:
                del busy[number]
                self._give(number, waiting, busy)

    def _give(self, number: int, waiting: Iterator[Job], busy: dict[int, Job]) -> None:
        job = next(waiting, None)
        if job is not None:
            pipe = self.processes[number].stdin
            assert pipe is not None
            busy[number] = job
            # A process that has ended says so, too.
            with contextlib.suppress(BrokenPipeError):
                pipe.write(msgspec.json.encode(job) + b"\n")
                pipe.flush()
