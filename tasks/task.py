"""The contract of a task: examples as pure functions of an index, and scores from what a model predicted."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

IGNORE = -100
"""The target of a position that asks nothing."""


@dataclass(frozen=True)
class Tokens:
    """A task of ids below vocab_size: ids in, and an id asked."""

    vocab_size: int


@dataclass(frozen=True)
class Vectors:
    """A task of vectors: a token is input_dim numbers, a target output_dim."""

    input_dim: int
    output_dim: int


@dataclass(frozen=True)
class Batch:
    """tokens, targets: [B, T] int64; a target of IGNORE is neither trained on nor scored.

    In a task of vectors tokens are [B, T, input_dim] and targets [B, T, output_dim], float32, and every target is asked.
    starts: [B, T] bool, True where the model's state is to be reset, or None.
    slices: per name one value an example, by which scores are also reported, e.g. {"num_pairs": [4, 4, 8]}.
    """

    tokens: Tensor
    targets: Tensor
    starts: Tensor | None = None
    slices: dict[str, list] = field(default_factory=dict)

    @property
    def asked(self) -> Tensor:
        """[B, T] bool: the positions that ask something."""
        if self.targets.is_floating_point():
            return torch.ones(self.targets.shape[:2], dtype=torch.bool, device=self.targets.device)
        return self.targets != IGNORE


@dataclass(frozen=True)
class Measurement:
    """One number: the mean of `metric` over `count` units of `split`, within `slice` (empty: all of it).

    examples: the value of every example, in the order of the split, where paired comparisons need them.
    groups: which of them are not independent, see `Task.groups`.
    """

    metric: str
    value: float
    split: str
    slice: dict[str, int | float | str]
    count: int
    examples: tuple[float, ...] | None = None
    groups: tuple[int, ...] | None = None


class Scored(NamedTuple):
    """What a model made of a batch; both meaningless where nothing is asked.

    loss: [B, T], the nll in nats, or the squared error. prediction: [B, T], the argmax, or [B, T, output_dim].
    """

    batch: Batch
    loss: Tensor
    prediction: Tensor


def check_count(key: str, value: int) -> None:
    """Raises ValueError unless value, the user's setting `key`, is a whole number of at least 1."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{key}={value} must be a whole number of at least 1")


class Task(ABC):
    """What a model is trained on and scored by.

    An example is a pure function of (configuration, seed, split, index): never of a global generator, of the model
    or of the order of calls.
    """

    name: str
    version: int  # raised when the task's numbers change; part of a run's identity
    vocab_size: int  # of a task of ids; one of vectors says its `interface`
    seq_len: int
    splits: tuple[str, ...]  # "train" and "validation", and "test" where hyper-parameters are chosen on validation

    @property
    def interface(self) -> Tokens | Vectors:
        """What goes in and what is asked: it decides which face of the backbone learns the task."""
        return Tokens(self.vocab_size)

    @property
    def guessing_loss(self) -> float:
        """The mean loss of answers that know nothing."""
        return math.log(self.vocab_size)

    def prepare(self) -> None:
        """Keeps what it would cost to make the examples again; called once the request is accepted, by any number of runs."""
        return

    @abstractmethod
    def num_examples(self, split: str) -> int | None:
        """How many examples a split has; None when there is no bound."""

    @abstractmethod
    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        """The examples at these indices."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hexadecimal digest of the data behind the task; part of a run's identity. Empty when there is none."""

    @abstractmethod
    def measure(self, split: str, scored: Iterable[Scored]) -> list[Measurement]:
        """The task's scores, from the scored batches of a split in order. Consumes the iterable once."""

    def groups(self, split: str) -> tuple[int, ...] | None:
        """A number for every example: those of one number are parts of one thing. None where each stands by itself."""
        return None

    def references(self, split: str, *, reach: int | None) -> list[Measurement]:
        """What is known without training: floors, chance, and the most that a model can reach that sees `reach` tokens back."""
        return []
