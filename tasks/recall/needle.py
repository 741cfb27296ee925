"""A needle: one pair of key and value somewhere in filler of any length, asked for at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from conf.settings import within
from tasks.state_tracking.single_question import SingleQuestionTask
from tasks.synthetic.blocks import BLOCK, Drawn
from tasks.task import IGNORE, Batch, Measurement

TENTHS = 10


class Needle(SingleQuestionTask):
    """Uniform filler, in it once a key and its value, and the key again as the last token, which asks for the value.

    The pair begins at any of the seq_len - 2 places that it can have before the last token, equally likely. Ids: num_filler of
    filler, then num_keys keys, then num_values values, so neither key nor value is ever taken for filler.

    The slice "depth" is where the pair begins, as a share of those places, rounded down to a tenth; 0.0 is farthest away.

    A block holds no filler, only a number per example from which it is drawn again, so that memory does not grow with seq_len.
    """

    class Settings(SingleQuestionTask.Settings, kw_only=True):
        # Filler alone makes so many examples that no two streams share one.
        seq_len: Annotated[int, within(32, 2**16)]
        num_filler: Annotated[int, within(4, 2**15)]
        num_keys: Annotated[int, within(1, 2**15)]
        num_values: Annotated[int, within(2, 2**15)]

    type = "needle"
    version = 1

    settings: Settings

    def __init__(self, settings: Settings, *, seed: int) -> None:
        super().__init__(settings, seed=seed)
        self.key = settings.num_filler
        self.value = self.key + settings.num_keys
        self.vocab_size = self.value + settings.num_values
        self.answers = range(self.value, self.vocab_size)

    def draw(self, rng: np.random.Generator, split: str, stream: int) -> Drawn:
        """Per example the place of its pair, its key, its value, and the number of its filler [BLOCK]."""
        places = rng.integers(self.seq_len - 2, size=BLOCK)
        keys = rng.integers(self.key, self.value, size=BLOCK)
        values = rng.integers(self.value, self.vocab_size, size=BLOCK)
        return places, keys, values, rng.integers(2**64, size=BLOCK, dtype=np.uint64)

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        drawn = self.drawn(split, indices)
        places, keys, values, fillers = drawn
        tokens = np.empty((len(places), self.seq_len), dtype=np.int64)
        targets, rows = np.full_like(tokens, IGNORE), np.arange(len(tokens))
        for row, number in zip(tokens, fillers.tolist(), strict=True):
            row[:] = np.random.Generator(np.random.Philox(key=number)).integers(self.key, size=self.seq_len, dtype=np.uint16)
        tokens[rows, places], tokens[rows, places + 1] = keys, values
        tokens[:, -1], targets[:, -1] = keys, values
        return Batch(torch.from_numpy(tokens), torch.from_numpy(targets), slices=self.slices(drawn))

    def slices(self, drawn: Drawn) -> dict[str, list[float]]:
        return {"depth": [place * TENTHS // (self.seq_len - 2) / TENTHS for place in drawn[0].tolist()]}

    def oracle(self, batch: Batch) -> Tensor:
        """Predictions [B, T] from the tokens alone: what follows the first occurrence of the last token."""
        first = (batch.tokens == batch.tokens[:, -1:]).int().argmax(dim=1, keepdim=True)
        return batch.tokens.gather(1, first + 1).expand(batch.tokens.shape)

    def references(self, split: str, *, reach: int | None) -> list[Measurement]:
        """`chance`, and `reachable_accuracy`: 1 where the value is in sight, any of the values where it is not.

        reach: how many tokens before the last one can be seen, None for all.
        """
        drawn = self.judged(split)
        # The value stands behind its key, the question seq_len - 1 tokens behind the first.
        seen = self.seq_len - 2 - drawn[0] <= (self.seq_len if reach is None else reach)
        best = np.where(seen, 1.0, 1 / len(self.answers))
        reachable = [
            Measurement("reachable_accuracy", float(best[rows].mean()), split, place, len(rows))
            for place, rows in self.places(drawn)
        ]
        return [*super().references(split, reach=reach), *reachable]
