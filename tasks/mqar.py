"""Multi-query associative recall: pairs of keys and values, then some of the keys again (Arora et al. 2023, Zoology)."""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from conf.settings import Count, Neutral, Positive, Refusal
from tasks.reachable import reachable
from tasks.sampling import first_smallest, first_smallest_uniform
from tasks.splits import TINY, belongs, belongs_of
from tasks.task import IGNORE, Batch, Measurement, Scored, Task

BLOCK = 256  # examples drawn at once
CACHED_BLOCKS = 32  # of each K: as many as threads that make batches ahead may read at a time
MAX_BARREN = 100  # blocks of candidates without one for the split, until it is clear that there is none
FILLER = 0


class _DrawnOnce:
    """What is drawn when it is first asked for, and once, however many threads ask."""

    def __init__(self, draw: Callable[[], Any]) -> None:
        self._draw, self._lock, self._drawn = draw, threading.Lock(), None

    def __call__(self) -> Any:
        with self._lock:
            if self._drawn is None:
                self._drawn = self._draw()
        return self._drawn


class MQAR(Task):
    """k_1 v_1 ... k_K v_K, then (T - 2K) / 2 slots of two tokens; K different slots begin with one key each.

    The target at a repeated key is its value, at that same position; nothing else is asked. Keys come from
    1 ... vocab_size/2 - 1 and values from vocab_size/2 ... vocab_size - 1, both without repetition in an example. The
    key k_j is asked in the j-th of K slots drawn without replacement, slot i with weight (i + 1)^(power_a - 1).

    Every example is drawn from a Philox generator keyed by (seed, K) and counted by the block of the index. All splits
    share this stream: a hash of the pairs k_1 v_1 ... k_K v_K says to which split an example belongs, so no two splits
    have a list of pairs in common, under any seed. Where a K has no more than TINY lists the hash is another one, and the
    version 2.

    num_pairs: the K of consecutive examples, in turn.
    num_train: None for training examples without end, or how many there are, read anew every epoch (Arora et al.: 100,000).
    random_non_queries: whether other places hold uniform tokens, which may be keys or values of the example too (the
    first occurrence of a key is always its pair), or FILLER.
    """

    class Settings(Task.Settings, kw_only=True):
        vocab_size: Count
        seq_len: Count
        num_pairs: Annotated[tuple[Count, ...], Meta(min_length=1, description="lists of whole numbers from 1, such as [4,8]")]
        power_a: Positive
        random_non_queries: bool
        num_validation: Count
        num_test: Count
        num_train: Annotated[Count | None, Neutral(None)]

        def __post_init__(self) -> None:
            most = max(self.num_pairs)
            if self.seq_len % 2 or self.seq_len < 4 * most:
                raise Refusal("seq_len", self.seq_len, f"even numbers of at least 4 times num_pairs, here {4 * most}")
            if self.vocab_size // 2 - 1 < most:
                raise Refusal("vocab_size", self.vocab_size, f"whole numbers from {2 * most + 2}, for {most} different keys")

    type = "mqar.MQAR"
    splits = ("train", "validation", "test")

    def __init__(self, settings: Settings, *, seed: int) -> None:
        super().__init__(settings, seed=seed)
        self.vocab_size, self.seq_len, self.num_pairs = settings.vocab_size, settings.seq_len, settings.num_pairs
        num_validation, num_test = settings.num_validation, settings.num_test
        self._num_examples = {"train": settings.num_train, "validation": num_validation, "test": num_test}
        self.version = 2 if any(self._num_lists(pairs) <= TINY for pairs in self.num_pairs) else 1
        # Neighbouring indices share a block; the cache changes how fast an example is had, not what it is.
        self._cached = functools.lru_cache(maxsize=CACHED_BLOCKS * len(self.num_pairs))(self._undrawn)
        self._belongs = functools.cache(self._rule)
        # All training examples of a bounded split: every epoch reads them all, in another order.
        self._whole_train = _DrawnOnce(lambda: self._drawn("train", range(settings.num_train)))

    def check(self) -> None:
        for split, pairs in itertools.product(self.splits, self.num_pairs):
            self._block(split, pairs, 0)

    def _rule(self, pairs: int) -> Callable[[np.ndarray, str], np.ndarray]:
        """What says which lists of so many pairs are of a split."""
        return belongs_of(self._lists(pairs)) if self._num_lists(pairs) <= TINY else belongs

    def _num_lists(self, pairs: int) -> int:
        half = self.vocab_size // 2
        return math.perm(half - 1, pairs) * math.perm(half, pairs)

    def _lists(self, pairs: int) -> np.ndarray:
        """All lists k_1 v_1 ... k_K v_K [S, 2 K]."""
        half = self.vocab_size // 2
        keys, values = (np.array(list(itertools.permutations(ids, pairs))) for ids in (range(1, half), range(half, 2 * half)))
        lists = np.empty((len(keys), len(values), pairs, 2), dtype=np.int64)
        lists[..., 0], lists[..., 1] = keys[:, None], values
        return lists.reshape(-1, 2 * pairs)

    def _block(self, split: str, num_pairs: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        return self._cached(split, num_pairs, block)()

    def _undrawn(self, split: str, num_pairs: int, block: int) -> _DrawnOnce:
        return _DrawnOnce(lambda: self._draw_block(split, num_pairs, block))

    def num_examples(self, split: str) -> int | None:
        return self._num_examples[split]

    def example(self, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and targets [T] of one example."""
        turn, place = divmod(index, len(self.num_pairs))
        tokens, targets = self._block(split, self.num_pairs[place], turn // BLOCK)
        return tokens[turn % BLOCK], targets[turn % BLOCK]

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        if split == "train" and self._num_examples["train"] is not None:
            whole = self._whole_train()
            slices = {"num_pairs": [whole.slices["num_pairs"][i] for i in indices]}
            chosen = torch.as_tensor(indices)
            return Batch(whole.tokens[chosen], whole.targets[chosen], slices=slices)
        return self._drawn(split, indices)

    def _drawn(self, split: str, indices: Sequence[int]) -> Batch:
        turns, places = np.divmod(np.asarray(indices, dtype=np.int64), len(self.num_pairs))
        blocks, rows = np.divmod(turns, BLOCK)
        tokens = np.empty((len(turns), self.seq_len), dtype=np.int64)
        targets = np.empty_like(tokens)
        for place, block in sorted(set(zip(places.tolist(), blocks.tolist(), strict=True))):
            mine = (places == place) & (blocks == block)
            drawn = self._block(split, self.num_pairs[place], block)
            tokens[mine], targets[mine] = (part[rows[mine]] for part in drawn)
        slices = {"num_pairs": [self.num_pairs[place] for place in places.tolist()]}
        return Batch(torch.from_numpy(tokens), torch.from_numpy(targets), slices=slices)

    def _draw_block(self, split: str, num_pairs: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and targets [BLOCK, T]: the first candidates of the block's stream whose pairs belong to the split."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, num_pairs], counter=[0, 0, 0, block]))
        parts, found = [], 0
        while found < BLOCK:
            tokens, targets = self._draw(rng, num_pairs)
            mine = self._belongs(num_pairs)(tokens[:, : 2 * num_pairs], split)
            parts.append((tokens[mine], targets[mine]))
            found += int(mine.sum())
            if not found and len(parts) == MAX_BARREN:
                raise ValueError(
                    f"task.vocab_size={self.vocab_size} is too small: no list of {num_pairs} pairs is left for {split}"
                )
        tokens, targets = (np.concatenate(part)[:BLOCK] for part in zip(*parts, strict=True))
        return tokens, targets

    def _draw(self, rng: np.random.Generator, num_pairs: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and targets [BLOCK, T] of candidates for any split."""
        num_slots = self.seq_len // 2 - num_pairs
        half = self.vocab_size // 2
        keys = 1 + first_smallest_uniform(rng, (BLOCK, half - 1), num_pairs)
        values = half + first_smallest_uniform(rng, (BLOCK, half), num_pairs)
        # The order in which exponential clocks of these rates ring is weighted drawing without replacement.
        slots = first_smallest(rng.exponential(size=(BLOCK, num_slots)) / self._rates(num_slots), num_pairs)
        shape = (BLOCK, self.seq_len)
        tokens = rng.integers(self.vocab_size, size=shape) if self.settings.random_non_queries else np.full(shape, FILLER)
        targets = np.full(shape, IGNORE)
        tokens[:, 0 : 2 * num_pairs : 2], tokens[:, 1 : 2 * num_pairs : 2] = keys, values
        queries = 2 * num_pairs + 2 * slots
        np.put_along_axis(tokens, queries, keys, axis=1)
        np.put_along_axis(targets, queries, values, axis=1)
        return tokens, targets

    def _rates(self, num_slots: int) -> np.ndarray:
        return np.arange(1, num_slots + 1) ** (self.settings.power_a - 1)

    def oracle(self, batch: Batch) -> Tensor:
        """Predictions [B, T] from the tokens alone: what followed the first occurrence of the present token.

        Right wherever something is asked; meaningless elsewhere.
        """
        first = (batch.tokens[:, :, None] == batch.tokens[:, None, :]).int().argmax(dim=2)
        return batch.tokens.gather(1, (first + 1).clamp(max=self.seq_len - 1))

    def measure(self, split: str, scored: Iterable[Scored]) -> list[Measurement]:
        """accuracy and nll: means over examples of their means over what is asked; overall and by num_pairs."""
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
            for pairs in sorted(set(self.num_pairs)):
                chosen = [value for value, k in zip(values, num_pairs, strict=True) if k == pairs]
                if chosen:
                    rows.append(_mean(metric, split, {"num_pairs": pairs}, chosen))
        return rows

    def references(self, split: str, *, reach: int | None) -> list[Measurement]:
        """By num_pairs: `chance`, any of the values shown, and `reachable_accuracy`, the most that can be expected.

        reach: how many tokens before the query can be seen, None for all; see tasks/reachable.py. Counted on the examples of
        the split (the first BLOCK of each K for "train").
        """
        indices = range(self.num_examples(split) or BLOCK * len(self.num_pairs))
        batch = self.batch(split, indices)
        best = reachable(
            batch,
            vocab_size=self.vocab_size,
            weights=self._rates(self.seq_len // 2),
            fill=1 / self.vocab_size if self.settings.random_non_queries else 0.0,
            reach=self.seq_len if reach is None else reach,
        )
        rows = []
        for pairs in sorted(set(self.num_pairs)):
            chosen = [value for value, k in zip(best, batch.slices["num_pairs"], strict=True) if k == pairs]
            if chosen:
                rows.append(Measurement("chance", 1 / pairs, split, {"num_pairs": pairs}, len(chosen)))
                rows.append(_mean("reachable_accuracy", split, {"num_pairs": pairs}, chosen))
        return rows


def _mean(metric: str, split: str, place: dict[str, int | float | str], examples: Sequence[float]) -> Measurement:
    return Measurement(metric, sum(examples) / len(examples), split, place, len(examples), tuple(examples))
