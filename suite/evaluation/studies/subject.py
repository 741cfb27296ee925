"""What a study works on: a trained model, the task of its run, and examples of it that fit the time given."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from models.backbone import Backbone
from suite.request.identity import canonical_json
from suite.compute.scoring import to_device
from tasks.build import build_task
from tasks.language import Language
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
        for first in range(0, self.count, size):
            yield self.task.batch(self.split, range(first, min(first + size, self.count)))


@dataclass(frozen=True)
class Subject:
    """model: in evaluation mode on `device`. config: the run's, of which `task` was built."""

    model: Backbone
    task: Task
    config: Mapping[str, Any]
    device: torch.device

    def sample(self, tokens: int) -> Sample:
        """Examples with so many tokens, or all that there are: of the test split where the task has one.

        Those of language are spread over the held-out text as all its examples are, and not only its beginning.
        """
        count = max(1, tokens // self.task.seq_len)
        if isinstance(self.task, Language):
            task = resized(self.config, self.task, seq_len=self.task.seq_len, examples=count)
            return Sample(task, "validation", task.num_examples("validation"))
        split = "test" if "test" in self.task.splits else "validation"
        return Sample(self.task, split, min(count, self.task.num_examples(split)))

    def on_device(self, batch: Batch) -> Batch:
        return to_device(batch, self.device)


def resized(config: Mapping[str, Any], task: Language, *, seq_len: int, examples: int) -> Language:
    """The same text in sequences of another length, at most so many of them scored.

    Raises ValueError where the text is shorter than that, or is not the one that `task` has.
    """
    other = {**config["task"], "seq_len": seq_len, "max_validation_examples": examples}
    sibling = _built(canonical_json(other), config["seed"])
    if sibling.fingerprint() != task.fingerprint():
        raise ValueError(f"data={config['task']['data']['name']}: its text has changed since the run was planned")
    return sibling


@functools.cache
def _built(canonical: str, seed: int) -> Task:
    return build_task(json.loads(canonical), seed=seed)
