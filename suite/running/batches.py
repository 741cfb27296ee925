"""What the steps of a run read: this rank's rows of every batch, in the parts that it computes one after another."""

from __future__ import annotations

import functools
from collections.abc import Generator

import numpy as np
import torch

from suite.compute.order import example_indices
from suite.compute.parallel import World, shares
from suite.compute.prefetch import NO_WORKERS, count_workers, prefetched
from suite.compute.resident import Resident, is_resident
from suite.compute.scoring import TrainingInputs, training_inputs
from suite.compute.settings import Compute
from suite.plan import Run
from tasks.task import IGNORE, Task

Parts = tuple[TrainingInputs, ...]


def batches(run: Run, task: Task, steps: range, *, world: World) -> Generator[Parts]:
    """The parts of every step, in order: on the device where the whole training split fits there, or else in memory from which
    a GPU copies by itself."""
    settings, device = run.config.train, world.device
    rows = parts_of(world, run.compute, settings.batch_size)
    read, workers = functools.partial(_on_host, task, device), count_workers(run.compute.prefetch, device)
    if device.type != "cpu" and is_resident(task, examples_read=settings.steps * settings.batch_size):
        read, workers = functools.partial(_resident, Resident.of(task, device)), NO_WORKERS

    def make(step: int) -> Parts:
        batch = indices_of(run, task, step)
        # A rank without rows takes part all the same, with a sequence of which nothing is asked.
        return tuple(read(batch[part.start : part.stop]) if part else unasked(read(batch[:1])) for part in rows)

    yield from prefetched(make, steps, workers=workers)


def _on_host(task: Task, device: torch.device, examples: np.ndarray) -> TrainingInputs:
    inputs = training_inputs(task.batch("train", examples.tolist()))
    return inputs if device.type == "cpu" else inputs.map(lambda x: x.contiguous().pin_memory())


def _resident(split: Resident, examples: np.ndarray) -> TrainingInputs:
    return split.batch(torch.from_numpy(examples))


def indices_of(run: Run, task: Task, step: int) -> np.ndarray:
    """The training examples of a step [B], whoever computes them."""
    settings = run.config.train
    count = task.num_examples("train")
    return example_indices(step, batch_size=settings.batch_size, num_examples=count, seed=run.config.seed)


def parts_of(world: World, compute: Compute, batch_size: int) -> list[range]:
    """The rows of a batch that this rank computes, a part at a time: as many parts as every rank has, some of them empty."""
    rows = world.rows(batch_size)
    most = len(shares(batch_size, world.size)[0])
    size = min(most, compute.micro_batch or most)
    firsts = range(rows.start, rows.start + most, size)
    return [range(first, max(first, min(first + size, rows.stop))) for first in firsts]


def unasked(inputs: TrainingInputs) -> TrainingInputs:
    """The same sequences with nothing asked of them: what a rank without rows computes, so that it takes part."""
    tokens, targets, _, starts = inputs
    if targets.is_floating_point():
        return TrainingInputs(tokens, targets[:0], torch.zeros(0, dtype=torch.int64, device=targets.device), starts)
    positions = tokens.shape[0] * tokens.shape[1]
    return TrainingInputs(tokens, targets.new_full((positions,), IGNORE), None, starts)
