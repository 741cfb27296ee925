"""Tasks whose answers are next tokens: all of them are trained on, and some are asked of a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch

from conf.settings import within
from tasks.mad.spaces import MOST_IDS, MOST_TOKENS, many
from tasks.synthetic.answers import AnswerTask
from tasks.synthetic.blocks import Drawn, Space
from tasks.task import IGNORE, Batch


class NextTokenTask(AnswerTask):
    """A sequence is read but for its last token, and the target of a token that asks is the token behind it.

    `draw` gives sequences [BLOCK, T + 1] of int32 and whether token t asks, [BLOCK, T] of bool. Every training token asks, as
    in mad-lab: training and test scores are of different questions. A hash of the T tokens that are read says to which split
    an example belongs. Settings refuse what gives no more than TINY examples.
    """

    class Settings(AnswerTask.Settings, kw_only=True):
        seq_len: Annotated[int, within(1, MOST_TOKENS)]
        vocab_size: Annotated[int, within(2, MOST_IDS)]

    def __init__(self, settings: Settings, *, seed: int) -> None:
        super().__init__(settings, seed=seed)
        self.vocab_size = settings.vocab_size

    def space(self, stream: int) -> Space:
        return many(scarce=f"task.seq_len={self.seq_len} is too short")

    def marks(self, drawn: Drawn, stream: int) -> np.ndarray:
        return drawn[0][:, :-1]

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        sequences, asks = map(torch.from_numpy, self.drawn(split, indices))
        tokens, following = sequences[:, :-1].long(), sequences[:, 1:].long()
        return Batch(tokens, torch.where(asks, following, IGNORE))
