"""The loss of a model and what it predicts; the head is applied only where a target is asked."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from models.backbone import LanguageModel
from tasks.task import IGNORE, Batch, Scored, Task


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch on a device."""
    if device.type == "cpu":
        return batch
    starts = None if batch.starts is None else batch.starts.to(device, non_blocking=True)
    tokens, targets = (x.to(device, non_blocking=True) for x in (batch.tokens, batch.targets))
    return Batch(tokens, targets, starts, batch.slices)


def target_logits(model: LanguageModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits [N, vocab] in float32 and targets [N] of the N positions that ask something, in order."""
    features, _ = model.features(batch.tokens, starts=batch.starts)
    asked = batch.targets != IGNORE
    return model.head(features[asked]).float(), batch.targets[asked]


def loss(model: LanguageModel, batch: Batch) -> Tensor:
    """Mean negative log-likelihood in nats over the positions that ask something."""
    return F.cross_entropy(*target_logits(model, batch))


@torch.no_grad()
def score(model: LanguageModel, batch: Batch, device: torch.device) -> Scored:
    """NLL and prediction [B, T] of every position that asks something, on the CPU; 0 and IGNORE elsewhere."""
    logits, targets = target_logits(model, to_device(batch, device))
    asked = batch.targets != IGNORE
    nll = torch.zeros(batch.targets.shape)
    nll[asked] = F.cross_entropy(logits, targets, reduction="none").cpu()
    prediction = torch.full_like(batch.targets, IGNORE)
    prediction[asked] = logits.argmax(-1).cpu()
    return Scored(batch, nll, prediction)


def score_split(model: LanguageModel, task: Task, split: str, *, batch_size: int, device: torch.device) -> Iterator[Scored]:
    """Scores every example of a split, in order."""
    count = task.num_examples(split)
    for first in range(0, count, batch_size):
        yield score(model, task.batch(split, range(first, min(first + batch_size, count))), device)
