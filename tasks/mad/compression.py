"""MAD's compression (Poli et al. 2024, arXiv 2403.17844): a whole sequence from what a model holds after its last token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from conf.settings import within
from tasks.mad.spaces import MOST_IDS, MOST_TOKENS, every_list
from tasks.synthetic.answers import AnswerTask
from tasks.synthetic.blocks import BLOCK, Drawn, Space
from tasks.task import Batch, Encoded


class Compression(AnswerTask):
    """Uniform tokens, then the last id; the target of every token is itself, the last one's too, as in mad-lab.

    A model answers every position from its features after the last token, see `Encoded`. All splits ask the same. A hash of
    the tokens says to which split an example belongs; where few sequences exist, all of them are dealt out.

    Difference from mad-lab: its noise, whose targets it drops by mistake, is left out, as in its benchmark.
    """

    class Settings(AnswerTask.Settings, kw_only=True):
        seq_len: Annotated[int, within(2, MOST_TOKENS)]
        vocab_size: Annotated[int, within(3, MOST_IDS)]

    settings: Settings
    type = "mad.compression"
    version = 1

    def __init__(self, settings: Settings, *, seed: int) -> None:
        super().__init__(settings, seed=seed)
        self.vocab_size = settings.vocab_size

    @property
    def interface(self) -> Encoded:
        # mad-lab's decoder has two linear layers.
        return Encoded(self.vocab_size, decoder_layers=2)

    def streams(self, split: str) -> tuple[int, ...]:
        return (0,)

    def space(self, stream: int) -> Space:
        ids, length = self.settings.vocab_size, self.settings.seq_len
        return every_list(ids - 1, length - 1, scarce=f"task.seq_len={length} is too short")

    def marks(self, drawn: Drawn, stream: int) -> np.ndarray:
        return drawn[0][:, :-1]

    def draw(self, rng: np.random.Generator, split: str, stream: int) -> Drawn:
        tokens = rng.integers(self.vocab_size - 1, size=(BLOCK, self.seq_len)).astype(np.int32)
        tokens[:, -1] = self.vocab_size - 1
        return (tokens,)

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        tokens = torch.from_numpy(*self.drawn(split, indices)).long()
        return Batch(tokens, tokens.clone())

    def oracle(self, batch: Batch) -> Tensor:
        """Predictions [B, T] from the tokens alone: the tokens."""
        return batch.tokens
