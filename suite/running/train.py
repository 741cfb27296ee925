"""The training loop: the same for every arm of the comparison."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager

import torch

from models.backbone import Backbone
from suite.compute.acceleration import accelerate, training_step
from suite.compute.optimization import build_optimizer, example_indices, learning_rate, set_learning_rate
from suite.compute.prefetch import count_workers, prefetched
from suite.compute.resident import Resident, is_resident
from suite.compute.scoring import TrainingInputs, score_split, training_inputs
from suite.compute.settings import Train
from suite.plan import Run
from suite.running.events import Pulse
from suite.running.health import Diverged, Health, Readings
from suite.running.selection import Selection
from suite.running.sinks import Mirror
from suite.saved import new_model
from suite.store.checkpoint import Progress, load_checkpoint, save_checkpoint, save_final
from suite.store.foreign import reason_of
from suite.store.run_directory import RunDirectory
from tasks.task import Measurement, Task

# Saving a checkpoint may take this share of the time at most.
CHECKPOINT_SHARE = 0.02


class Stopwatch:
    """Adds up the seconds spent inside `with stopwatch():` blocks."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start


def train(
    run: Run,
    task: Task,
    directory: RunDirectory,
    *,
    device: torch.device,
    on_pulse: Callable[[Pulse], None],
    on_note: Callable[[str], None],
    mirror: Mirror | None = None,
) -> list[Measurement]:
    """Trains the run's model, from its last checkpoint where there is one, and measures it on the validation split.

    Leaves the trained weights, metrics.jsonl and a checkpoint of the end, so that a kill before the result is written
    repeats no step. With train.steps=0 there is nothing to train and nothing to measure. A log line or a checkpoint that
    can't be written is left out; on_note is told of what is not whole. Raises Diverged, and OSError for the weights.
    """
    settings, compute = run.config.train, run.compute
    steps, tokens_per_step = settings.steps, settings.batch_size * task.seq_len
    if steps == 0:
        return []
    model = new_model(run, device)
    optimizer = build_optimizer(model, settings)
    progress, best = load_checkpoint(directory, model, optimizer, on_note)
    before, selection = progress, Selection(settings, progress, best)
    dropped = directory.truncate_metrics(progress.step)
    if dropped:
        on_note(f"{dropped} lines of metrics.jsonl are not whole and are left out")
    if mirror:
        mirror.begin(progress.step)
    accelerate(model, compute)
    update = training_step(model, optimizer, settings, compute, flops=3.0 * run.cost.flops_per_token * tokens_per_step)
    health, readings = Health(progress, task.guessing_loss), Readings(device)
    work, saving, notes_once = Stopwatch(), Stopwatch(), functools.cache(on_note)
    saved = logged = began = time.perf_counter()
    ahead = range(progress.step, progress.step if selection.ended else steps)
    with closing(batches(run, task, ahead, device=device)) as made:
        for step, inputs in enumerate(made, progress.step):
            model.begin_step(seed=run.config.seed, step=step)
            rate = learning_rate(step, settings)
            set_learning_rate(optimizer, rate)
            with work():
                readings.add(step, update(inputs))
                for reading in readings.read():
                    health.check(*reading)
            if selection.is_due(step + 1):
                selection.look(model, task, step + 1, device)
            now, last = time.perf_counter(), selection.ended or step == steps - 1
            logs = now - logged >= compute.log_seconds or step == 0 or last
            saves = now - saved >= max(compute.checkpoint_seconds, saving.seconds / CHECKPOINT_SHARE) or last
            if not (logs or saves):
                continue
            with work():
                for reading in readings.read(leave=0):
                    health.check(*reading)
            progress = Progress(
                step=step + 1,
                seconds=before.seconds + time.perf_counter() - began,
                work_seconds=before.work_seconds + work.seconds,
                first_loss=health.first_loss,
                losses=tuple(health.losses),
                best_step=selection.best_step,
                best_loss=selection.best_loss,
                ended=selection.ended,
            )
            if logs:
                logged = now
                line = _line(progress, tokens_per_step, rate, health.norm)
                directory.append_metrics(line)
                if mirror:
                    mirror.line(line)
                per_step = progress.seconds / progress.step
                left = (steps - progress.step) * per_step
                on_pulse(Pulse(progress.step, steps, progress.mean_loss, tokens_per_step / per_step, left))
            if saves:
                with saving():
                    try:
                        save_checkpoint(directory, model, optimizer, progress, selection.weights)
                    except OSError as error:
                        # Without room for one training goes on, and the next one is tried in its turn.
                        notes_once(f"a checkpoint is left out: {reason_of(error)}")
                saved = time.perf_counter()
            if last:
                break
    selection.restore(model)
    _check_finite(steps, "a weight", (tensor.isfinite().all().item() for tensor in model.state_dict().values()))
    save_final(directory, model)
    measured = validate(model, task, device=device)
    _check_finite(steps, "a validation score", (math.isfinite(row.value) for row in measured))
    return [*_speed(progress, tokens_per_step), *_selected(settings, progress), *measured]


