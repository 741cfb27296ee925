"""Parity: is the number of ones so far odd? Asked at every bit (state tracking; MesaNet, arXiv 2506.05233, App. I, Fig. 8)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from conf.settings import Count, Refusal
from tasks.positions import rows_by_position
from tasks.synthetic.blocks import BLOCK, BlockTask, Drawn, Space
from tasks.task import Batch, Measurement, Scored

BEGIN = 2


class Parity(BlockTask):
    """BEGIN, then uniform random bits; the target at every token is the parity of the bits so far, itself included.

    BEGIN, where none has come, asks for 0: a state that is turned by bits has to be written once, and BEGIN says when.
    Training and validation examples have seq_len tokens, test examples test_seq_len: what is asked there beyond seq_len
    can only be answered by a rule that was learnt on shorter sequences.

    A stream is numbered by the length of its examples. A hash of the first seq_len tokens says to which split an example
    belongs; where few such beginnings exist, a hash of all their bits but the first.
    """

    class Settings(BlockTask.Settings, kw_only=True):
        test_seq_len: Count

        def __post_init__(self) -> None:
            if self.test_seq_len < self.seq_len:
                raise Refusal("test_seq_len", self.test_seq_len, f"whole numbers from seq_len, here {self.seq_len}")

    type = "parity.Parity"
    version = 1
    vocab_size = 3

    def length(self, split: str) -> int:
        """The tokens of an example of the split."""
        return self.settings.test_seq_len if split == "test" else self.settings.seq_len

    def streams(self, split: str) -> tuple[int, ...]:
        return (self.length(split),)

    def space(self, stream: int) -> Space:
        def marks() -> np.ndarray:
            return np.arange(2 ** max(length - 2, 0))[:, None] >> np.arange(length - 2) & 1

        length = self.settings.seq_len
        return Space(2 ** (length - 1), marks, f"task.seq_len={length} is too short")

    def marks(self, drawn: Drawn, stream: int) -> np.ndarray:
        # A first bit turns all targets: as examples that differ in it share a split, each target is as often 0 as 1 there.
        return drawn[0][:, 2 if self.few(stream) else 0 : self.seq_len]

    def draw(self, rng: np.random.Generator, split: str, stream: int) -> Drawn:
        tokens = rng.integers(2, size=(BLOCK, stream))
        tokens[:, 0] = BEGIN
        return (tokens,)

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        (tokens,) = map(torch.from_numpy, self.drawn(split, indices))
        # BEGIN is even.
        return Batch(tokens, tokens.cumsum(1) % 2)

    def oracle(self, batch: Batch) -> Tensor:
        """Predictions [B, T] from the tokens alone, one bit of memory carried along."""
        state, answers = torch.zeros_like(batch.tokens[:, 0]), []
        for token in batch.tokens.unbind(1):
            state = torch.where(token == 1, 1 - state, state)
            answers.append(state)
        return torch.stack(answers, dim=1)

    def measure(self, split: str, scored: Iterable[Scored]) -> list[Measurement]:
        """accuracy and nll: over all positions, at every position, and in bands of positions with their examples.

        The accuracy at position t is that of the parity of t bits.
        """
        right, nll = [], []
        for batch, loss, prediction in scored:
            right.append((prediction == batch.targets).double())
            nll.append(loss.double())
        return [
            *rows_by_position("accuracy", split, torch.cat(right).numpy()),
            *rows_by_position("nll", split, torch.cat(nll).numpy()),
        ]

    def references(self, split: str, *, reach: int | None) -> list[Measurement]:
        """`chance`, a coin, and `reachable_accuracy`: 1 as long as every bit is in sight, a coin's beyond.

        reach: how many tokens before the present one can be seen, None for all.
        """
        length, count = self.length(split), self.num_examples(split) or BLOCK
        # BEGIN need not be seen.
        seen = length if reach is None else min(length, reach + 2)
        return [
            Measurement("chance", 0.5, split, {}, count),
            Measurement("reachable_accuracy", (seen + 0.5 * (length - seen)) / length, split, {}, count),
        ]
