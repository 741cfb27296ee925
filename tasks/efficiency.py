"""Nothing to learn: uniformly random ids, on which it is measured how fast a model is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from conf.settings import Count
from tasks.task import Batch, Measurement, Scored, Task

SPLITS = ("train", "validation")


class Efficiency(Task):
    """Ids drawn uniformly and independently; at every token the next one is asked, and nobody can know it.

    seq_len: of an example, and the length for which a run's facts give its state and FLOPs; `draw` has any length.
    An example is drawn from a Philox generator keyed by (seed, split) and counted by its index.
    """

    class Settings(Task.Settings, kw_only=True):
        vocab_size: Count

    type = "efficiency.Efficiency"
    version = 1
    splits = SPLITS
    trains = False

    def __init__(self, settings: Settings, *, seed: int) -> None:
        super().__init__(settings, seed=seed)
        self.vocab_size = settings.vocab_size

    def num_examples(self, split: str) -> int | None:
        # One says what there is to say of the loss: it is that of guessing.
        return {"train": None, "validation": 1}[split]

    def example(self, split: str, index: int) -> np.ndarray:
        """The tokens [T + 1] of one example and the one asked last."""
        return self._ids(SPLITS.index(split), index, (self.seq_len + 1,))

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        return _asking_the_next(np.stack([self.example(split, i) for i in indices]))

    def draw(self, batch_size: int, length: int) -> Batch:
        """So many sequences of this length, the same at every call."""
        return _asking_the_next(self._ids(len(SPLITS), length, (batch_size, length + 1)))

    def _ids(self, stream: int, index: int, shape: tuple[int, ...]) -> np.ndarray:
        rng = np.random.Generator(np.random.Philox(key=[self.seed, stream], counter=[0, 0, 0, index]))
        return rng.integers(self.vocab_size, size=shape)

    def measure(self, split: str, scored: Iterable[Scored]) -> list[Measurement]:
        """The nll over all tokens."""
        nll = torch.cat([each.loss.double() for each in scored])
        return [Measurement("nll", nll.mean().item(), split, {}, nll.numel())]

    def references(self, split: str, *, reach: int | None) -> list[Measurement]:
        """`chance`: one id of all, which is also the best that there is."""
        return [Measurement("chance", 1.0 / self.vocab_size, split, {}, self.seq_len)]


def _asking_the_next(ids: np.ndarray) -> Batch:
    tokens = torch.from_numpy(ids)
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
