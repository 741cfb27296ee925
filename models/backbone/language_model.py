"""The backbone for tokens, with a tied embedding whose inputs are multiplied by sqrt(d_model), and soft-capped logits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbone import Backbone
from models.backends import chosen
from models.mixer import SequenceMixer
from models.ops import cross_entropy


class LanguageModel(Backbone):
    """Ids [B, T] to next-token logits [B, T, vocab_size]; the loss is the negative log-likelihood in nats.

    vocab_size: number of token ids. logit_soft_cap: c in c * tanh(logits / c).
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        d_model: int,
        mlp_dim: int,
        mixers: Sequence[SequenceMixer],
        norm_eps: float,
        logit_soft_cap: float,
    ) -> None:
        embedding = nn.Embedding(vocab_size, d_model)
        super().__init__(embedding=embedding, d_model=d_model, mlp_dim=mlp_dim, mixers=mixers, norm_eps=norm_eps)
        self.vocab_size, self.logit_soft_cap = vocab_size, logit_soft_cap

    def embed(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens) * math.sqrt(self.d_model)

    def head(self, features: Tensor) -> Tensor:
        logits = F.linear(features, self.embedding.weight)
        return self.logit_soft_cap * torch.tanh(logits / self.logit_soft_cap)

    def head_flops_per_token(self) -> float:
        return 2.0 * self.embedding.weight.numel()

    def mean_loss(self, features: Tensor, targets: Tensor) -> Tensor:
        mean_nll = chosen(cross_entropy, features) or cross_entropy.mean_nll
        return mean_nll(features, self.embedding.weight, targets, soft_cap=self.logit_soft_cap)

    def score(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return cross_entropy.score(features, self.embedding.weight, targets, soft_cap=self.logit_soft_cap)
