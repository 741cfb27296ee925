"""What a training keeps, and when it ends, by the scores of its validation split: model selection and early stopping."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from models.backbone import Backbone
from suite.compute.scoring import score_split
from suite.compute.settings import Train
from suite.store.checkpoint import Progress
from tasks.task import Measurement, Scored, Task

# Examples scored at once: a small model fills a GPU with many.
BATCH_SIZE = 512


def is_validated(train: Train, steps: int) -> bool:
    """Whether the validation split is scored after so many steps: again and again, and after the last."""
    every = train.validate_steps
    return every is not None and (steps % every == 0 or steps == train.steps)


class Selection:
    """The best validation of a training so far, see `Train.keep` and `Train.stop_at`. ended: whether it is to end here."""

    def __init__(self, train: Train, progress: Progress) -> None:
        self.train = train
        self.best_step, self.best_loss, self.ended = progress.best_step, progress.best_loss, progress.ended

    def look(self, model: Backbone, task: Task, steps: int, device: torch.device) -> bool:
        """Scores the validation split after so many steps and leaves the model in training mode; whether its weights are kept."""
        losses = MeanLoss()
        model.eval()
        scored = score_split(model, task, "validation", batch_size=BATCH_SIZE, device=device)
        measured = task.measure("validation", losses.through(scored))
        model.train()
        loss = losses.mean
        is_best = self.best_loss is None or loss < self.best_loss
        if is_best:
            self.best_step, self.best_loss = steps, loss
        self.ended = self.train.stop_at is not None and _accuracy(measured) >= self.train.stop_at
        return is_best and self.train.keep == "best"


class MeanLoss:
    """The mean loss of scored batches over all that is asked."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def through(self, scored: Iterator[Scored]) -> Iterator[Scored]:
        """The same batches, added up on their way."""
        for each in scored:
            asked = each.batch.asked
            self.total += each.loss[asked].double().sum().item()
            self.count += int(asked.sum())
            yield each

    @property
    def mean(self) -> float:
        return self.total / self.count


def _accuracy(measured: list[Measurement]) -> float:
    """The accuracy over the whole split; one below every bound for a task that has none."""
    return next((row.value for row in measured if row.metric == "accuracy" and not row.slice), -1.0)
