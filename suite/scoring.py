"""The loss of a model and what it answers; the head is applied only where a target is asked."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from models.backbone import Backbone
from tasks.task import IGNORE, Batch, Scored, Task


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch on a device."""
    if device.type == "cpu":
        return batch
    starts = None if batch.starts is None else batch.starts.to(device, non_blocking=True)
    tokens, targets = (x.to(device, non_blocking=True) for x in (batch.tokens, batch.targets))
    return Batch(tokens, targets, starts, batch.slices)


def loss(model: Backbone, batch: Batch) -> Tensor:
    """Mean loss over the positions that ask something: nats, or squared error."""
    features, _ = model.features(batch.tokens, starts=batch.starts)
    asked = batch.asked
    return model.mean_loss(features[asked], batch.targets[asked])


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
    for first in range(0, count, batch_size):
        yield score(model, task.batch(split, range(first, min(first + batch_size, count))), device)
