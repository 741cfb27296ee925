"""MAD's memorization (Poli et al. 2024, arXiv 2403.17844): values of keys that only training can teach."""

from __future__ import annotations

import functools
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


class Memorization(AnswerTask):
    """key, insert, key, insert ...: uniform keys, each followed by the last id, which asks for the key's value.

    Each key has a value of its own, the same in all examples of all splits and under every seed: what is asked cannot be read
    off the sequence. Ids are in this order: keys, values, insert; of the first vocab_size - 1 the first half are keys. All
    splits ask the same. A hash of the keys says to which split an example belongs; where few lists of keys exist, all of them
    are dealt out.

    map_seed: seed of the map from keys to values. With mad-lab's seed, 12345, the map is mad-lab's.
    """

    class Settings(AnswerTask.Settings, kw_only=True):
        seq_len: Annotated[int, within(2, MOST_TOKENS)]
        vocab_size: Annotated[int, within(5, MOST_IDS)]
        map_seed: Annotated[int, within(0, 2**32 - 1)]

        def __post_init__(self) -> None:
            if self.seq_len % 2:
                raise Refusal("seq_len", self.seq_len, "even numbers")

    settings: Settings
    type = "mad.memorization"
    version = 1

    def __init__(self, settings: Settings, *, seed: int) -> None:
        super().__init__(settings, seed=seed)
        self.vocab_size, self.insert = settings.vocab_size, settings.vocab_size - 1
        self.num_keys = self.insert // 2

    @functools.cached_property
    def values(self) -> Tensor:
        """The value of each key [num_keys]."""
        # mad-lab shuffles the keys, then the values, by the same generator; some values have no key.
        rng = np.random.default_rng(self.settings.map_seed)
        keys, values = rng.permutation(self.num_keys), self.num_keys + rng.permutation(self.insert - self.num_keys)
        return torch.from_numpy(values[keys.argsort()])

    def streams(self, split: str) -> tuple[int, ...]:
        return (0,)

    def space(self, stream: int) -> Space:
        ids, length = self.settings.vocab_size, self.settings.seq_len
        return every_list((ids - 1) // 2, length // 2, scarce=f"task.seq_len={length} is too short")

    def draw(self, rng: np.random.Generator, split: str, stream: int) -> Drawn:
        """Keys [BLOCK, T / 2] of int32."""
        return (rng.integers(self.num_keys, size=(BLOCK, self.seq_len // 2)).astype(np.int32),)

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        keys = torch.from_numpy(*self.drawn(split, indices)).long()
        tokens = torch.full((len(keys), self.seq_len), self.insert)
        targets = torch.full_like(tokens, IGNORE)
        tokens[:, ::2], targets[:, 1::2] = keys, self.values[keys]
        return Batch(tokens, targets)

    def oracle(self, batch: Batch) -> Tensor:
        """Predictions [B, T] from the tokens and the map: the value of the last key."""
        keys = batch.tokens[:, ::2]
        return self.values[keys].repeat_interleave(2, dim=1)
