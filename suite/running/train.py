"""The training loop: the same for every arm of the comparison, and on every rank."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from contextlib import closing

import torch

from models.backbone import Backbone
from suite.compute.parallel import Flags, LeftAlone, World, agreed
from suite.compute.scoring import score_split
from suite.machine.devices import select_device
from suite.plan import Run
from suite.running.apart import Apart
from suite.running.batches import batches
from suite.running.book import Book
from suite.running.events import Pulse
from suite.running.health import Diverged
from suite.running.selection import is_validated
from suite.running.signals import Preempted, notice
from suite.running.sinks import Mirror
from suite.running.trainee import Trainee
from suite.saved import new_model
from suite.store.checkpoint import Progress, save_final
from suite.store.foreign import reason_of
from suite.store.lock import Superseded
from suite.store.run_directory import RunDirectory
from tasks.task import Measurement, Task


def train(
    run: Run,
    task: Task,
    directory: RunDirectory,
    *,
    world: World,
    on_pulse: Callable[[Pulse], None],
    on_note: Callable[[str], None],
    mirror: Mirror | None = None,
) -> list[Measurement]:
    """Trains the run's model, from its last checkpoint where there is one, and measures it on the validation split.

    Leaves the trained weights, metrics.jsonl and a checkpoint of the end, so that a kill before the result is written repeats
    no step. With train.steps=0 there is nothing to train, and what was trained elsewhere is measured alone. A log line or a
    checkpoint that can't be written is left out; on_note is told of what is not whole. Raises Diverged, and OSError for the
    weights.

    world: of several ranks this is the first, and the others `follow`.
    """
    if run.config.train.steps == 0:
        device = select_device(run.compute.device)
        return validate(new_model(run, device), task, device=device) if task.trains else []
    with Apart(world):
        trainee = Trainee(run, directory, world, functools.cache(on_note))
        progress = trainee.resume()
        dropped = directory.truncate_metrics(progress.step)
        if dropped:
            on_note(f"{dropped} lines of metrics.jsonl are not whole and are left out")
        if mirror:
            mirror.begin(progress.step)
        book = Book(run, task, trainee, progress, on_pulse=on_pulse, mirror=mirror)
        with notice.awaits_training():
            _take_steps(run, task, trainee, progress, book)
        model = trainee.whole()
    assert model is not None, "rank 0 has the whole model"
    steps = run.config.train.steps
    _check_finite(steps, "a weight", (tensor.isfinite().all().item() for tensor in model.state_dict().values()))
    save_final(directory, model)
    measured = validate(model, task, device=world.device)
    # A perplexity is infinite where its nll, which is checked, is large.
    _check_finite(steps, "a validation score", (math.isfinite(row.value) for row in measured if row.metric != "perplexity"))
    return [*book.rows(), *measured]


def follow(run: Run, task: Task, directory: RunDirectory, world: World) -> None:
    """What the other ranks do while the first one trains: they compute their rows of every batch, and write what is theirs.

    Returns where rank 0 ends the training, or leaves it.
    """
    trainee = Trainee(run, directory, world, lambda note: None)
    progress = trainee.resume()
    try:
        _take_steps(run, task, trainee, progress, None)
    except (LeftAlone, Superseded):
        return
    trainee.whole()


def _take_steps(run: Run, task: Task, trainee: Trainee, progress: Progress, book: Book | None) -> None:
    """The steps that are left, on every rank, and the weights that are kept. book: rank 0's."""
    train, world = run.config.train, trainee.world
    ahead = range(progress.step, progress.step if progress.ended else train.steps)
    with closing(batches(run, task, ahead, world=world)) as made:
        for step, parts in enumerate(made, progress.step):
            numbers = trainee.step(step, parts)
            whole = trainee.whole() if is_validated(train, step + 1) else None
            try:
                due = agreed(world, functools.partial(book.after, step, numbers, whole) if book else None)
            except (Diverged, LeftAlone, Superseded):
                trainee.settle()
                raise
            if due & Flags.KEEPS:
                trainee.keep()
            if due & Flags.SAVES:
                _save(trainee, step, book)
            if due & Flags.LEAVES:
                trainee.settle()
                raise Preempted if book else LeftAlone
            if due & Flags.ENDS:
                break
    trainee.settle()
    trainee.restore()


def _save(trainee: Trainee, step: int, book: Book | None) -> None:
    """Writes a checkpoint. Without room for one training goes on, and the next one is tried in its turn."""
    if book is None:
        trainee.save(Progress(step=step + 1))
        return
    with book.saving():
        try:
            trainee.save(book.progress)
        except OSError as error:
            trainee.on_note(f"a checkpoint is left out: {reason_of(error)}")
    book.saved()


def _check_finite(steps: int, what: str, finite: Iterable[bool]) -> None:
    """Raises Diverged where the last update, whose loss no step has seen, left no numbers."""
    if not all(finite):
        raise Diverged(steps, f"{what} is not finite after the last update", ())


def validate(model: Backbone, task: Task, *, device: torch.device) -> list[Measurement]:
    """The task's scores on its validation split, and what is known there without training."""
    model.eval()
    scored = score_split(model, task, "validation", batch_size=64, device=device)
    return [*task.measure("validation", scored), *task.references("validation", reach=model.reach)]
