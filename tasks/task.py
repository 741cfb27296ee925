"""The contract of a task: examples as pure functions of an index, and scores from what a model predicted."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

import conf.settings
from conf.settings import Count, Name
from tasks.tokenizer import Tokenizer as Tokenizer

IGNORE = -100
"""The target of a position that asks nothing."""


@dataclass(frozen=True)
class Tokens:
    """A task of ids below vocab_size: ids in, and an id asked."""

    vocab_size: int


@dataclass(frozen=True)
class Encoded(Tokens):
    """A task of ids that are asked again, every one at its own position, from what a model holds after the last of them.

    decoder_layers: linear maps between the last features, to which a position is added, and the head.
    """

    decoder_layers: int


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
    permitted: [B, T] int64, bit i set where id i is as right as the target; None where `Task.right` does without.
    """

    tokens: Tensor
    targets: Tensor
    starts: Tensor | None = None
    slices: dict[str, list] = field(default_factory=dict)
    permitted: Tensor | None = None

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


def perplexity(nll: float) -> float:
    """exp(nll); infinite where that is above what a float64 holds, from an nll of 709.8 on."""
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf


class Scored(NamedTuple):
    """What a model made of a batch; loss and prediction are meaningless where nothing is asked.

    loss: [B, T], the nll in nats, or the squared error. prediction: [B, T], the argmax, or [B, T, output_dim].
    """

    batch: Batch
    loss: Tensor
    prediction: Tensor


class Task(ABC):
    """What a model is trained on and scored by.

    An example is a pure function of (settings, seed, split, index): never of a global generator, of the model or of the
    order of calls. To build a task is cheap; what takes time is drawn or read when it is first asked for.

    type: the name under which a configuration asks for the class. It enters the name of every run, so it outlives moves
    of the file and renames of the class.
    """

    class Settings(conf.settings.Settings, kw_only=True):
        """What a task's YAML says. name: for titles. version: see `Task.version`. seq_len: tokens of an example."""

        type: Name
        name: Name
        version: Count
        seq_len: Count

    type: ClassVar[str]
    version: int  # raised when the task's numbers change; part of a run's identity
    vocab_size: int  # of a task of ids; a task of vectors overrides `interface`
    seq_len: int
    splits: tuple[str, ...]  # "train" and "validation", and "test" where hyper-parameters are chosen on validation
    tokenizer: Tokenizer | None = None  # with which a prompt or a benchmark is read; None for a task without text
    trains: bool = True  # whether there is anything to learn; if not, a run may have no training step
    measures_positions: bool = False  # whether `measure_positions` has anything to add to `measure`

    def __init__(self, settings: Settings, *, seed: int) -> None:
        self.settings, self.seed, self.seq_len = settings, seed, settings.seq_len

    @property
    def interface(self) -> Tokens | Vectors:
        """Whether ids or vectors go in and are asked; it decides which face of the backbone learns the task."""
        return Tokens(self.vocab_size)

    @property
    def guessing_loss(self) -> float:
        """The mean loss of a model that has learnt nothing: every id equally likely, or a prediction of 0."""
        return math.log(self.vocab_size)

    def check(self) -> None:
        """Raises ValueError where a split has no example, which only drawing shows; the answer is the same for every seed."""
        return

    def prepare(self) -> None:
        """Keeps what is expensive to make again, such as a tokenised text. Called when a request is accepted, by every run."""
        return

    @abstractmethod
    def num_examples(self, split: str) -> int | None:
        """How many examples a split has; None when there is no bound."""

    @abstractmethod
    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        """The examples at these indices."""

    def fingerprint(self) -> str:
        """Hexadecimal digest of the data behind the task; part of a run's identity. Empty for examples that are drawn."""
        return ""

    def resized(self, *, seq_len: int, examples: int) -> Self | None:
        """The task on the same data in sequences of another length, at most `examples` of them scored, spread over it.

        None for a task that has one length. Raises ValueError where the data has no sequence of that length, or has
        changed since this task was built.
        """
        return None

    def right(self, batch: Batch, prediction: Tensor) -> Tensor:
        """Which predicted ids [B, T] answer what is asked, bool; meaningless where nothing is asked, and in a task of vectors."""
        return prediction == batch.targets

    def choices(self, batch: Batch) -> list[np.ndarray]:
        """Per example the ids among which a guess chooses: the different answers that the example asks for."""
        return [np.unique(targets[asked]) for targets, asked in zip(batch.targets.numpy(), batch.asked.numpy(), strict=True)]

    @abstractmethod
    def measure(self, split: str, scored: Iterable[Scored]) -> list[Measurement]:
        """The task's scores, from the scored batches of a split in order. Consumes the iterable once."""

    def measure_positions(self, split: str, scored: Iterable[Scored]) -> list[Measurement]:
        """Scores by position that `measure` does not give already. Consumes the iterable once."""
        return []

    def groups(self, split: str) -> tuple[int, ...] | None:
        """A number for every example: examples of one number are parts of one thing. None where each stands by itself."""
        return None

    def references(self, split: str, *, reach: int | None) -> list[Measurement]:
        """What is known without training: floors, chance, and the best score of a model that sees `reach` tokens back."""
        return []
