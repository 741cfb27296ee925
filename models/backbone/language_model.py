"""The backbone for tokens, with a tied embedding whose inputs are multiplied by sqrt(d_model), and soft-capped logits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbone import Backbone
from models.backbone.blocks import Size
from models.backends import chosen, load
from models.mixer import SequenceMixer
from models.ops import cross_entropy, embedding

PART_ELEMENTS, PART_ELEMENTS_GPU = 2**18, 2**25
"""Logits of a part of the vocabulary."""
FEWEST_TOKENS = 64


class LanguageModel(Backbone):
    """Ids [B, T] to next-token logits [B, T, vocab_size]; the loss is the negative log-likelihood in nats.

    vocab_size: number of token ids. size.logit_soft_cap: c in c * tanh(logits / c). ends: ids other than BOS that end a document.
    """

    embedding: nn.Embedding
    ends: frozenset[int] = frozenset()

    def __init__(self, size: Size, mixers: Sequence[SequenceMixer], *, vocab_size: int) -> None:
        super().__init__(size, mixers, embedding=nn.Embedding(vocab_size, size.d_model))
        self.vocab_size, self.logit_soft_cap = vocab_size, size.logit_soft_cap
        self.embedding_kernel = load(embedding, "torch")

    def embed(self, tokens: Tensor) -> Tensor:
        kernel, weight = self.embedding_kernel, self.embedding.weight
        rows = embedding.rows
        if kernel is not None and kernel.suits is not None and kernel.suits(tokens, weight):
            rows = kernel.computes
        return rows(tokens, weight) * math.sqrt(self.d_model)

    def head(self, features: Tensor) -> Tensor:
        return self.capped(F.linear(features, self.embedding.weight))

    def head_parts(self, features: Tensor) -> Iterator[Tensor]:
        """`head` of features [N, d_model], one part of the vocabulary after another: [N, part], which may be overwritten.

        The parts are so small that on a CPU what is worked out of each stays in its cache.
        """
        weight = self.embedding.weight
        return (self.capped(F.linear(features, weight[tokens])) for tokens in parts_of_vocabulary(len(weight), features))

    def capped(self, logits: Tensor) -> Tensor:
        return self.logit_soft_cap * torch.tanh(logits / self.logit_soft_cap)

    def head_flops_per_token(self) -> float:
        return 2.0 * self.embedding.weight.numel()

    @property
    def longest(self) -> int | None:
        """The most tokens that the model can read; None where there is no bound."""
        return None

    def mean_loss(self, features: Tensor, targets: Tensor) -> Tensor:
        mean_nll = chosen(cross_entropy, features) or cross_entropy.mean_nll
        return mean_nll(features, self.embedding.weight, targets, soft_cap=self.logit_soft_cap)

    def score(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return cross_entropy.score(features, self.embedding.weight, targets, soft_cap=self.logit_soft_cap)


def parts_of_vocabulary(size: int, features: Tensor) -> Iterator[slice]:
    """The ids from 0 to size - 1 in parts, for features [N, d_model]."""
    elements = PART_ELEMENTS_GPU if features.is_cuda else PART_ELEMENTS
    step = max(FEWEST_TOKENS, elements // max(1, len(features)))
    return (slice(first, min(first + step, size)) for first in range(0, size, step))
