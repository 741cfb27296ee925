"""MAD's selective copying (Poli et al. 2024, arXiv 2403.17844): tokens among blanks, again in their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from conf.settings import Refusal, within
from tasks.mad.spaces import MOST_IDS, MOST_TOKENS, every_list
from tasks.synthetic.answers import AnswerTask
from tasks.synthetic.blocks import BLOCK, Drawn, Space
from tasks.task import IGNORE, Batch


class SelectiveCopying(AnswerTask):
    """Uniform tokens to copy with blanks among them, the copy token, and one blank for every token to copy, which asks for it.

    Ids are in this order: what is copied, blank, copy. Each of the blanks among the tokens stands before a uniform one of
    them, so none stands behind the last, as in mad-lab. All splits ask the same. A hash of the tokens to copy says to which
    split an example belongs; where few such lists exist, all of them are dealt out.
    """

    class Settings(AnswerTask.Settings, kw_only=True):
        seq_len: Annotated[int, within(4, MOST_TOKENS)]
        vocab_size: Annotated[int, within(4, MOST_IDS)]
        num_tokens_to_copy: Annotated[int, within(1, MOST_TOKENS // 2 - 1)]

        def __post_init__(self) -> None:
            least = 2 * self.num_tokens_to_copy + 2
            if self.seq_len < least:
                raise Refusal("seq_len", self.seq_len, f"whole numbers from 2 * num_tokens_to_copy + 2, here {least}")

    settings: Settings
    type = "mad.selective_copying"
    version = 1

    def __init__(self, settings: Settings, *, seed: int) -> None:
        super().__init__(settings, seed=seed)
        self.vocab_size, self.num_copied = settings.vocab_size, settings.num_tokens_to_copy
        self.blank, self.copy = settings.vocab_size - 2, settings.vocab_size - 1

    def streams(self, split: str) -> tuple[int, ...]:
        return (0,)

    def space(self, stream: int) -> Space:
        ids, length = self.settings.vocab_size, self.settings.num_tokens_to_copy
        return every_list(ids - 2, length, scarce=f"task.num_tokens_to_copy={length} is too small")

    def marks(self, drawn: Drawn, stream: int) -> np.ndarray:
        return drawn[0]

    def draw(self, rng: np.random.Generator, split: str, stream: int) -> Drawn:
        """The tokens to copy and where they stand, each [BLOCK, num_copied] of int32."""
        shape = (BLOCK, self.num_copied)
        copied = rng.integers(self.blank, size=shape)
        before = rng.integers(self.num_copied, size=(BLOCK, self.seq_len - 2 * self.num_copied - 1))
        before += self.num_copied * np.arange(BLOCK)[:, None]
        blanks = np.bincount(before.ravel(), minlength=copied.size).reshape(shape)
        places = np.arange(self.num_copied) + blanks.cumsum(axis=1)
        return copied.astype(np.int32), places.astype(np.int32)

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        copied, places = (torch.from_numpy(part).long() for part in self.drawn(split, indices))
        tokens = torch.full((len(copied), self.seq_len), self.blank)
        tokens.scatter_(1, places, copied)
        tokens[:, -self.num_copied - 1] = self.copy
        targets = torch.full_like(tokens, IGNORE)
        targets[:, -self.num_copied :] = copied
        return Batch(tokens, targets)

    def oracle(self, batch: Batch) -> Tensor:
        """Predictions [B, T] from the tokens alone: at the blanks behind the copy token what is neither; 0 elsewhere."""
        answers = torch.zeros_like(batch.tokens)
        answers[:, -self.num_copied :] = batch.tokens[batch.tokens < self.blank].view(-1, self.num_copied)
        return answers
