"""A base for synthetic tasks: examples are drawn in blocks, each block a pure function of its number."""

from __future__ import annotations

import functools
import threading
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from torch import Tensor

from conf.settings import Count, Neutral, within
from tasks.synthetic.splits import TINY, belongs, belongs_of
from tasks.task import Batch, Task

BLOCK = 256  # examples drawn at once
MOST_TRAIN = 10_000_000  # training examples that are kept in memory
MAX_BARREN = 100  # blocks of candidates without one for the split, after which there is taken to be none

Drawn = tuple[np.ndarray, ...]
"""Examples in as many arrays as the task likes, e.g. tokens and targets, each [N, ...]."""


@dataclass(frozen=True)
class Space:
    """How many different examples a stream can give, and all their marks [size, M], asked for where size is at most TINY.

    scarce: the setting that decides the size and what is wrong with it, e.g. "task.vocab_size=4 is too small".
    """

    size: int
    marks: Callable[[], np.ndarray]
    scarce: str


class BlockTask(Task):
    """A task whose examples are drawn, BLOCK at a time, from numbered streams of random numbers.

    A new task declares its settings, draws BLOCK examples, makes a batch of them, answers from the tokens alone and scores:

        class Parity(BlockTask):
            class Settings(BlockTask.Settings, kw_only=True):   # the values stand in conf/task/parity.yaml
                test_seq_len: Count

            type, version, vocab_size = "parity.Parity", 1, 3

            def draw(self, rng, split, stream):
                tokens = rng.integers(2, size=(BLOCK, self.length(split)))
                tokens[:, 0] = BEGIN
                return (tokens,)

            def batch(self, split, indices):
                (tokens,) = map(torch.from_numpy, self.drawn(split, indices))
                return Batch(tokens, tokens.cumsum(1) % 2)

            def oracle(self, batch): ...
            def measure(self, split, scored): ...
            def references(self, split, *, reach): ...

    By default every split draws from a stream of its own. Discrete examples can coincide in two streams: then `streams`,
    `marks` and `space` let all splits share a stream, and a hash of each example says to which split it belongs, under any
    seed; tasks/parity.py has all three. tests/tasks/test_laws.py tests the new task without a new test.

    A stream is a Philox generator keyed by (seed, stream) and counted by the block.
    version: one more than the class says where a stream has at most TINY different examples, since another hash deals them out.
    """

    class Settings(Task.Settings, kw_only=True):
        num_validation: Count
        num_test: Count

    settings: Settings
    splits = ("train", "validation", "test")
    cached_blocks = 32  # of each stream: as many as threads that make batches ahead may read at a time

    def __init__(self, settings: Settings, *, seed: int) -> None:
        super().__init__(settings, seed=seed)
        streams = {stream for split in self.splits for stream in self.streams(split)}
        self.version = type(self).version + any(map(self.few, streams))
        self._belongs = functools.cache(self._rule)
        # Neighbouring indices share a block; the cache changes how fast an example is had, not what it is.
        self._block = functools.lru_cache(maxsize=self.cached_blocks * len(streams))(
            lambda split, stream, block: DrawnOnce(lambda: self._draw_block(split, stream, block))
        )

    @abstractmethod
    def draw(self, rng: np.random.Generator, split: str, stream: int) -> Drawn:
        """BLOCK examples from a stream, or candidates for them where a hash says which are of the split."""

    @abstractmethod
    def oracle(self, batch: Batch) -> Tensor:
        """The best predictions from the tokens alone, as `Scored.prediction`."""

    def streams(self, split: str) -> tuple[int, ...]:
        """The streams of consecutive examples, in turn."""
        return (self.splits.index(split),)

    def space(self, stream: int) -> Space | None:
        """The examples that a stream of all splits can give. None where each split has streams of its own."""
        return None

    def marks(self, drawn: Drawn, stream: int) -> np.ndarray:
        """Whole numbers [N, M] that tell candidates of a stream apart: no two splits have a row of them in common."""
        return drawn[0]

    def num_examples(self, split: str) -> int | None:
        return {"train": None, "validation": self.settings.num_validation, "test": self.settings.num_test}[split]

    def check(self) -> None:
        # Where there are more, a split without examples would need a hash that misses a quarter of all numbers.
        for split in self.splits:
            for stream in filter(self.few, self.streams(split)):
                self.block(split, stream, 0)

    def drawn(self, split: str, indices: Sequence[int]) -> Drawn:
        """The examples at these indices."""
        streams = self.streams(split)
        turns, places = np.divmod(np.asarray(indices, dtype=np.int64), len(streams))
        blocks, rows = np.divmod(turns, BLOCK)
        found: Drawn = ()
        for place, block in set(zip(places.tolist(), blocks.tolist(), strict=True)):
            mine = (places == place) & (blocks == block)
            drawn = self.block(split, streams[place], block)
            found = found or tuple(np.empty((len(turns), *part.shape[1:]), part.dtype) for part in drawn)
            for whole, part in zip(found, drawn, strict=True):
                whole[mine] = part[rows[mine]]
        return found

    def example(self, split: str, index: int) -> Drawn:
        """One example, each array without its first dimension."""
        return tuple(part[0] for part in self.drawn(split, [index]))

    def block(self, split: str, stream: int, block: int) -> Drawn:
        return self._block(split, stream, block)()

    def _draw_block(self, split: str, stream: int, block: int) -> Drawn:
        """The first BLOCK candidates of the block's random numbers that are of the split."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, stream], counter=[0, 0, 0, block]))
        space = self.space(stream)
        if space is None:
            return self.draw(rng, split, stream)
        parts, found = [], 0
        while found < BLOCK:
            drawn = self.draw(rng, split, stream)
            mine = self._belongs(stream)(self.marks(drawn, stream), split)
            parts.append([part[mine] for part in drawn])
            found += int(mine.sum())
            if not found and len(parts) == MAX_BARREN:
                raise ValueError(f"{space.scarce}: no example is left for {split}")
        return tuple(np.concatenate(part)[:BLOCK] for part in zip(*parts, strict=True))

    def few(self, stream: int) -> bool:
        """Whether all examples of a stream can be listed, and are dealt out to the splits one by one."""
        space = self.space(stream)
        return space is not None and space.size <= TINY

    def _rule(self, stream: int) -> Callable[[np.ndarray, str], np.ndarray]:
        """What says which marks are of a split."""
        return belongs_of(self.space(stream).marks()) if self.few(stream) else belongs


class FiniteTask(BlockTask):
    """A BlockTask whose training split may end: num_train examples, the first of those without end, read anew every epoch."""

    class Settings(BlockTask.Settings, kw_only=True):
        """num_train: None for training examples without end."""

        num_train: Annotated[Annotated[int, within(1, MOST_TRAIN)] | None, Neutral(None)]

    settings: Settings

    def __init__(self, settings: Settings, *, seed: int) -> None:
        super().__init__(settings, seed=seed)
        self._train = DrawnOnce(lambda: BlockTask.drawn(self, "train", range(settings.num_train or 0)))

    def num_examples(self, split: str) -> int | None:
        return self.settings.num_train if split == "train" else super().num_examples(split)

    def drawn(self, split: str, indices: Sequence[int]) -> Drawn:
        if split == "train" and self.settings.num_train is not None:
            # All of them are kept: every epoch reads them in another order.
            return tuple(part[np.asarray(indices)] for part in self._train())
        return super().drawn(split, indices)


class DrawnOnce:
    """Draws when it is first called, and only once, however many threads call."""

    def __init__(self, draw: Callable[[], Any]) -> None:
        self._draw, self._lock, self._drawn = draw, threading.Lock(), None

    def __call__(self) -> Any:
        with self._lock:
            if self._drawn is None:
                self._drawn = self._draw()
        return self._drawn
