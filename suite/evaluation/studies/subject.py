"""What a study works on: a trained model, the task of its run, and examples of it that fit the time given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from models.backbone import Backbone
from suite.compute.scoring import to_device
from suite.compute.settings import Compute
from suite.request.schema import Config
from tasks.progress import counted
from tasks.task import Batch, Task

# Tokens of one forward pass: bounds the memory; the scores agree to rounding for any number.
TOKENS_AT_ONCE = 2**14


@dataclass(frozen=True)
class Sample:
    """The first `count` examples of a split of `task`."""

    task: Task
    split: str
    count: int

    def batches(self) -> Iterator[Batch]:
        """All of them in order, TOKENS_AT_ONCE or one example at a time."""
        size = max(1, TOKENS_AT_ONCE // self.task.seq_len)
        for first in counted(range(0, self.count, size), self.count, lambda first: min(size, self.count - first)):
            yield self.task.batch(self.split, range(first, min(first + size, self.count)))


@dataclass(frozen=True)
class Subject:
    """model: in evaluation mode on `device`. config: the run's, of which `task` was built. compute: how it is computed here.

    samples: what was answered, an object of JSON a line, where an evaluation keeps that beside its rows.
    """

    model: Backbone
    task: Task
    config: Config
    compute: Compute
    device: torch.device
    samples: list[dict[str, Any]] = field(default_factory=list)

    def sample(self, tokens: int) -> Sample:
        """Examples with so many tokens, or all that there are: of the test split where the task has one.

        Examples of a text are spread over the held-out part as all its examples are, and not only its beginning.
        """
        count = max(1, tokens // self.task.seq_len)
        spread = self.task.resized(seq_len=self.task.seq_len, examples=count)
        if spread is not None:
            return Sample(spread, "validation", spread.num_examples("validation"))
        split = "test" if "test" in self.task.splits else "validation"
        return Sample(self.task, split, min(count, self.task.num_examples(split)))

    def on_device(self, batch: Batch) -> Batch:
        return to_device(batch, self.device)
