"""Multi-query associative recall: pairs of keys and values, then some of the keys again (Arora et al. 2023, Zoology)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from conf.settings import Count, Natural, Neutral, Positive, Refusal
from tasks.synthetic.blocks import BLOCK, Drawn, FiniteTask, Space
from tasks.synthetic.reachable import reachable
from tasks.synthetic.sampling import distinct, first_smallest, first_smallest_uniform
from tasks.task import IGNORE, Batch, Measurement, Scored

FILLER = 0


class MQAR(FiniteTask):
    """k_1 v_1 ... k_K v_K, then (T - 2K) / 2 slots of two tokens; K different slots begin with one key each.

    The target at a repeated key is its value, at that same position; nothing else is asked. Keys come from
    1 ... vocab_size/2 - 1 and values from vocab_size/2 ... vocab_size - 1, both without repetition in an example. The
    key k_j is asked in the j-th of K slots drawn without replacement, slot i with weight (i + 1)^(power_a - 1).

    Every K is a stream that all splits share: a hash of the pairs k_1 v_1 ... k_K v_K says to which split an example
    belongs, so no two splits have a list of pairs in common, under any seed.

    num_pairs: the K of consecutive examples, in turn.
    num_train: None for training examples without end, or how many there are, read anew every epoch (Arora et al.: 100,000).
    random_non_queries: whether other places hold uniform tokens, which may be keys or values of the example too (the
    first occurrence of a key is always its pair), or FILLER.
    rewrites: behind the K pairs so many of their keys are written again, each with another value, which counts from there.
    draws: how keys and values are drawn, "sorted" by random numbers or "distinct" by drawing repeated ones again: one
    distribution, other examples; the latter is some thirty times faster for a large vocabulary.
    """

    class Settings(FiniteTask.Settings, kw_only=True):
        vocab_size: Count
        num_pairs: Annotated[tuple[Count, ...], Meta(min_length=1, description="lists of whole numbers from 1, such as [4,8]")]
        power_a: Positive
        random_non_queries: bool
        rewrites: Annotated[Natural, Neutral(0)]
        draws: Annotated[Literal["sorted", "distinct"], Neutral("sorted")]

        def __post_init__(self) -> None:
            most, least = max(self.num_pairs), min(self.num_pairs)
            shortest = 4 * most + 2 * self.rewrites
            if self.seq_len % 2 or self.seq_len < shortest:
                written = "4 times num_pairs" + (" and 2 times rewrites" if self.rewrites else "")
                raise Refusal("seq_len", self.seq_len, f"even numbers of at least {written}, here {shortest}")
            if self.vocab_size // 2 - 1 < most + self.rewrites:
                shown = f"whole numbers from {2 * (most + self.rewrites) + 2}, for {most} different keys"
                raise Refusal("vocab_size", self.vocab_size, shown)
            if self.rewrites > least:
                raise Refusal("rewrites", self.rewrites, f"0 to the least of num_pairs, here {least}")

    settings: Settings
    type = "mqar.MQAR"
    version = 1

    def __init__(self, settings: Settings, *, seed: int) -> None:
        super().__init__(settings, seed=seed)
        self.vocab_size = settings.vocab_size

    def streams(self, split: str) -> tuple[int, ...]:
        return self.settings.num_pairs

    def space(self, stream: int) -> Space:
        half, vocab_size, written = self.settings.vocab_size // 2, self.settings.vocab_size, stream + self.settings.rewrites
        size = math.perm(half - 1, stream) * math.perm(half, written) * math.perm(stream, self.settings.rewrites)
        scarce = f"task.vocab_size={vocab_size} is too small for {stream} pairs"
        return Space(size, lambda: _lists(half, stream, self.settings.rewrites), scarce)

    def marks(self, drawn: Drawn, stream: int) -> np.ndarray:
        return drawn[0][:, : 2 * (stream + self.settings.rewrites)]

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        tokens, targets = map(torch.from_numpy, self.drawn(split, indices))
        every = self.settings.num_pairs
        return Batch(tokens, targets, slices={"num_pairs": [every[i % len(every)] for i in indices]})

    def draw(self, rng: np.random.Generator, split: str, stream: int) -> Drawn:
        """Tokens and targets [BLOCK, T] of candidates for any split."""
        rewrites, half = self.settings.rewrites, self.vocab_size // 2
        written = stream + rewrites
        num_slots = self.seq_len // 2 - written
        keys = 1 + self._without_repetition(rng, half - 1, stream)
        values = half + self._without_repetition(rng, half, written)
        # The order in which exponential clocks of these rates ring is weighted drawing without replacement.
        slots = first_smallest(rng.exponential(size=(BLOCK, num_slots)) / self._rates(num_slots), stream)
        again = first_smallest(rng.random((BLOCK, stream)), rewrites) if rewrites else np.empty((BLOCK, 0), dtype=np.int64)
        shape = (BLOCK, self.seq_len)
        tokens = rng.integers(self.vocab_size, size=shape) if self.settings.random_non_queries else np.full(shape, FILLER)
        targets = np.full(shape, IGNORE)
        tokens[:, 0 : 2 * written : 2] = np.concatenate([keys, np.take_along_axis(keys, again, axis=1)], axis=1)
        tokens[:, 1 : 2 * written : 2] = values
        answers = values[:, :stream].copy()
        np.put_along_axis(answers, again, values[:, stream:], axis=1)
        queries = 2 * written + 2 * slots
        np.put_along_axis(tokens, queries, keys, axis=1)
        np.put_along_axis(targets, queries, answers, axis=1)
        return tokens, targets

    def _without_repetition(self, rng: np.random.Generator, size: int, count: int) -> np.ndarray:
        """Different numbers below size [BLOCK, count]."""
        if self.settings.draws == "sorted":
            return first_smallest_uniform(rng, (BLOCK, size), count)
        return distinct(rng, (BLOCK, count), size).astype(np.int64)

    def _rates(self, num_slots: int) -> np.ndarray:
        return np.arange(1, num_slots + 1) ** (self.settings.power_a - 1)

    def oracle(self, batch: Batch) -> Tensor:
        """Predictions [B, T] from the tokens alone: what followed the present token where it was last written as a key.

        Right wherever something is asked; meaningless elsewhere.
        """
        places, written = torch.arange(self.seq_len), torch.tensor(batch.slices["num_pairs"]) + self.settings.rewrites
        is_key = (places % 2 == 0) & (places < 2 * written[:, None])
        same = (batch.tokens[:, :, None] == batch.tokens[:, None, :]) & is_key[:, None, :]
        last = (same * (places + 1)).amax(dim=2)
        return batch.tokens.gather(1, last.clamp(max=self.seq_len - 1))

    def measure(self, split: str, scored: Iterable[Scored]) -> list[Measurement]:
        """accuracy and nll: the mean over examples of each one's mean over its queries; overall and by num_pairs."""
        parts: list[tuple[Tensor, Tensor]] = []
        num_pairs: list[int] = []
        for batch, nll, prediction in scored:
            asked = batch.targets != IGNORE
            right = (prediction == batch.targets) & asked
            count = asked.sum(dim=1)
            parts.append((right.sum(dim=1).double() / count, torch.where(asked, nll.double(), 0.0).sum(dim=1) / count))
            num_pairs += batch.slices["num_pairs"]
        rows = []
        for metric, column in zip(("accuracy", "nll"), zip(*parts, strict=True), strict=True):
            values = torch.cat(column).tolist()
            rows.append(_mean(metric, split, {}, values))
            rows += [_mean(metric, split, {"num_pairs": pairs}, chosen) for pairs, chosen in _by(num_pairs, values)]
        return rows

    def references(self, split: str, *, reach: int | None) -> list[Measurement]:
        """By num_pairs: `chance`, of naming any value of the example, and `reachable_accuracy`, the most that can be expected.

        The latter is known where no key is written again. reach: how many tokens before the query can be seen, None for all;
        see tasks/synthetic/reachable.py. Both are counted on the examples of the split (the first BLOCK of each K for "train").
        """
        indices = range(self.num_examples(split) or BLOCK * len(self.settings.num_pairs))
        batch = self.batch(split, indices)
        every, best = batch.slices["num_pairs"], None
        if not self.settings.rewrites:
            best = reachable(
                batch,
                vocab_size=self.vocab_size,
                weights=self._rates(self.seq_len // 2),
                fill=1 / self.vocab_size if self.settings.random_non_queries else 0.0,
                reach=self.seq_len if reach is None else reach,
            )
        rows = []
        for pairs, chosen in _by(every, best or every):
            rows.append(Measurement("chance", 1 / pairs, split, {"num_pairs": pairs}, len(chosen)))
            if best is not None:
                rows.append(_mean("reachable_accuracy", split, {"num_pairs": pairs}, chosen))
        return rows


def _lists(half: int, pairs: int, rewrites: int) -> np.ndarray:
    """All lists k_1 v_1 ... k_K v_K [S, 2 (K + rewrites)], the keys that are written again behind the others."""
    written = pairs + rewrites
    keys = np.array(list(itertools.permutations(range(1, half), pairs)))
    again = np.array(list(itertools.permutations(range(pairs), rewrites)), dtype=np.int64)
    keys = np.concatenate([np.repeat(keys, len(again), axis=0), keys[:, again].reshape(len(keys) * len(again), rewrites)], axis=1)
    values = np.array(list(itertools.permutations(range(half, 2 * half), written)))
    lists = np.empty((len(keys), len(values), written, 2), dtype=np.int64)
    lists[..., 0], lists[..., 1] = keys[:, None], values
    return lists.reshape(-1, 2 * written)


def _by(num_pairs: Sequence[int], values: Sequence[float]) -> list[tuple[int, list[float]]]:
    """The values of the examples of each number of pairs."""
    both = list(zip(num_pairs, values, strict=True))
    return [(pairs, [value for k, value in both if k == pairs]) for pairs in sorted(set(num_pairs))]


def _mean(metric: str, split: str, place: dict[str, int | float | str], examples: Sequence[float]) -> Measurement:
    return Measurement(metric, sum(examples) / len(examples), split, place, len(examples), tuple(examples))
