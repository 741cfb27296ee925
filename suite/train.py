"""The training loop: the same for every arm of the comparison."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from models.backbone import Backbone
from suite.checkpoint import Progress, load_checkpoint, save_checkpoint, save_final
from suite.interface import build_backbone
from suite.optimization import build_optimizer, example_indices, learning_rate
from suite.plan import Run
from suite.scoring import loss, score_split, to_device
from suite.store import RunDirectory
from tasks.task import Measurement, Task

# A model is given up when its loss (nats, or squared error of targets whose variance is about 1) has been this much
# above the untrained one and that of guessing, on average over so many steps.
# The soft cap keeps the loss of a model that has blown up finite, so waiting for a NaN would be waiting for ever.
DIVERGED_BY = 1.0
DIVERGED_STEPS = 20

# Saving a checkpoint may take this share of the time at most.
CHECKPOINT_SHARE = 0.02


class Diverged(Exception):
    """Training left the numbers that can be learnt from; `step` is where."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"diverged at step {step}: {reason}")
        self.step = step


@dataclass(frozen=True)
class Pulse:
    """How far a run is: what a progress line shows."""

    step: int
    steps: int
    loss: float
    tokens_per_second: float
    seconds_left: float


class Stopwatch:
    """Adds up the seconds spent inside `with stopwatch():` blocks."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start


def new_model(run: Run, device: torch.device) -> Backbone:
    """The run's model with its initial weights, which depend on the seed alone and not on the device."""
    with torch.device("meta"):
        model = build_backbone(run.interface, run.config["model"], run.config["size"], backend=run.config["backend"])
    model.to_empty(device=device)
    model.reset_parameters(run.config["seed"])
    return model


def train(
    run: Run, task: Task, directory: RunDirectory, *, device: torch.device, on_pulse: Callable[[Pulse], None]
) -> list[Measurement]:
    """Trains the run's model, from its last checkpoint where there is one, and measures it on the validation split.

    Leaves the trained weights, metrics.jsonl and a checkpoint of the end, so that a kill before the result is written
    repeats no step. Raises Diverged.
    """
    settings, compute = run.config["train"], run.config["compute"]
    steps, tokens_per_step = settings["steps"], settings["batch_size"] * task.seq_len
    model = new_model(run, device)
    optimizer = build_optimizer(model, settings)
    progress = load_checkpoint(directory.checkpoints, model, optimizer)
    directory.truncate_metrics(progress.step)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=settings["autocast"] == "bfloat16")
    recent: deque[float] = deque(progress.losses, maxlen=DIVERGED_STEPS)
    work, saving = Stopwatch(), Stopwatch()
    before, began = progress, time.perf_counter()
    saved = logged = began
    for step in range(progress.step, steps):
        indices = example_indices(
            step, batch_size=settings["batch_size"], num_examples=task.num_examples("train"), seed=run.config["seed"]
        )
        batch = to_device(task.batch("train", indices), device)
        model.begin_step(seed=run.config["seed"], step=step)
        rate = learning_rate(step, settings)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with work():
            with autocast:
                step_loss = loss(model, batch)
            step_loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings["gradient_clip"]).item()
            recent.append(step_loss.item())
            _check_finite(step, recent[-1], norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        now = time.perf_counter()
        progress = Progress(
            step=step + 1,
            seconds=before.seconds + now - began,
            work_seconds=before.work_seconds + work.seconds,
            first_loss=progress.first_loss if step else recent[-1],
            losses=tuple(recent),
        )
        _check_learning(progress, task.guessing_loss)
        if now - logged >= compute["log_seconds"] or step in (0, steps - 1):
            logged = now
            _log(directory, progress, tokens_per_step, rate, norm)
            on_pulse(_pulse(progress, steps, tokens_per_step))
        if now - saved >= max(compute["checkpoint_seconds"], saving.seconds / CHECKPOINT_SHARE) or step == steps - 1:
            with saving():
                save_checkpoint(directory.checkpoints, model, optimizer, progress)
            saved = time.perf_counter()
    save_final(directory.checkpoints, model)
    return [*_speed(progress, tokens_per_step), *validate(model, task, device=device)]


def validate(model: Backbone, task: Task, *, device: torch.device) -> list[Measurement]:
    """The task's scores on its validation split, and what is known there without training."""
    model.eval()
    scored = score_split(model, task, "validation", batch_size=64, device=device)
    return [*task.measure("validation", scored), *task.references("validation", reach=model.reach)]


def _check_finite(step: int, step_loss: float, norm: float) -> None:
    if not (math.isfinite(step_loss) and math.isfinite(norm)):
        raise Diverged(step, f"loss {step_loss}, gradient norm {norm}")


def _check_learning(progress: Progress, guessing_loss: float) -> None:
    mean, start = progress.mean_loss, max(progress.first_loss, guessing_loss)
    if len(progress.losses) == DIVERGED_STEPS and mean > start + DIVERGED_BY:
        raise Diverged(progress.step - 1, f"mean loss {mean:.2f} over {DIVERGED_STEPS} steps, untrained it is {start:.2f}")


def _log(directory: RunDirectory, progress: Progress, tokens_per_step: int, rate: float, norm: float) -> None:
    """`loss` is the mean over the last steps, DIVERGED_STEPS at most: one step's is mostly noise of its batch."""
    tokens = progress.step * tokens_per_step
    directory.append_metrics(
        {
            "step": progress.step,
            "tokens": tokens,
            "loss": progress.mean_loss,
            "lr": rate,
            "grad_norm": norm,
            "tokens_per_second": tokens / progress.seconds,
            "seconds": progress.seconds,
        }
    )


def _pulse(progress: Progress, steps: int, tokens_per_step: int) -> Pulse:
    per_step = progress.seconds / progress.step
    return Pulse(progress.step, steps, progress.mean_loss, tokens_per_step / per_step, (steps - progress.step) * per_step)


def _speed(progress: Progress, tokens_per_step: int) -> list[Measurement]:
    """Facts of the training itself, over all attempts."""
    rows = {
        "train_seconds": progress.seconds,
        "tokens_per_second": progress.step * tokens_per_step / progress.seconds,
        "train_loss": progress.mean_loss,
        "overhead": 1.0 - progress.work_seconds / progress.seconds,
    }
    return [Measurement(metric, value, "train", {}, progress.step) for metric, value in rows.items()]
