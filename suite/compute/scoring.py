"""The loss of a model and what it answers; the head is applied only where a target is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from models.backbone import Backbone
from tasks.progress import counted
from tasks.task import IGNORE, Batch, Scored, Task

PLACES_MULTIPLE = 256


class TrainingInputs(NamedTuple):
    """What a training step reads of a batch.

    tokens: [B, T, ...]. targets: [N, ...], of which ids below 0 ask nothing. places: [N] int64, which of the B T positions
    they belong to, or None for all. starts: [B, T] bool, or None.
    """

    tokens: Tensor
    targets: Tensor
    places: Tensor | None
    starts: Tensor | None

    def map(self, change: Callable[[Tensor], Tensor]) -> TrainingInputs:
        return TrainingInputs(*(None if x is None else change(x) for x in self))


def training_inputs(batch: Batch) -> TrainingInputs:
    """What a step reads of a batch on the CPU, where the questions can be counted: a GPU would be waited for.

    Where most positions are asked, all are answered; else their number is rounded up to a multiple of PLACES_MULTIPLE, so
    that batches have few different shapes.
    """
    targets = batch.targets.flatten(0, 1)
    if targets.is_floating_point():
        return TrainingInputs(batch.tokens, targets, None, batch.starts)
    asked = (targets != IGNORE).nonzero().squeeze(1)
    if 2 * len(asked) > len(targets):
        return TrainingInputs(batch.tokens, targets, None, batch.starts)
    missing = -len(asked) % PLACES_MULTIPLE
    chosen = F.pad(targets[asked], (0, missing), value=IGNORE)
    return TrainingInputs(batch.tokens, chosen, F.pad(asked, (0, missing)), batch.starts)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch on a device."""
    if device.type == "cpu":
        return batch
    starts = None if batch.starts is None else batch.starts.to(device, non_blocking=True)
    tokens, targets = (x.to(device, non_blocking=True) for x in (batch.tokens, batch.targets))
    return Batch(tokens, targets, starts, batch.slices)


def loss(model: Backbone, inputs: TrainingInputs) -> Tensor:
    """Mean loss over the positions that ask something: nats, or squared error."""
    features = model.training_features(inputs.tokens, starts=inputs.starts).flatten(0, 1)
    if inputs.places is not None:
        features = features.index_select(0, inputs.places)
    return model.mean_loss(features, inputs.targets)


@torch.no_grad()
def score(model: Backbone, batch: Batch, device: torch.device) -> Scored:
    """Loss [B, T] and prediction of every position that asks something, on the CPU; 0 and IGNORE elsewhere."""
    there = to_device(batch, device)
    features, _ = model.features(there.tokens, starts=there.starts)
    return score_features(model, features, batch)


@torch.no_grad()
def score_features(model: Backbone, features: Tensor, batch: Batch) -> Scored:
    """The same from the features [B, T, d_model] that a model on their device made of the batch."""
    asked = batch.asked
    costs, prediction = torch.zeros(asked.shape), torch.full_like(batch.targets, IGNORE)
    scores = model.score(features[asked.to(features.device)], batch.targets[asked].to(features.device))
    costs[asked], prediction[asked] = (x.cpu() for x in scores)
    return Scored(batch, costs, prediction)


def score_split(model: Backbone, task: Task, split: str, *, batch_size: int, device: torch.device) -> Iterator[Scored]:
    """Scores every example of a split, in order."""
    count = task.num_examples(split)
    assert count is not None, f"{split} has no bound"
    for first in counted(range(0, count, batch_size), count, lambda first: min(batch_size, count - first)):
        yield score(model, task.batch(split, range(first, min(first + batch_size, count))), device)
