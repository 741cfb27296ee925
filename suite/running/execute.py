"""Brings runs to their end: claims one, trains it, evaluates it, and records whatever happens."""

from __future__ import annotations

import contextlib
import functools
import os
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import yaml

from models.backbone import Backbone
from suite.compute.parallel import World
from suite.compute.uncompiled import spare_the_compiler
from suite.evaluation.stages import evaluate
from suite.evaluation.studies.subject import Subject
from suite.machine.devices import device_name, select_device
from suite.plan import Run, task_of
from suite.request.identity import flat_settings
from suite.running.events import Event, Listener, Pulse, Share
from suite.running.failing import FAILED, TRIED_AGAIN, RankLost, status_of, told_by
from suite.running.health import Diverged
from suite.running.hearing import Hearing
from suite.running.sinks import Mirror
from suite.running.together import begin_together
from suite.running.train import train
from suite.saved import saved_task, trained_model
from suite.stage import TRAINING, Stage
from suite.store.checkpoint import FINAL
from suite.store.code_state import recorded
from suite.store.foreign import reason_of
from suite.store.keeping import remove_checkpoints
from suite.store.lock import Locked, Superseded
from suite.store.run_directory import Damaged, RunDirectory
from suite.store.status import Status
from tasks.progress import heard

TRACEBACKS = "tracebacks.log"


@dataclass(frozen=True)
class Command:
    """What one command asks of all its workers.

    token: its own name; what has failed under it is not tried again. trains: whether it may train.
    force: whether evaluations that are there are made again. runs_per_device: how many of its runs a device computes at a time.
    """

    token: str
    trains: bool
    force: bool
    runs_per_device: int = 1


def missing_stages(run: Run, directory: RunDirectory) -> list[Stage]:
    """The stages of a run that are not there, or not whole."""
    missing = []
    for stage in (TRAINING, *run.stages):
        with contextlib.suppress(Damaged):
            if directory.read_stage(stage) is not None:
                continue
        missing.append(stage)
    return missing


def is_done(run: Run, directory: RunDirectory) -> bool:
    """Whether nothing is missing, the status says so, and what the run is stands there whole."""
    with contextlib.suppress(Damaged):
        return not missing_stages(run, directory) and directory.status().status == "done" and bool(directory.read())
    return False


def as_yaml(written: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(written), sort_keys=False, allow_unicode=True)


