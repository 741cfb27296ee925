"""What a training keeps, and when it ends, by the scores of its validation split: model selection and early stopping."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from models.backbone import Backbone
from suite.compute.scoring import score_split
from suite.compute.settings import Train
from suite.store.checkpoint import Progress
from tasks.task import Measurement, Scored, Task

# Examples scored at once: a small model fills a GPU with many.
BATCH_SIZE = 512


class Selection:
    """The best validation of a training so far, see `Train.keep` and `Train.stop_at`.

    weights: those of the best validation, where they are kept. ended: whether the training is to end here.
    """

    def __init__(self, train: Train, progress: Progress, weights: dict[str, Tensor] | None) -> None:
        self.train, self.weights = train, weights
        self.best_step, self.best_loss, self.ended = progress.best_step, progress.best_loss, progress.ended

    def is_due(self, steps: int) -> bool:
        """Whether the validation split is scored after so many steps: again and again, and after the last."""
        every = self.train.validate_steps
        return every is not None and (steps % every == 0 or steps == self.train.steps)

    def look(self, model: Backbone, task: Task, steps: int, device: torch.device) -> None:
        """Scores the validation split after so many steps, and leaves the model in training mode."""
        losses = MeanLoss()
        model.eval()
        scored = score_split(model, task, "validation", batch_size=BATCH_SIZE, device=device)
        measured = task.measure("validation", losses.through(scored))
        model.train()
        loss = losses.mean
        if self.best_loss is None or loss < self.best_loss:
            self.best_step, self.best_loss = steps, loss
            if self.train.keep == "best":
                self.weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.ended = self.train.stop_at is not None and _accuracy(measured) >= self.train.stop_at

    def restore(self, model: Backbone) -> None:
        """Gives the model the weights that are kept."""
        if self.weights is not None:
            model.load_state_dict(self.weights)


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
