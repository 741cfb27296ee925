"""Many stacks at once (Kimi Linear, arXiv 2510.26692, Sec. 5.1): what was pushed last and is not popped yet?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from conf.settings import Refusal, within
from tasks.synthetic.answers import AnswerTask
from tasks.synthetic.blocks import BLOCK, Drawn
from tasks.task import IGNORE, Batch

PUSH, POP = 0, 1


class Stack(AnswerTask):
    """seq_len / 3 operations of three tokens: <push> id x puts x on stack id, <pop> id x takes x from it.

    The target at the id of a pop is x, which is the next token; nothing else is asked. An operation is a push or a pop by a
    fair coin, and a push where all stacks are empty. A push takes a uniform stack and a uniform symbol, a pop a uniform one
    of the stacks that are not empty, so no empty stack is popped. The paper states the tokens, the 64 stacks and lengths of
    256 ... 2048 tokens, but not how operations are drawn.

    Ids: PUSH, POP, then num_stacks stacks, then num_symbols symbols.
    """

    class Settings(AnswerTask.Settings, kw_only=True):
        # 32 operations of at least 2 bits each: so many examples that no two streams share one.
        seq_len: Annotated[int, within(96, 2**16)]
        num_stacks: Annotated[int, within(1, 1024)]
        num_symbols: Annotated[int, within(8, 2**14)]

        def __post_init__(self) -> None:
            if self.seq_len % 3:
                raise Refusal("seq_len", self.seq_len, "multiples of 3, of three tokens an operation")

    type = "stack"
    version = 1

    settings: Settings

    def __init__(self, settings: Settings, *, seed: int) -> None:
        super().__init__(settings, seed=seed)
        self.num_stacks, self.num_symbols = settings.num_stacks, settings.num_symbols
        self.vocab_size = 2 + self.num_stacks + self.num_symbols

    def draw(self, rng: np.random.Generator, split: str, stream: int) -> Drawn:
        """Tokens [BLOCK, T]."""
        count, most = self.seq_len // 3, self.num_stacks
        pops = rng.integers(2, size=(count, BLOCK)).astype(bool)
        shares = rng.random((count, BLOCK))
        symbols = rng.integers(self.num_symbols, size=(count, BLOCK))
        stacks = np.empty((count, BLOCK), dtype=np.int64)
        # A stack is a chain of pushes: the operation that its top stems from, -1 where it is empty, and what lies below each.
        top, below = np.full(BLOCK * most, -1), np.empty((count, BLOCK), dtype=np.int64)
        # All stacks of an example in some order, those first that are not empty.
        order, filled = np.tile(np.arange(most), BLOCK), np.zeros(BLOCK, dtype=np.int64)
        rows, own = np.arange(BLOCK), most * np.arange(BLOCK)
        for t in range(count):
            pops[t] &= filled > 0
            place = own + (shares[t] * np.where(pops[t], filled, most)).astype(np.int64)
            stacks[t] = stack = order[place]
            below[t] = here = top[own + stack]
            symbols[t] = np.where(pops[t], symbols[here, rows], symbols[t])
            top[own + stack] = left = np.where(pops[t], below[here, rows], t)
            change = (left >= 0).astype(np.int64) - (here >= 0)
            # A stack that is filled changes places with the first empty one, one that becomes empty with the last filled one.
            other = np.where(change == 0, place, own + np.minimum(filled, filled + change))
            order[place], order[other] = order[other], stack
            filled += change
        tokens = np.stack([pops, 2 + stacks, 2 + most + symbols], axis=-1).astype(np.int16)
        return (tokens.swapaxes(0, 1).reshape(BLOCK, -1),)

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        (tokens,) = (torch.from_numpy(part).long() for part in self.drawn(split, indices))
        targets = torch.full_like(tokens, IGNORE)
        targets[:, 1::3] = torch.where(tokens[:, 0::3] == POP, tokens[:, 2::3], IGNORE)
        return Batch(tokens, targets)

    def oracle(self, batch: Batch) -> Tensor:
        """Predictions [B, T] from the tokens alone, the stacks kept as lists."""
        answers = torch.zeros_like(batch.tokens)
        for row, tokens in enumerate(batch.tokens.tolist()):
            stacks: defaultdict[int, list[int]] = defaultdict(list)
            for t in range(0, len(tokens), 3):
                operation, stack, symbol = tokens[t : t + 3]
                if operation == PUSH:
                    stacks[stack].append(symbol)
                else:
                    answers[row, t + 1] = stacks[stack].pop()
        return answers
