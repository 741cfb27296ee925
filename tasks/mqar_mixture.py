"""Multi-query associative recall over several lengths and numbers of pairs (Arora et al. 2024, Based: "original MQAR")."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from conf.settings import Count, Positive, Refusal
from tasks.mqar import FILLER, MQAR
from tasks.task import IGNORE, Batch, Measurement, Scored, Task

Segments = Annotated[
    tuple[tuple[Count, Count, Count], ...], Meta(min_length=1, description="lists of [seq_len, num_pairs, examples]")
]
Segment = tuple[int, int]
"""The length of its examples, and their number of pairs."""


class MQARMixture(Task):
    """Examples of MQAR in segments, each of one length and one number of pairs; FILLER behind them to the length of a split.

    What stands behind an example asks nothing and no causal model sees it before: it changes no score. Training reads the
    segments mixed, where Zoology reads one after another, from the easiest to the hardest.

    train_segments: [seq_len, num_pairs, examples] of each. test_segments: the same of validation and test, which have
    examples of other lists of pairs. The other settings are those of MQAR.
    """

    class Settings(Task.Settings, kw_only=True):
        vocab_size: Count
        train_segments: Segments
        test_segments: Segments
        power_a: Positive
        random_non_queries: bool

        def __post_init__(self) -> None:
            longest = max(length for length, _, _ in self.train_segments)
            if self.seq_len != longest:
                raise Refusal("seq_len", self.seq_len, f"the longest of train_segments, here {longest}")
            for key in ("train_segments", "test_segments"):
                for length, pairs, _ in getattr(self, key):
                    if length % 2 or length < 4 * pairs or self.vocab_size // 2 - 1 < pairs:
                        told = "even lengths of at least 4 times the pairs, and pairs below half of task.vocab_size"
                        raise Refusal(key, [length, pairs], told)

    settings: Settings
    type = "mqar_mixture"
    version = 1
    splits = ("train", "validation", "test")

    def __init__(self, settings: Settings, *, seed: int) -> None:
        super().__init__(settings, seed=seed)
        self.vocab_size = settings.vocab_size
        every = (*settings.train_segments, *settings.test_segments)
        self._recall = {(length, pairs): self._one(length, pairs) for length, pairs, _ in every}

    def segments(self, split: str) -> tuple[tuple[int, int, int], ...]:
        return self.settings.train_segments if split == "train" else self.settings.test_segments

    def num_examples(self, split: str) -> int:
        return sum(count for _, _, count in self.segments(split))

    def length(self, split: str) -> int:
        """The tokens of an example of the split."""
        return max(length for length, _, _ in self.segments(split))

    def check(self) -> None:
        for recall in self._recall.values():
            recall.check()

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        segments, wanted = self.segments(split), np.asarray(indices, dtype=np.int64)
        ends = np.cumsum([count for _, _, count in segments])
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < ends[-1]:
            raise IndexError(f"examples of {split} are 0 to {ends[-1] - 1}")
        chosen = np.searchsorted(ends, wanted, side="right")
        tokens = torch.full((len(wanted), self.length(split)), FILLER)
        targets = torch.full_like(tokens, IGNORE)
        for i, (length, pairs, count) in enumerate(segments):
            mine = np.flatnonzero(chosen == i)
            if len(mine):
                part = self._recall[length, pairs].batch(split, (wanted[mine] - (ends[i] - count)).tolist())
                tokens[mine, :length], targets[mine, :length] = part.tokens, part.targets
        names = {"num_pairs": [segments[i][1] for i in chosen], "seq_len": [segments[i][0] for i in chosen]}
        return Batch(tokens, targets, slices=names)

    def oracle(self, batch: Batch) -> Tensor:
        """Predictions [B, T] from the tokens alone, see `MQAR.oracle`."""
        prediction = torch.full_like(batch.targets, IGNORE)
        rows = np.array(list(zip(batch.slices["seq_len"], batch.slices["num_pairs"], strict=True)))
        for length, pairs in {(int(length), int(pairs)) for length, pairs in rows}:
            mine = torch.from_numpy((rows == (length, pairs)).all(1).nonzero()[0])
            part = Batch(batch.tokens[mine, :length], batch.targets[mine, :length], None, {"num_pairs": [pairs] * len(mine)})
            prediction[mine, :length] = self._recall[length, pairs].oracle(part)
        return prediction

    def measure(self, split: str, scored: Iterable[Scored]) -> list[Measurement]:
        """accuracy and nll: the mean over examples of each one's mean over its queries; overall and by num_pairs."""
        first = next(iter(self._recall.values()))
        return first.measure(split, scored)

    def references(self, split: str, *, reach: int | None) -> list[Measurement]:
        """By num_pairs: `chance`, of naming any value of the example."""
        counts: dict[int, int] = {}
        for _, pairs, count in self.segments(split):
            counts[pairs] = counts.get(pairs, 0) + count
        return [Measurement("chance", 1 / pairs, split, {"num_pairs": pairs}, count) for pairs, count in sorted(counts.items())]

    def _one(self, length: int, pairs: int) -> MQAR:
        settings = self.settings
        return MQAR(
            MQAR.Settings(
                type=MQAR.type,
                name=settings.name,
                version=MQAR.version,
                seq_len=length,
                vocab_size=settings.vocab_size,
                num_pairs=(pairs,),
                power_a=settings.power_a,
                random_non_queries=settings.random_non_queries,
                rewrites=0,
                draws="distinct",
                num_train=None,
                # The mixture says how many there are.
                num_validation=1,
                num_test=1,
            ),
            seed=self.seed,
        )
