"""Palindrome: tokens, a separator, and the tokens from the last to the first (Kimi Linear, arXiv 2510.26692, Sec. 5.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from conf.settings import Refusal, within
from tasks.positions import rows_by_position
from tasks.synthetic.answers import AnswerTask
from tasks.synthetic.blocks import BLOCK, Drawn
from tasks.task import IGNORE, Batch, Measurement, Scored


class Palindrome(AnswerTask):
    """x_1 ... x_n <sep> x_n ... x_2, with n = seq_len / 2 uniform symbols; <sep> asks for x_n, each x_i behind it for x_{i-1}.

    Symbols are 0 ... num_symbols - 1, drawn with repetition, and <sep> is num_symbols. The paper has sequences of 256 ... 2048
    tokens and does not say how many symbols.
    """

    class Settings(AnswerTask.Settings, kw_only=True):
        # At least 16 symbols of 4 bits each: so many strings that no two streams share one.
        seq_len: Annotated[int, within(32, 2**16)]
        num_symbols: Annotated[int, within(16, 2**15 - 2)]

        def __post_init__(self) -> None:
            if self.seq_len % 2:
                raise Refusal("seq_len", self.seq_len, "even numbers")

    type = "palindrome"
    version = 1
    measures_positions = True

    settings: Settings

    def __init__(self, settings: Settings, *, seed: int) -> None:
        super().__init__(settings, seed=seed)
        self.num_symbols = settings.num_symbols
        self.vocab_size = self.num_symbols + 1

    def draw(self, rng: np.random.Generator, split: str, stream: int) -> Drawn:
        return (rng.integers(self.num_symbols, size=(BLOCK, self.seq_len // 2), dtype=np.int16),)

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        (symbols,) = (torch.from_numpy(part).long() for part in self.drawn(split, indices))
        separator, reverse = torch.full_like(symbols[:, :1], self.num_symbols), symbols.flip(1)
        tokens = torch.cat([symbols, separator, reverse[:, :-1]], dim=1)
        return Batch(tokens, torch.cat([torch.full_like(symbols, IGNORE), reverse], dim=1))

    def oracle(self, batch: Batch) -> Tensor:
        """Predictions [B, T] from the tokens alone: at position n + i the token at n - 1 - i."""
        places = self.seq_len - 1 - torch.arange(self.seq_len)
        return batch.tokens[:, places]

    def measure_positions(self, split: str, scored: Iterable[Scored]) -> list[Measurement]:
        """accuracy by position in the answer: at position t, the token that stood 2 t + 1 tokens before."""
        right = [self.right(batch, prediction)[:, self.seq_len // 2 :].double() for batch, _, prediction in scored]
        rows = rows_by_position("accuracy", split, torch.cat(right).numpy())
        return [row for row in rows if row.slice]
