"""A base for tasks that ask at every token about all tokens so far, trained short and tested long."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import numpy as np
import torch

from conf.settings import Refusal, within
from tasks.positions import rows_by_position
from tasks.state_tracking.spaces import large_space, shortest_with
from tasks.synthetic.answers import AnswerTask
from tasks.synthetic.blocks import Drawn, Space
from tasks.task import Batch, Measurement, Scored

LONGEST = 2**16


class PrefixTask(AnswerTask):
    """BEGIN, then uniform random symbols; the target at every token depends on all symbols so far, itself included.

    Symbols are 0 ... num_symbols - 1, and BEGIN is num_symbols. Training and validation examples have seq_len tokens, test
    examples test_seq_len: what is asked there beyond seq_len can only be answered by a rule that was learnt on less.

    BEGIN is needed, as in parity (tasks/parity.py). A linear RNN starts from a state of zeros, which no transition changes:
    something has to be written once, and a symbol does not say that it is the first.

    A stream is numbered by the length of its examples. A hash of the first seq_len tokens says to which split an example
    belongs, so no two splits have such a beginning in common, under any seed.

    num_answers: how many different answers there are; one that depends on a symbol out of sight is any of them, equally likely.
    """

    class Settings(AnswerTask.Settings, kw_only=True):
        seq_len: Annotated[int, within(1, LONGEST)]
        test_seq_len: Annotated[int, within(1, LONGEST)]

        @property
        def num_symbols(self) -> int:
            raise NotImplementedError

        def __post_init__(self) -> None:
            shortest = 1 + shortest_with(self.num_symbols)
            if self.seq_len < shortest:
                raise Refusal("seq_len", self.seq_len, f"whole numbers from {shortest}, so that no split is without examples")
            if self.test_seq_len < self.seq_len:
                raise Refusal("test_seq_len", self.test_seq_len, f"whole numbers from seq_len, here {self.seq_len}")

    settings: Settings
    num_answers: int

    def __init__(self, settings: Settings, *, seed: int) -> None:
        super().__init__(settings, seed=seed)
        self.num_symbols = settings.num_symbols
        self.vocab_size = self.num_symbols + 1

    def length(self, split: str) -> int:
        """The tokens of an example of the split."""
        return self.settings.test_seq_len if split == "test" else self.settings.seq_len

    def streams(self, split: str) -> tuple[int, ...]:
        return (self.length(split),)

    def space(self, stream: int) -> Space:
        # More symbols would make a number that takes long to compute, and no difference.
        return large_space(self.settings.num_symbols ** min(self.seq_len - 1, 64))

    def marks(self, drawn: Drawn, stream: int) -> np.ndarray:
        return drawn[0][:, : self.seq_len]

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        tokens, targets = (torch.from_numpy(part).long() for part in self.drawn(split, indices))
        return Batch(tokens, targets)

    def measure(self, split: str, scored: Iterable[Scored]) -> list[Measurement]:
        """accuracy and nll: over all positions, at every position, and in bands of positions with their examples.

        BEGIN is position 0, so position t is that of the t-th symbol.
        """
        right, nll = [], []
        for batch, loss, prediction in scored:
            right.append(self.right(batch, prediction).double())
            nll.append(loss.double())
        return [
            *rows_by_position("accuracy", split, torch.cat(right).numpy()),
            *rows_by_position("nll", split, torch.cat(nll).numpy()),
        ]

    def references(self, split: str, *, reach: int | None) -> list[Measurement]:
        """`chance`, and `reachable_accuracy`: 1 as long as the first symbol is in sight, any of the answers beyond.

        reach: how many tokens before the present one can be seen, None for all.
        """
        known = super().references(split, reach=reach)
        length = self.length(split)
        # BEGIN need not be seen.
        seen = length if reach is None else min(length, reach + 2)
        best = (seen + (length - seen) / self.num_answers) / length
        return [*known, Measurement("reachable_accuracy", best, split, {}, known[0].count)]
