"""Nothing to learn: uniformly random ids, on which the speed of a model is measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from conf.settings import Count
from tasks.task import Batch, Measurement, Scored, Task


class Efficiency(Task):
    """Ids drawn uniformly and independently; at every token the next one is asked, and nobody can know it.

    seq_len: of an example, and the length for which a run's facts give its state and FLOPs; `draw` has any length.
    An example is drawn from a Philox generator keyed by (seed, split) and counted by its index.
    """

    class Settings(Task.Settings, kw_only=True):
        vocab_size: Count

    type = "efficiency.Efficiency"
    version = 1
    splits = ("train", "validation")
    trains = False

    def __init__(self, settings: Settings, *, seed: int) -> None:
        super().__init__(settings, seed=seed)
        self.vocab_size = settings.vocab_size

    def num_examples(self, split: str) -> int | None:
        # The loss is that of guessing, which one example shows.
        return {"train": None, "validation": 1}[split]

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        stream = self.splits.index(split)
        return _asking_the_next(np.stack([self._ids(stream, i, (self.seq_len + 1,)) for i in indices]))

    def draw(self, batch_size: int, length: int) -> Batch:
        """batch_size sequences of this length, the same ones at every call."""
        return _asking_the_next(self._ids(len(self.splits), length, (batch_size, length + 1)))

    def _ids(self, stream: int, index: int, shape: tuple[int, ...]) -> np.ndarray:
        rng = np.random.Generator(np.random.Philox(key=[self.seed, stream], counter=[0, 0, 0, index]))
        return rng.integers(self.vocab_size, size=shape)

    def measure(self, split: str, scored: Iterable[Scored]) -> list[Measurement]:
        """The nll over all tokens."""
        nll = torch.cat([each.loss.double() for each in scored])
        return [Measurement("nll", nll.mean().item(), split, {}, nll.numel())]

    def references(self, split: str, *, reach: int | None) -> list[Measurement]:
        """`chance`: one id in vocab_size; no model can be right more often."""
        return [Measurement("chance", 1.0 / self.vocab_size, split, {}, self.seq_len)]


def _asking_the_next(ids: np.ndarray) -> Batch:
    tokens = torch.from_numpy(ids)
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
