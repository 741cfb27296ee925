"""The word problem of a finite group: which element is the product so far? (Merrill et al. 2024, arXiv 2404.08819)"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tasks.state_tracking.groups import ORDERS, Group, multiplication_table, permutations_of
from tasks.state_tracking.prefix import PrefixTask
from tasks.synthetic.blocks import BLOCK, Drawn
from tasks.task import Batch


class WordProblem(PrefixTask):
    """BEGIN, then uniform elements g_1 g_2 ... of a group; the target at g_t is the product g_1 g_2 ... g_t.

    An element is a permutation of points, and g_1 acts first. Elements are numbered in lexicographic order, so the identity
    is 0; it is asked at BEGIN. The definition is that of github.com/jopetty/word-problem, which also has a beginning of its
    own, but draws sequences once, without repetition: here they are without end unless num_train says how many there are.

    The word problems of A5 and S5, which are not solvable groups, are complete for NC1: no model of fixed depth whose
    transitions are diagonal is known to follow them at all lengths. S3, Z60 and A4xZ5 are solvable groups; Z60 and A4xZ5 have
    as many elements as A5.
    """

    class Settings(PrefixTask.Settings, kw_only=True):
        group: Group

        @property
        def num_symbols(self) -> int:
            return ORDERS[self.group]

    type = "word_problem"
    version = 1

    settings: Settings

    def __init__(self, settings: Settings, *, seed: int) -> None:
        super().__init__(settings, seed=seed)
        self.num_answers = self.num_symbols

    def draw(self, rng: np.random.Generator, split: str, stream: int) -> Drawn:
        """Tokens and targets [BLOCK, T], of one byte each: 2**16 tokens still make small blocks."""
        tokens = rng.integers(self.num_symbols, size=(stream, BLOCK), dtype=np.uint8)
        tokens[0] = self.num_symbols
        table = multiplication_table(self.settings.group).astype(np.uint8)
        targets = np.zeros_like(tokens)
        for t in range(1, stream):
            targets[t] = table[targets[t - 1], tokens[t]]
        return np.ascontiguousarray(tokens.T), np.ascontiguousarray(targets.T)

    def oracle(self, batch: Batch) -> Tensor:
        """Predictions [B, T] from the tokens alone: every point is followed on its way, and no element is multiplied."""
        elements = permutations_of(self.settings.group)
        numbers = {element.tobytes(): number for number, element in enumerate(elements)}
        moves = np.concatenate([elements, elements[:1]])  # BEGIN moves nothing
        points, answers = np.tile(elements[0], (len(batch.tokens), 1)), []
        for token in batch.tokens.numpy().T:
            points = np.take_along_axis(moves[token], points, axis=1)
            answers.append([numbers[each.tobytes()] for each in points])
        return torch.tensor(answers).T
