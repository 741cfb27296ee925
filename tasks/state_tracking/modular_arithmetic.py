"""Modular arithmetic, without brackets and with them (Delétang et al. 2023, arXiv 2207.02098, App. A; modulus 5 there)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from conf.settings import Refusal, within
from tasks.state_tracking.single_question import SingleQuestionTask
from tasks.state_tracking.spaces import large_space
from tasks.state_tracking.trees import MINUS, PLUS, TIMES, Layout, grow, values
from tasks.synthetic.blocks import BLOCK, Drawn, Space
from tasks.synthetic.splits import TINY
from tasks.task import IGNORE, Batch

LONGEST = 2**12
SHORTEST = 5  # tokens of an expression
MOST_BANDS = 16
IN_BRACKETS = Layout(before=1, between=1, after=1, step=1, largest_leaf=4)


class ModularArithmetic(SingleQuestionTask):
    """An expression, "=", and padding; the value modulo `modulus` is asked at "=", and nothing else.

    Without brackets: numbers 0 ... modulus - 1 and operators +, -, * in turn, all uniform, a number at both ends. Products
    come first, then sums and differences from left to right: modulo 5, 1 + 2 * 3 is 2 and 1 - 1 - 1 is 4.

    With brackets: an expression of 1, 2, 3 or 4 tokens is d, -d, (d) or (-d) with a uniform number d; a longer one, of n
    tokens, is (left op right) with a uniform operator, where left has 1 ... n - 4 tokens, equally likely. Every operation
    has brackets of its own, so there is no precedence.

    An expression has SHORTEST ... T - 1 tokens, equally likely, without brackets an odd number of them. T is seq_len in
    training and validation and test_seq_len in the test, which has short ones too. Delétang et al. train on 1 ... 40 tokens,
    test every length up to 500 and print the mean above 40; here no split may have an expression of another, and those of
    fewer than SHORTEST tokens are too few for that. No BEGIN is needed: what tells a number behind + from one behind * also
    tells it from the first, which nothing precedes.

    Streams are numbered by T. A hash of the first seq_len tokens says to which split an example belongs, under any seed.

    The slice "length" is the tokens of the expression, brought up to the end of one of at most MOST_BANDS bands.
    """

    class Settings(SingleQuestionTask.Settings, kw_only=True):
        seq_len: Annotated[int, within(1, LONGEST)]
        test_seq_len: Annotated[int, within(1, LONGEST)]
        modulus: Annotated[int, within(2, 100)]
        brackets: bool

        def __post_init__(self) -> None:
            numbers = next(count for count in range(1, 64) if self.expressions(count) > TINY)
            shortest = 4 * numbers - 2 if self.brackets else 2 * numbers
            if self.seq_len < shortest:
                raise Refusal("seq_len", self.seq_len, f"whole numbers from {shortest}, so that no split is without examples")
            if self.test_seq_len < self.seq_len:
                raise Refusal("test_seq_len", self.test_seq_len, f"whole numbers from seq_len, here {self.seq_len}")

        def expressions(self, numbers: int) -> int:
            """How many expressions of one shape have so many numbers."""
            return self.modulus**numbers * 3 ** (numbers - 1)

    type = "modular_arithmetic"
    version = 1

    settings: Settings

    def __init__(self, settings: Settings, *, seed: int) -> None:
        super().__init__(settings, seed=seed)
        self.modulus, self.answers = settings.modulus, range(settings.modulus)
        # Operators are numbered from `operator`.
        self.operator, self.opening, self.closing = self.modulus, self.modulus + 3, self.modulus + 4
        self.equals, self.padding = self.modulus + 5, self.modulus + 6
        self.vocab_size = self.modulus + 7

    def streams(self, split: str) -> tuple[int, ...]:
        return (self.settings.test_seq_len if split == "test" else self.settings.seq_len,)

    def space(self, stream: int) -> Space:
        numbers = (self.seq_len + 2) // 4 if self.settings.brackets else self.seq_len // 2
        return large_space(self.settings.expressions(min(numbers, 64)))

    def marks(self, drawn: Drawn, stream: int) -> np.ndarray:
        return drawn[0][:, : self.seq_len]

    def draw(self, rng: np.random.Generator, split: str, stream: int) -> Drawn:
        """Tokens [BLOCK, T], the number of tokens before "=" [BLOCK], and the value [BLOCK]."""
        tokens, lengths, answers = (self._bracketed if self.settings.brackets else self._plain)(rng, stream)
        places = np.arange(stream)
        tokens[places == lengths[:, None]] = self.equals
        tokens[places > lengths[:, None]] = self.padding
        return tokens, lengths, answers

    def _plain(self, rng: np.random.Generator, length: int) -> Drawn:
        most = length // 2
        counts = rng.integers((SHORTEST + 1) // 2, most + 1, size=BLOCK)
        numbers = rng.integers(self.modulus, size=(BLOCK, most))
        operations = rng.integers(3, size=(BLOCK, most - 1))
        tokens = np.empty((BLOCK, length), dtype=np.int16)
        tokens[:, 0 : 2 * most : 2], tokens[:, 1 : 2 * most - 1 : 2] = numbers, self.operator + operations
        # What lies behind the end is + 0.
        behind = np.arange(most) >= counts[:, None]
        numbers[behind], operations[behind[:, 1:]] = 0, PLUS
        total, term = np.zeros(BLOCK, dtype=np.int64), numbers[:, 0]
        for number, operation in zip(numbers[:, 1:].T, operations.T, strict=True):
            product = operation == TIMES
            total = np.where(product, total, total + term)
            term = np.where(product, term * number, np.where(operation == MINUS, -number, number)) % self.modulus
        return tokens, 2 * counts - 1, (total + term) % self.modulus

    def _bracketed(self, rng: np.random.Generator, length: int) -> Drawn:
        sizes = rng.integers(SHORTEST, length, size=BLOCK)
        tokens = np.empty((BLOCK, length), dtype=np.int16)
        leaves = []
        levels = grow(rng, IN_BRACKETS, starts=np.zeros(BLOCK, dtype=np.int64), sizes=sizes)
        for level in levels:
            enclosed = level.sizes > 2
            ends = level.starts + level.sizes - 1
            tokens[level.rows[enclosed], level.starts[enclosed]] = self.opening
            tokens[level.rows[enclosed], ends[enclosed]] = self.closing
            tokens[level.rows[level.inner], level.middles] = self.operator + level.operations
            rows, starts, sizes_here = (part[~level.inner] for part in (level.rows, level.starts, level.sizes))
            numbers, negative = rng.integers(self.modulus, size=len(rows)), sizes_here % 2 == 0
            first = starts + (sizes_here > 2)
            tokens[rows, first + negative] = numbers
            tokens[rows[negative], first[negative]] = self.operator + MINUS
            leaves.append(np.where(negative, -numbers, numbers))
        return tokens, sizes, values(levels, leaves, self.modulus)

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        drawn = self.drawn(split, indices)
        tokens, lengths, answers = drawn
        targets = np.full(tokens.shape, IGNORE)
        targets[np.arange(len(lengths)), lengths] = answers
        return Batch(torch.from_numpy(tokens).long(), torch.from_numpy(targets), slices=self.slices(drawn))

    def slices(self, drawn: Drawn) -> dict[str, list[float]]:
        longest = self.settings.test_seq_len - 1
        width = -(-longest // MOST_BANDS)
        return {"length": np.minimum(-(-drawn[1] // width) * width, longest).tolist()}

    def oracle(self, batch: Batch) -> Tensor:
        """Predictions [B, T] from the tokens alone, each the value of what stands before the first "="."""
        found = [self._value(tokens[: tokens.index(self.equals)]) for tokens in batch.tokens.tolist()]
        return torch.tensor(found)[:, None].expand(batch.tokens.shape)

    def _value(self, expression: list[int]) -> int:
        """The value of one expression, read from left to right: a sum, a product that is to be added to it, what comes next."""
        outside: list[tuple[int, int, int]] = []
        total, product, operation, negative, waits = 0, 0, PLUS, False, True
        for token in expression:
            if token == self.opening:
                outside.append((total, product, operation))
                total, product, operation = 0, 0, PLUS
                continue
            if self.operator <= token < self.opening:
                # Where a number is waited for, a minus is its sign.
                operation, negative, waits = (operation, True, True) if waits else (token - self.operator, False, True)
                continue
            value = token
            if token == self.closing:
                value = total + product
                total, product, operation = outside.pop()
            value, negative, waits = -value if negative else value, False, False
            if operation == TIMES:
                product = product * value % self.modulus
            else:
                total, product = total + product, -value if operation == MINUS else value
        return (total + product) % self.modulus
