"""Parity: at every bit, whether the ones so far are odd (state tracking; MesaNet, arXiv 2506.05233, App. I and Fig. 8)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from conf.settings import Count, Refusal
from tasks.positions import rows_by_position
from tasks.splits import TINY, belongs, belongs_of
from tasks.task import Batch, Measurement, Scored, Task

BEGIN = 2
BLOCK = 256  # examples drawn at once
MAX_BARREN = 100  # blocks of candidates without one for the split, until it is clear that there is none


class Parity(Task):
    """BEGIN, then uniform random bits; the target at every token is the parity of the bits so far, itself included.

    BEGIN, where none has come, asks for 0: a state that is turned by bits has to be written once, and BEGIN says when.
    Training and validation examples have seq_len tokens. Those of the test split have test_seq_len: what is asked there
    beyond seq_len can only be answered by a rule that was learnt on shorter sequences.

    Every example is drawn from a Philox generator keyed by (seed, length) and counted by the block of the index. A hash
    of the first seq_len tokens says to which split an example belongs, so no two splits share these, under any seed. Where
    there are no more than TINY beginnings the hash is another one, of all bits but the first, and the version 2.
    """

    class Settings(Task.Settings, kw_only=True):
        seq_len: Count
        test_seq_len: Count
        num_validation: Count
        num_test: Count

        def __post_init__(self) -> None:
            if self.test_seq_len < self.seq_len:
                raise Refusal("test_seq_len", self.test_seq_len, f"whole numbers from seq_len, here {self.seq_len}")

    type = "parity.Parity"
    vocab_size = 3
    splits = ("train", "validation", "test")

    def __init__(self, settings: Settings, *, seed: int) -> None:
        super().__init__(settings, seed=seed)
        self.seq_len = settings.seq_len
        self._num_examples = {"train": None, "validation": settings.num_validation, "test": settings.num_test}
        # A first bit turns all targets: as examples that differ in it share a split, each target is as often 0 as 1 there.
        few = 2 ** (self.seq_len - 1) <= TINY
        self.version, self._hashed = (2, slice(2, self.seq_len)) if few else (1, slice(0, self.seq_len))
        # Neighbouring indices share a block; the cache changes how fast an example is had, not what it is.
        self._block = functools.lru_cache(maxsize=8)(self._draw_block)

    @functools.cached_property
    def _belongs(self) -> Callable[[np.ndarray, str], np.ndarray]:
        """What says which beginnings are of a split."""
        return belongs_of(_sequences(self.seq_len - 2)) if self.version == 2 else belongs

    def check(self) -> None:
        for split in self.splits:
            self._block(split, 0)

    def num_examples(self, split: str) -> int | None:
        return self._num_examples[split]

    def length(self, split: str) -> int:
        """The tokens of an example of the split."""
        return self.settings.test_seq_len if split == "test" else self.seq_len

    def example(self, split: str, index: int) -> np.ndarray:
        """The tokens [T] of one example."""
        return self._block(split, index // BLOCK)[index % BLOCK]

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        tokens = torch.from_numpy(np.stack([self.example(split, i) for i in indices]))
        # BEGIN is even.
        return Batch(tokens, tokens.cumsum(1) % 2)

    def _draw_block(self, split: str, block: int) -> np.ndarray:
        """Tokens [BLOCK, T]: the first candidates of the block's stream that belong to the split."""
        length = self.length(split)
        rng = np.random.Generator(np.random.Philox(key=[self.seed, length], counter=[0, 0, 0, block]))
        parts, found = [], 0
        while found < BLOCK:
            tokens = rng.integers(2, size=(BLOCK, length))
            tokens[:, 0] = BEGIN
            mine = self._belongs(tokens[:, self._hashed], split)
            parts.append(tokens[mine])
            found += int(mine.sum())
            if not found and len(parts) == MAX_BARREN:
                raise ValueError(f"task.seq_len={self.seq_len} is too short: no sequence is left for {split}")
        return np.concatenate(parts)[:BLOCK]

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


def _sequences(length: int) -> np.ndarray:
    """All sequences of so many bits [2^length, length]."""
    return np.arange(2 ** max(length, 0))[:, None] >> np.arange(length) & 1
