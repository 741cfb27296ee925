"""The backbone for vectors in the place of ids: what in-context regression is asked of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbone import Backbone
from models.backbone.blocks import Size
from models.mixer import SequenceMixer


class Regressor(Backbone):
    """Vectors [B, T, input_dim] to vectors [B, T, output_dim]; the loss is the squared error, the mean over output_dim."""

    def __init__(self, size: Size, mixers: Sequence[SequenceMixer], *, input_dim: int, output_dim: int) -> None:
        super().__init__(size, mixers, embedding=nn.Linear(input_dim, size.d_model, bias=False))
        self.readout = nn.Linear(size.d_model, output_dim, bias=False)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens)

    def head(self, features: Tensor) -> Tensor:
        return self.readout(features)

    def head_flops_per_token(self) -> float:
        return 2.0 * (self.embedding.weight.numel() + self.readout.weight.numel())

    def mean_loss(self, features: Tensor, targets: Tensor) -> Tensor:
        answers = self.head(features).to(targets.dtype)
        # The sum over no answers is 0, and so is its gradient; a mean would be neither.
        return F.mse_loss(answers, targets) if len(targets) else answers.sum()

    @torch.no_grad()
    def score(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        answers = self.head(features).to(targets.dtype)
        return (answers - targets).square().mean(-1), answers

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        super().reset_parameters(seed)
        # Zero, so that the first answers are those of knowing nothing.
        nn.init.zeros_(self.readout.weight)
