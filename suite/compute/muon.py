"""Muon for the matrices within blocks and AdamW for everything else, as one optimiser.

Muon (Jordan 2024, kellerjordan.github.io/posts/muon) takes the momentum of a matrix to about the nearest orthogonal one before
it steps. Its steps are scaled to the root mean square of AdamW's (Liu et al., Moonlight, arXiv 2502.16982), by which one
learning rate and one weight decay serve both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import torch
from torch import Tensor

from suite.compute.settings import Train

MOMENTUM = 0.95
"""Jordan's and Moonlight's."""


class MuonAdamW(torch.optim.Optimizer):
    """Two optimisers that share their groups and their state with this one, so that schedules and checkpoints see one alone.

    matrices: of two axes, for Muon. others: AdamW's groups, with weights of any shape. lr: AdamW's, a number or a tensor; Muon,
    which no CUDA graph holds, has a number.
    """

    def __init__(
        self, matrices: Iterable[Tensor], others: Iterable[Mapping[str, Any]], train: Train, *, lr: float | Tensor
    ) -> None:
        muon = torch.optim.Muon(
            matrices,
            lr=train.lr,
            weight_decay=train.weight_decay,
            momentum=MOMENTUM,
            nesterov=True,
            adjust_lr_fn="match_rms_adamw",
        )
        adamw = torch.optim.AdamW(list(map(dict, others)), lr=lr, betas=train.betas, eps=train.eps, fused=True)
        self.parts = muon, adamw
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        for part in self.parts:
            part.state = self.state

    @overload
    def step(self, closure: None = ...) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of both. closure: computes loss and gradients first, as torch's optimisers have it."""
        loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss


def begin_muon(optimizer: MuonAdamW) -> None:
    """Gives the matrices the state that Muon would make at its first step."""
    for group in optimizer.parts[0].param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter.detach())}