def _check_finite(steps: int, what: str, finite: Iterable[bool]) -> None:
    """Raises Diverged where the last update, whose loss no step has seen, left no numbers."""
    if not all(finite):
        raise Diverged(steps, f"{what} is not finite after the last update")


def batches(run: Run, task: Task, steps: range, *, device: torch.device) -> Generator[TrainingInputs]:
    """What the steps of a run read, in order: on the device where the whole training split fits there, or else in memory from
    which a GPU copies by itself."""
    settings, num_examples = run.config.train, task.num_examples("train")
    order = functools.partial(example_indices, batch_size=settings.batch_size, num_examples=num_examples, seed=run.config.seed)
    if device.type != "cpu" and is_resident(task, examples_read=settings.steps * settings.batch_size):
        split = Resident.of(task, device)
        yield from (split.batch(torch.tensor(order(step))) for step in steps)
        return

    def make(step: int) -> TrainingInputs:
        inputs = training_inputs(task.batch("train", order(step)))
        return inputs if device.type == "cpu" else inputs.map(lambda x: x.contiguous().pin_memory())

    yield from prefetched(make, steps, workers=count_workers(run.compute.prefetch, device))


def validate(model: Backbone, task: Task, *, device: torch.device) -> list[Measurement]:
    """The task's scores on its validation split, and what is known there without training."""
    model.eval()
    scored = score_split(model, task, "validation", batch_size=64, device=device)
    return [*task.measure("validation", scored), *task.references("validation", reach=model.reach)]


def _line(progress: Progress, tokens_per_step: int, rate: float, norm: float) -> dict[str, float]:
    """A line of metrics.jsonl; `loss` is the mean over the last steps, DIVERGED_STEPS at most: one step's is mostly noise."""
    tokens = progress.step * tokens_per_step
    return {
        "step": progress.step,
        "tokens": tokens,
        "loss": progress.mean_loss,
        "lr": rate,
        "grad_norm": norm,
        "tokens_per_second": tokens / progress.seconds,
        "seconds": progress.seconds,
    }


def _selected(settings: Train, progress: Progress) -> list[Measurement]:
    """How long was trained and which weights were kept, where the validation split has a say in it."""
    if settings.validate_steps is None:
        return []
    kept = progress.best_step if settings.keep == "best" else progress.step
    rows = {"steps_taken": progress.step, "step_kept": kept}
    return [Measurement(metric, float(value), "train", {}, progress.step) for metric, value in rows.items()]


def _speed(progress: Progress, tokens_per_step: int) -> list[Measurement]:
    """Facts of the training itself, over all attempts."""
    rows = {
        "train_seconds": progress.seconds,
        "tokens_per_second": progress.step * tokens_per_step / progress.seconds,
        "train_loss": progress.mean_loss,
        "overhead": 1.0 - progress.work_seconds / progress.seconds,
    }
    return [Measurement(metric, value, "train", {}, progress.step) for metric, value in rows.items()]
