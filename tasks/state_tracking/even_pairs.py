"""Even pairs: is the number of changes between neighbours even? (Delétang et al. 2023, arXiv 2207.02098, App. A)"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tasks.state_tracking.prefix import PrefixTask
from tasks.synthetic.blocks import BLOCK, Drawn
from tasks.task import Batch


class EvenPairs(PrefixTask):
    """BEGIN, then uniform bits; the target at every bit is 0 if the pairs 01 and 10 so far are even in number, and 1 if odd.

    It is 0 where the bit equals the first one, so a model can remember the first bit or count changes modulo 2. The first
    bit asks for 0, as BEGIN does. Delétang et al. ask once, after the last bit; here every prefix is a question, as in parity.
    """

    class Settings(PrefixTask.Settings, kw_only=True):
        @property
        def num_symbols(self) -> int:
            return 2

    type = "even_pairs"
    version = 1
    num_answers = 2

    def draw(self, rng: np.random.Generator, split: str, stream: int) -> Drawn:
        """Tokens and targets [BLOCK, T], of one byte each."""
        tokens = rng.integers(2, size=(BLOCK, stream), dtype=np.uint8)
        targets = (tokens != tokens[:, 1:2]).astype(np.uint8)
        tokens[:, 0], targets[:, 0] = self.num_symbols, 0
        return tokens, targets

    def oracle(self, batch: Batch) -> Tensor:
        """Predictions [B, T] from the tokens alone: changes are counted, and the first bit is not remembered."""
        bits = batch.tokens[:, 1:]
        changes = (bits[:, 1:] != bits[:, :-1]).cumsum(dim=1)
        return torch.cat([torch.zeros_like(batch.tokens[:, :2]), changes % 2], dim=1)
