"""Selective gaps: a grammar's state is followed across gaps, longer ones in the test (SelectivBench, arXiv 2601.12598)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from conf.settings import Refusal, Share, within
from tasks.state_tracking.grammar import Grammar, random_grammar
from tasks.state_tracking.spaces import large_space, shortest_with
from tasks.synthetic.answers import AnswerTask
from tasks.synthetic.blocks import BLOCK, Drawn, DrawnOnce, Space
from tasks.task import IGNORE, Batch

LONGEST = 2**16
# Keys the grammar's random numbers, where those of examples have the number of their stream, which is smaller.
GRAMMAR = 2**32

Factors = Annotated[
    tuple[Annotated[int, within(1, 1000)], ...],
    Meta(min_length=1, max_length=16, description="lists of 1 to 16 whole numbers from 1 to 1000, such as [1,2]"),
]


class SelectiveGaps(AnswerTask):
    """Symbols of a random finite-state grammar, with gaps between them; the target at every symbol is the grammar's state.

    Each of num_symbols symbols is shown by `depth` states. Behind a state each symbol may follow with the chance `density`,
    and then leads to a fixed state among those that show it; see tasks/state_tracking/grammar.py. So the state is a matter
    of all symbols since the first, and gaps must change nothing. The grammar depends on the seed alone: a model learns it.

    A string has seq_len / (1 + max_gap) symbols. A symbol is followed by a gap with the chance gap_share: 1 ... max_gap
    tokens, equally likely, in training and validation, and max_gap times a number of test_gaps in the test. What is left of
    seq_len, and of the longest test example, is gap too. A token of a gap is BLANK, or with the chance `noise` a uniform one of
    num_symbols ids that no grammar has. In the test the slice "gap" is the factor; consecutive examples take them in turn.

    Ids: BLANK is 0, then num_symbols noise ids, num_symbols symbols, and num_symbols * depth states.

    Tasks 2 and 4 of SelectivBench are one here (its sizes: 40 symbols in 40 states each, density 0.4, 4 starts, strings of
    200 symbols, gaps of 1 ... 10 steps behind every symbol, noise 0.2, test gaps of 10, 20, 50 and 100 steps). It differs in
    four things. Its inputs are one-hot vectors, zeros in a gap, and its noise is uniform in [0, 0.2) on every number; ids have
    no such noise. It also asks within gaps, and takes a vote over a symbol and its gap. It joins strings, each ended by a
    symbol of its own, to the full length; here a string is as long as the example. Two of its starts may show one symbol.

    All splits share a hash of the symbols, so no two splits have a string in common, under any seed.
    """

    class Settings(AnswerTask.Settings, kw_only=True):
        seq_len: Annotated[int, within(1, LONGEST)]
        num_symbols: Annotated[int, within(2, 256)]
        depth: Annotated[int, within(1, 64)]
        density: Share
        num_starts: Annotated[int, within(1, 256)]
        max_gap: Annotated[int, within(1, 4096)]
        gap_share: Share
        noise: Share
        test_gaps: Factors

        def __post_init__(self) -> None:
            # At least two symbols may follow every state.
            shortest = (1 + shortest_with(2)) * (1 + self.max_gap)
            if self.seq_len < shortest:
                raise Refusal("seq_len", self.seq_len, f"whole numbers from {shortest}, with gaps of {self.max_gap}")
            if self.num_starts > self.num_symbols:
                raise Refusal("num_starts", self.num_starts, f"whole numbers up to num_symbols, here {self.num_symbols}")
            if len(set(self.test_gaps)) < len(self.test_gaps):
                raise Refusal("test_gaps", self.test_gaps, "lists of different numbers", fault="repeats a number")
            if self.test_len > LONGEST:
                most = (LONGEST // self.string_len - 1) // self.max_gap
                raise Refusal("test_gaps", self.test_gaps, f"factors up to {most}, for tests of at most {LONGEST} tokens")

        @property
        def string_len(self) -> int:
            return self.seq_len // (1 + self.max_gap)

        @property
        def test_len(self) -> int:
            return self.string_len * (1 + self.max_gap * max(self.test_gaps))

    type = "selective_gaps"
    version = 1

    settings: Settings

    def __init__(self, settings: Settings, *, seed: int) -> None:
        super().__init__(settings, seed=seed)
        self.num_symbols, self.depth = settings.num_symbols, settings.depth
        self.symbol, self.state = 1 + self.num_symbols, 1 + 2 * self.num_symbols
        self.vocab_size = self.state + self.num_symbols * self.depth
        self._grammar = DrawnOnce(self._draw_grammar)

    @property
    def grammar(self) -> Grammar:
        return self._grammar()

    def streams(self, split: str) -> tuple[int, ...]:
        return self.settings.test_gaps if split == "test" else (0,)

    def space(self, stream: int) -> Space:
        return large_space(2 ** (min(self.settings.string_len, 64) - 1))

    def marks(self, drawn: Drawn, stream: int) -> np.ndarray:
        return drawn[0] // self.depth

    def draw(self, rng: np.random.Generator, split: str, stream: int) -> Drawn:
        """States [BLOCK, string_len], the gap behind each, and the number of an example's noise [BLOCK]."""
        shape, most = (BLOCK, self.settings.string_len), self.settings.max_gap
        states = self.grammar.strings(rng, *shape)
        lengths = rng.integers(1, most + 1, size=shape) if stream == 0 else most * stream
        gaps = np.where(rng.random(shape) < self.settings.gap_share, lengths, 0)
        return states.astype(np.int16), gaps, rng.integers(2**64, size=BLOCK, dtype=np.uint64)

    def _draw_grammar(self) -> Grammar:
        own, rng = self.settings, np.random.Generator(np.random.Philox(key=[self.seed, GRAMMAR]))
        return random_grammar(rng, num_symbols=own.num_symbols, depth=own.depth, density=own.density, num_starts=own.num_starts)

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        states, gaps, noises = self.drawn(split, indices)
        tokens = np.zeros((len(states), self.settings.test_len if split == "test" else self.seq_len), dtype=np.int64)
        targets = np.full_like(tokens, IGNORE)
        for row, number in zip(tokens, noises.tolist(), strict=True):
            self._make_noise(np.random.Generator(np.random.Philox(key=number)), row)
        places = np.arange(self.settings.string_len) + gaps.cumsum(axis=1) - gaps
        np.put_along_axis(tokens, places, self.symbol + states // self.depth, axis=1)
        np.put_along_axis(targets, places, self.state + states, axis=1)
        factors = self.settings.test_gaps
        slices = {"gap": [factors[i % len(factors)] for i in indices]} if split == "test" else {}
        return Batch(torch.from_numpy(tokens), torch.from_numpy(targets), slices=slices)

    def _make_noise(self, rng: np.random.Generator, row: np.ndarray) -> None:
        """Noise for a whole example [T], drawn when it is asked for: a block without it stays small."""
        places = np.flatnonzero(rng.random(len(row), dtype=np.float32) < self.settings.noise)
        row[places] = rng.integers(1, 1 + self.num_symbols, size=len(places))

    def oracle(self, batch: Batch) -> Tensor:
        """Predictions [B, T] from the tokens alone and the grammar: the first symbol says the start, each other one a step."""
        follows, starts = self.grammar.follows, self.grammar.starts
        start_of = np.zeros(self.num_symbols, dtype=np.int64)
        start_of[starts // self.depth] = starts
        symbols = batch.tokens.numpy() - self.symbol
        state = np.full(len(symbols), -1)
        answers = np.empty(symbols.shape, dtype=np.int64)
        for t, symbol in enumerate(symbols.T):
            rows = np.flatnonzero((symbol >= 0) & (symbol < self.num_symbols))
            before, shown = state[rows], symbol[rows]
            state[rows] = np.where(before < 0, start_of[shown], follows[before, shown])
            answers[:, t] = self.state + np.maximum(state, 0)
        return torch.from_numpy(answers)