class Work:
    """What one worker does on a run that it holds. world: its processes, of which this is the first."""

    def __init__(self, run: Run, directory: RunDirectory, command: Command, listener: Listener, world: World) -> None:
        self.run, self.directory, self.command, self.listener, self.world = run, directory, command, listener, world
        self.before = directory.status()
        self.failures = dict(self.before.failures)
        self.remade: set[Stage] = set()
        self.is_tried_again = False

    def say(self, kind: str, text: str = "", pulse: Pulse | None = None, share: Share | None = None) -> None:
        self.listener(Event(self.run.run_id, self.run.title, kind, text, pulse, share))

    def _say_share(self, stage: Stage, share: Share, what: str) -> None:
        self.say("share", what or ("validates" if stage == TRAINING else f"evaluates {stage.title}"), share=share)

    def write_status(self, status: str, *, reason: str = "", stage: str = "", step: int | None = None) -> None:
        self.directory.write_status(Status(status, reason, stage, step, self.command.token, self.failures))

    def do(self) -> None:
        """All that is left of the run. Raises KeyboardInterrupt, Superseded, and OSError where the store can't be written."""
        run = self.run
        names = {"run_id": run.run_id, "group_id": run.group_id, "facts": run.facts, "settings": flat_settings(run.config)}
        device = device_name(select_device(run.compute.device))
        place = {"device": device, "runs_per_device": self.command.runs_per_device}
        if run.compute.parallel != "none":
            place |= {"parallel": run.compute.parallel, "ranks": self.world.size}
        self.directory.begin(names, as_yaml(run.written).encode(), recorded(run.config), place)
        left = self._left()
        if TRAINING in left and self._is_given_up():
            self.say("failed", f"{self.before.status}: {self.before.reason}")
            return
        torch.set_num_threads(self.run.compute.threads)
        for stage in left:
            if not (self._attempt(stage) or (self.is_tried_again and self._attempt(stage))) and stage == TRAINING:
                return
        self._settle(is_new=bool(left))

    def _left(self) -> list[Stage]:
        """The stages to be made, training first; what is not whole is said and set aside."""
        left = [stage for stage in (TRAINING, *self.run.stages) if self._is_left(stage)]
        trained = self.run.config.train.steps > 0
        if left and TRAINING not in left and trained and self.command.trains and not self._has_weights():
            left.insert(0, TRAINING)
        return left

    def _is_left(self, stage: Stage) -> bool:
        try:
            made = self.directory.read_stage(stage)
        except Damaged as error:
            self.say("note", f"{error}; it is made again")
            self.directory.set_aside(self.directory.stage_file(stage))
            made = None
        if stage == TRAINING:
            return made is None
        failure = self.failures.get(stage.stem, {})
        if failure.get("attempt") == self.command.token:
            return False
        left = made is None or (self.command.force and made.get("attempt") != self.command.token)
        if left and os.path.lexists(self.directory.stage_file(stage)):
            # An older version, or asked for again: it makes room when the new one is there.
            self.remade.add(stage)
        return left

    def _has_weights(self) -> bool:
        """Whether the trained weights can be read. Where not, training brings them back, and its result is made again."""
        try:
            _ = self.model
        except Damaged as error:
            self.say("note", f"{error}; the run is trained again")
            for path in (self.directory.checkpoints / FINAL, self.directory.stage_file(TRAINING)):
                self.directory.set_aside(path)
            return False
        return True

    def _is_given_up(self) -> bool:
        """Whether training failed before, and would again: what has diverged, or failed under this command."""
        failed = self.before.status in FAILED and self.before.stage in ("train", "")
        return self.before.status == "diverged" or (failed and self.before.attempt == self.command.token)

    def _attempt(self, stage: Stage) -> bool:
        """Makes a stage; whether that went well. An error ends here, so that what stands beside the stage goes on."""
        self.write_status("running", stage=stage.title)
        self.say("started" if stage == TRAINING else "stage", stage.title)
        with contextlib.ExitStack() as ended:
            ended.push(functools.partial(self._record, stage))
            ended.enter_context(heard(Hearing(functools.partial(self._say_share, stage))))
            if stage == TRAINING:
                self._train()
            else:
                device = select_device(self.run.compute.device)
                model = self.model if stage.step is None else trained_model(self.run, self.directory, device, stage.step)
                subject = Subject(model, saved_task(self.run), self.run.config, self.run.compute, device)
                measured = evaluate(stage, subject)
                if stage in self.remade:
                    self.directory.set_aside(self.directory.stage_file(stage))
                if subject.samples:
                    self.directory.write_samples(stage, subject.samples)
                self.directory.write_stage(stage, measured, attempt=self.command.token)
            return True
        return False

    def _record(
        self, stage: Stage, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Records how a stage ended, in one line, and its traceback in the run's folder; whether what is beside it goes on.

        After an interruption and the loss of the run nothing does.
        """
        if error is None or isinstance(error, Superseded):
            return False
        if not isinstance(error, Exception | SystemExit):
            self.write_status("interrupted", reason=type(error).__name__, stage=stage.title)
            return False
        status, reason = status_of(error), told_by(error)
        # A run that is trained makes no kept checkpoint again.
        if isinstance(error, Damaged) and stage.step is None:
            reason += f"; it is made again by: {self.directory.command()}"
        if stage == TRAINING:
            step = error.step if isinstance(error, Diverged) else None
            self.write_status(status, reason=reason, stage=stage.title, step=step)
        else:
            failure = {"title": stage.title, "status": status, "reason": reason, "attempt": self.command.token}
            self.failures[stage.stem] = failure
        if status == "error" and not isinstance(error, OSError | Damaged):
            with contextlib.suppress(OSError):
                self.directory.append(TRACEBACKS, "".join(traceback.format_exception(error)))
                reason += f" (its traceback is in {self.directory.path / TRACEBACKS})"
        is_lost = isinstance(error, RankLost)
        self.is_tried_again = stage == TRAINING and status in TRIED_AGAIN and not self.is_tried_again and not is_lost
        ends = stage == TRAINING and not self.is_tried_again
        again = "; it is tried once more" if self.is_tried_again else ""
        self.say("failed" if ends else "note", f"{stage.title}: {status}, {reason}{again}")
        return not is_lost

    def _train(self) -> None:
        note, world = functools.partial(self.say, "note"), self.world
        spare_the_compiler()
        if self.run.config.train.steps:
            world = begin_together(world, self.run)
        with contextlib.closing(Mirror(self.run, self.directory.root, note)) as mirror:
            measured = train(
                self.run,
                task_of(self.run.config),
                self.directory,
                world=world,
                on_pulse=lambda pulse: self.say("pulse", pulse=pulse),
                on_note=note,
                mirror=mirror,
            )
            mirror.scores(measured)
        self.directory.write_stage(TRAINING, measured, attempt=self.command.token)
        remove_checkpoints(self.directory)

    @functools.cached_property
    def model(self) -> Backbone:
        """The trained model; one serves all stages, since none of them leaves it changed. Raises Damaged."""
        return trained_model(self.run, self.directory, select_device(self.run.compute.device))

    def _settle(self, *, is_new: bool) -> None:
        """Says how the run ended, and tidies what a kill after its last stage left."""
        missing = {stage.stem for stage in missing_stages(self.run, self.directory)}
        asked = {stage.stem for stage in self.run.stages}
        self.failures = {stem: failure for stem, failure in self.failures.items() if stem in missing or stem not in asked}
        if is_new or (self.before.status, dict(self.before.failures)) != ("done", self.failures):
            self.write_status("done")
        remove_checkpoints(self.directory)
        failed = [each["title"] for each in self.failures.values() if each.get("attempt") == self.command.token]
        if failed:
            self.say("failed", f"is trained; failed: {', '.join(failed)}")
        else:
            self.say("done" if is_new else "skipped", "" if is_new else "is done already")


def execute_all(runs: Sequence[Run], results: Path, listener: Listener, *, command: Command, world: World) -> None:
    """Does what is left of every run, past those that another worker holds. Raises RankLost."""
    for run in runs:
        directory = RunDirectory(results, run.run_id)
        try:
            directory.make()
            with directory.lock:
                Work(run, directory, command, listener, world).do()
        except OSError as error:
            # The disk or the folder: other runs may lie elsewhere, or find room again.
            listener(Event(run.run_id, run.title, "failed", f"error: {reason_of(error)}"))
        except Locked:
            continue
        except Superseded as error:
            listener(Event(run.run_id, run.title, "lost", str(error)))
