"""Brings runs to their end: claims one, trains it, evaluates it, and records whatever happens."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

from suite.checkpoint import remove_checkpoints
from suite.devices import select_device
from suite.evaluations import Evaluation, evaluate
from suite.health import Diverged
from suite.lock import Locked
from suite.plan import Run, task_of
from suite.store import RunDirectory
from suite.train import Pulse, train, trained_model

FAILED = ("diverged", "out_of_memory", "error")


@dataclass(frozen=True)
class Event:
    """What happened to a run: `kind` is started, pulse, stage, done, skipped, locked or failed."""

    run_id: str
    title: str
    kind: str
    text: str = ""
    pulse: Pulse | None = None


Listener = Callable[[Event], None]


def missing_stages(run: Run, directory: RunDirectory) -> list[Evaluation | None]:
    """What is left to do of a run; None stands for training."""
    return [stage for stage in (None, *run.evaluations) if not directory.stage_file(stage).exists()]


def is_done(run: Run, directory: RunDirectory) -> bool:
    """Whether nothing is missing and the status says so."""
    return not missing_stages(run, directory) and directory.status()["status"] == "done"


def settle_status(directory: RunDirectory) -> None:
    """Corrects the status of a run of which nothing is missing, and tidies what a kill after its last stage left."""
    if directory.status()["status"] != "done":
        directory.write_status("done")
    remove_checkpoints(directory.checkpoints)


class Recorder(AbstractContextManager):
    """Writes the status of a run when the block ends, however it ends; errors stop here so that a sweep goes on."""

    def __init__(self, run: Run, directory: RunDirectory, listener: Listener) -> None:
        self.run, self.directory, self.listener = run, directory, listener
        self.stage = "train"

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if error is None:
            self.directory.write_status("done")
            self.listener(Event(self.run.run_id, self.run.title, "done"))
            return False
        status, step = "error", None
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, Diverged):
            status, step, reason = "diverged", error.step, str(error)
        elif isinstance(error, MemoryError | torch.OutOfMemoryError):
            status = "out_of_memory"
        elif not isinstance(error, Exception):
            status = "interrupted"
        self.directory.write_status(status, reason=reason, stage=self.stage, step=step)
        details = "".join(traceback.format_exception(error)) if status == "error" else reason
        self.listener(Event(self.run.run_id, self.run.title, "failed", f"{status}: {details}"))
        return isinstance(error, Exception)


def execute(run: Run, results: Path, listener: Listener, *, since: float) -> None:
    """Does what is left of one run, or says why there is nothing to do. Raises Locked where another worker has it.

    since: when the command began; what has failed after that is not tried again.
    """
    directory = RunDirectory(results, run.run_id)
    directory.begin(run)
    with directory.lock:
        if not missing_stages(run, directory):
            settle_status(directory)
            listener(Event(run.run_id, run.title, "skipped", "is done already"))
            return
        status = directory.status()
        # What has diverged would diverge again.
        if status["status"] == "diverged" or (status["status"] in FAILED and status["time"] >= since):
            listener(Event(run.run_id, run.title, "failed", status["reason"]))
            return
        with Recorder(run, directory, listener) as recorder:
            _work(run, directory, recorder, listener)


def _work(run: Run, directory: RunDirectory, recorder: Recorder, listener: Listener) -> None:
    torch.set_num_threads(run.config["compute"]["threads"])
    device = select_device(run.config["compute"]["device"])
    task = task_of(run.config)
    model = None
    for stage in missing_stages(run, directory):
        recorder.stage = "train" if stage is None else stage.name
        directory.write_status("running", stage=recorder.stage)
        listener(Event(run.run_id, run.title, "started" if stage is None else "stage", recorder.stage))
        if stage is None:
            measurements = train(
                run, task, directory, device=device, on_pulse=lambda p: listener(Event(run.run_id, run.title, "pulse", pulse=p))
            )
        else:
            # One model serves all stages: none of them leaves it changed.
            model = model or trained_model(run, directory, device)
            measurements = evaluate(stage, model, task, run.config, batch_size=64, device=device)
        directory.write_stage(stage, measurements)
        if stage is None:
            remove_checkpoints(directory.checkpoints)


def execute_all(runs: Sequence[Run], results: Path, listener: Listener, *, since: float) -> None:
    """Goes through the runs, and again through those that another worker held, as long as that brings anything on."""
    waiting = list(runs)
    while waiting:
        held = []
        for run in waiting:
            try:
                execute(run, results, listener, since=since)
            except Locked as error:
                held.append(run)
                listener(Event(run.run_id, run.title, "locked", str(error)))
        if len(held) == len(waiting):
            return
        waiting = held
