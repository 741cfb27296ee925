"""Mano: mental arithmetic on memorised tables (Allen-Zhu, Physics of Language Models 4.1; github.com/zhuzeyuan/PhysicsLM4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from conf.settings import Refusal, within
from tasks.state_tracking.single_question import SingleQuestionTask
from tasks.state_tracking.spaces import large_space
from tasks.state_tracking.trees import MINUS, PLUS, Layout, grow, values
from tasks.synthetic.blocks import BLOCK, Drawn, Space
from tasks.task import IGNORE, Batch

PREFIX = Layout(before=1, between=0, after=0, step=2, largest_leaf=1)


class Mano(SingleQuestionTask):
    """<bos> <length l> and a prefix expression of l operations, then <answer l>, which asks for its value modulo `modulus`.

    An expression of l operations is a uniform number where l = 0; otherwise one of +, -, *, a left part of 0 ... l - 1
    operations, equally likely, and a right part with the rest: 2 l + 1 tokens. <bos>, every operator, every <length l> and
    every <answer l> have two ids, one of which is taken by a coin, as in the source. Padding follows.

    l is 1 ... max_length, equally likely, in training and validation, and max_length in the test. Streams are numbered by the
    smallest l; a hash of the tokens says to which split an example belongs, under any seed. Every sum, difference and product
    of two numbers is nearly certain to stand in training: it has 16 spellings of length 1 alone, and is a part of all others.

    The slice "length" is l.
    """

    class Settings(SingleQuestionTask.Settings, kw_only=True):
        # With fewer, one split may be left without examples.
        max_length: Annotated[int, within(2, 1024)]
        modulus: Annotated[int, within(5, 1000)]

        def __post_init__(self) -> None:
            if self.seq_len < 2 * self.max_length + 4:
                raise Refusal("seq_len", self.seq_len, f"whole numbers from {2 * self.max_length + 4}, for max_length")

    type = "mano"
    version = 1

    settings: Settings

    def __init__(self, settings: Settings, *, seed: int) -> None:
        super().__init__(settings, seed=seed)
        self.modulus, self.answers, most = settings.modulus, range(settings.modulus), settings.max_length
        # Operation o is operator + o or operator + o + 3; the others have their two ids side by side.
        self.operator = self.modulus
        self.bos = self.operator + 6
        self.length_is = self.bos + 2
        self.answer = self.length_is + 2 * most
        self.padding = self.answer + 2 * most
        self.vocab_size = self.padding + 1

    def streams(self, split: str) -> tuple[int, ...]:
        return (self.settings.max_length if split == "test" else 1,)

    def space(self, stream: int) -> Space:
        operations = min(self.settings.max_length, 64)
        shapes = math.comb(2 * operations, operations) // (operations + 1)
        return large_space(8 * shapes * 6**operations * self.settings.modulus ** (operations + 1))

    def draw(self, rng: np.random.Generator, split: str, stream: int) -> Drawn:
        """Tokens [BLOCK, T], the number of operations [BLOCK], and the value [BLOCK]."""
        lengths = rng.integers(stream, self.settings.max_length + 1, size=BLOCK)
        rows, ends = np.arange(BLOCK), 2 * lengths + 3
        tokens = np.full((BLOCK, self.seq_len), self.padding, dtype=np.int16)
        coins = rng.integers(2, size=(3, BLOCK))
        tokens[:, 0] = self.bos + coins[0]
        tokens[:, 1] = self.length_is + 2 * (lengths - 1) + coins[1]
        tokens[rows, ends] = self.answer + 2 * (lengths - 1) + coins[2]
        leaves = []
        levels = grow(rng, PREFIX, starts=np.full(BLOCK, 2), sizes=2 * lengths + 1)
        for level in levels:
            places = level.rows[level.inner], level.starts[level.inner]
            tokens[places] = self.operator + level.operations + 3 * rng.integers(2, size=len(level.operations))
            numbers = rng.integers(self.modulus, size=int((~level.inner).sum()))
            tokens[level.rows[~level.inner], level.starts[~level.inner]] = numbers
            leaves.append(numbers)
        return tokens, lengths, values(levels, leaves, self.modulus)

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        drawn = self.drawn(split, indices)
        tokens, lengths, answers = drawn
        targets = np.full(tokens.shape, IGNORE)
        targets[np.arange(len(lengths)), 2 * lengths + 3] = answers
        return Batch(torch.from_numpy(tokens).long(), torch.from_numpy(targets), slices=self.slices(drawn))

    def slices(self, drawn: Drawn) -> dict[str, list[float]]:
        return {"length": drawn[1].tolist()}

    def oracle(self, batch: Batch) -> Tensor:
        """Predictions [B, T] from the tokens alone: what stands between <length l> and <answer l>, read from right to left."""
        found = [self._value(tokens[2 : 2 * ((tokens[1] - self.length_is) // 2) + 5]) for tokens in batch.tokens.tolist()]
        return torch.tensor(found)[:, None].expand(batch.tokens.shape)

    def _value(self, expression: list[int]) -> int:
        """The value of a prefix expression: from its end on, an operator takes the last two values that came."""
        known: list[int] = []
        for token in reversed(expression):
            if token < self.operator:
                known.append(token)
                continue
            left, right, operation = known.pop(), known.pop(), (token - self.operator) % 3
            result = left + right if operation == PLUS else left - right if operation == MINUS else left * right
            known.append(result % self.modulus)
        return known.pop()
