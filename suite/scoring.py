"""The loss of a model and what it predicts; the head is applied only where a target is asked."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from models.backbone import LanguageModel
from models.ops import cross_entropy
from tasks.task import IGNORE, Batch, Scored, Task


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch on a device."""
    if device.type == "cpu":
        return batch
    starts = None if batch.starts is None else batch.starts.to(device, non_blocking=True)
    tokens, targets = (x.to(device, non_blocking=True) for x in (batch.tokens, batch.targets))
    return Batch(tokens, targets, starts, batch.slices)


def loss(model: LanguageModel, batch: Batch) -> Tensor:
    """Mean negative log-likelihood in nats over the positions that ask something."""
    features, _ = model.features(batch.tokens, starts=batch.starts)
    asked = batch.targets != IGNORE
    return cross_entropy.mean_nll(features[asked], model.embedding.weight, batch.targets[asked], soft_cap=model.logit_soft_cap)


@torch.no_grad()
def score(model: LanguageModel, batch: Batch, device: torch.device) -> Scored:
    """NLL and prediction [B, T] of every position that asks something, on the CPU; 0 and IGNORE elsewhere."""
    there = to_device(batch, device)
    features, _ = model.features(there.tokens, starts=there.starts)
    asked = batch.targets != IGNORE
    nll, prediction = torch.zeros(batch.targets.shape), torch.full_like(batch.targets, IGNORE)
    scores = cross_entropy.score(
        features[there.targets != IGNORE], model.embedding.weight, batch.targets[asked].to(device), soft_cap=model.logit_soft_cap
    )
    nll[asked], prediction[asked] = (x.cpu() for x in scores)
    return Scored(batch, nll, prediction)


def score_split(model: LanguageModel, task: Task, split: str, *, batch_size: int, device: torch.device) -> Iterator[Scored]:
    """Scores every example of a split, in order."""
    count = task.num_examples(split)
    for first in range(0, count, batch_size):
        yield score(model, task.batch(split, range(first, min(first + batch_size, count))), device)
