"""What rank 0 alone does while a training takes its steps: it watches over the run's health, keeps its log, says what is due."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from torch import Tensor

from models.backbone import Backbone
from suite.compute.parallel import Flags, shares
from suite.machine.devices import device_name
from suite.machine.peaks import of_device, utilisation
from suite.plan import Run
from suite.request.length import FORWARDS_PER_STEP
from suite.running.batches import indices_of
from suite.running.events import Pulse
from suite.running.health import Diverged, Health, Readings
from suite.running.selection import Selection
from suite.running.signals import notice
from suite.running.sinks import Mirror
from suite.running.trainee import Stopwatch, Trainee
from suite.store.checkpoint import Progress
from tasks.task import Measurement, Task

# Saving a checkpoint may take this share of the time at most.
CHECKPOINT_SHARE = 0.02


class Book:
    """How far a training is. progress: as of the last step that was logged or saved. saving: how long checkpoints took."""

    def __init__(
        self,
        run: Run,
        task: Task,
        trainee: Trainee,
        progress: Progress,
        *,
        on_pulse: Callable[[Pulse], None],
        mirror: Mirror | None,
    ) -> None:
        self.run, self.task, self.trainee, self.progress = run, task, trainee, progress
        self._before, self._on_pulse, self._mirror = progress, on_pulse, mirror
        self._tokens_per_step = run.config.train.batch_size * task.seq_len
        self._selection = Selection(run.config.train, progress)
        self._health = Health(
            progress,
            task.guessing_loss,
            nonfinite=run.config.train.nonfinite,
            examples=lambda step: indices_of(run, task, step).tolist(),
            on_note=trainee.on_note,
        )
        self._readings = Readings(trainee.world.device)
        self.saving = Stopwatch()
        self._saved = self._logged = self._began = time.perf_counter()

    def after(self, step: int, numbers: Tensor, whole: Backbone | None) -> Flags:
        """What is due after a step. numbers [2]: its loss and gradient norm. whole: the model, where validation is due.

        Raises Diverged, and Superseded where the log can't be written any more.
        """
        steps, due = self.run.config.train.steps, Flags.NOTHING
        with self.trainee.work():
            self._readings.add(step, numbers)
            self._check(self._readings.read())
        if whole is not None and self._selection.look(whole, self.task, step + 1, self.trainee.world.device):
            due |= Flags.KEEPS
        now, last = time.perf_counter(), self._selection.ended or step == steps - 1
        logs = now - self._logged >= self.run.compute.log_seconds or step == 0 or last
        pause = max(self.run.compute.checkpoint_seconds, self.saving.seconds / CHECKPOINT_SHARE)
        if notice.is_given and not last:
            due |= Flags.SAVES | Flags.LEAVES
        if now - self._saved >= pause or last or self.trainee.keeping.is_kept(step + 1):
            due |= Flags.SAVES
        if last:
            due |= Flags.ENDS
        if logs or due & Flags.SAVES:
            with self.trainee.work():
                self._check(self._readings.read(leave=0))
            self.progress = self._progress(step)
        if logs:
            self._logged = now
            self._log()
        return due

    def saved(self) -> None:
        """A checkpoint was written, or left out."""
        self._saved = time.perf_counter()

    def _check(self, readings: Iterable[tuple[int, float, float]]) -> None:
        for reading in readings:
            try:
                self._health.check(*reading)
            except Diverged as error:
                ranks = self.trainee.at_fault(error.step) if error.examples else []
                if not ranks:
                    raise
                dealt = shares(len(error.examples), self.trainee.world.size)
                examples = [error.examples[row] for rank in ranks for row in dealt[rank]]
                raise Diverged(error.step, f"{error.reason} (on rank {', '.join(map(str, ranks))})", examples) from None

    def _progress(self, step: int) -> Progress:
        return Progress(
            step=step + 1,
            seconds=self._before.seconds + time.perf_counter() - self._began,
            work_seconds=self._before.work_seconds + self.trainee.work.seconds,
            first_loss=self._health.first_loss,
            losses=tuple(self._health.losses),
            best_step=self._selection.best_step,
            best_loss=self._selection.best_loss,
            ended=self._selection.ended,
            skipped=self._health.skipped,
        )

    def _log(self) -> None:
        """A line of metrics.jsonl; `loss` is the mean over the last steps, DIVERGED_STEPS at most: one step's is mostly noise."""
        now, steps = self.progress, self.run.config.train.steps
        if not now.losses:
            # Every step so far was left out.
            return
        tokens = now.step * self._tokens_per_step
        line = {
            "step": now.step,
            "tokens": tokens,
            "loss": now.mean_loss,
            "lr": self.trainee.rate,
            "grad_norm": self._health.norm,
            "tokens_per_second": tokens / now.seconds,
            "seconds": now.seconds,
            **self._health.spike(),
        }
        self.trainee.directory.append_metrics(line)
        if self._mirror:
            self._mirror.line(line)
        per_step = now.seconds / now.step
        left = (steps - now.step) * per_step
        self._on_pulse(Pulse(now.step, steps, now.mean_loss, self._tokens_per_step / per_step, left))

    def rows(self) -> list[Measurement]:
        """Facts of the training itself, over all attempts, and where the validation split has a say, which weights were kept.

        Raises Diverged where no step was finite.
        """
        now, train = self.progress, self.run.config.train
        if not now.losses:
            raise Diverged(now.step, "every step was left out", ())
        speed = now.step * self._tokens_per_step / now.seconds
        facts = {
            "train_seconds": now.seconds,
            "tokens_per_second": speed,
            "train_loss": now.mean_loss,
            "overhead": 1.0 - now.work_seconds / now.seconds,
        }
        world = self.trainee.world
        devices = of_device(device_name(world.device), world.size)
        if devices is not None:
            flops = FORWARDS_PER_STEP * self.run.cost.flops_per_token * speed
            facts["mfu"] = utilisation(flops, devices, train.autocast)
        if train.nonfinite == "skip":
            facts["skipped_steps"] = float(now.skipped)
        if train.validate_steps is not None:
            facts |= {"steps_taken": float(now.step), "step_kept": float(now.best_step if train.keep == "best" else now.step)}
        return [Measurement(metric, value, "train", {}, now.step) for metric, value in facts.items()]
