"""Richardson iteration with a step size that is learned."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from models.ops.solvers.iteration import IterativeSolver, dot
from models.ops.solvers.operator import Operator


@dataclass(frozen=True, kw_only=True)
class Richardson(IterativeSolver):
    """Steps along the residual, all of one size: x_{n+1} = x_n + eta r_n with r_n = b - A x_n (Richardson 1910).

    A step multiplies the error along an eigenvector of eigenvalue a by 1 - eta a, so all errors shrink for eta below 2 / (the
    largest eigenvalue). One step from "query" is b + eta (b - A b), one product that contracts a query along what the past is
    full of: what stands here for the read-out of CCQ (arXiv 2606.01294).
    A residual that grows shows an eigenvalue beyond that bound, or below 0: its token stops there.

    step_size: [S] > 0, the etas, each for M / S matrices that follow each other, such as the chunks of a head; None until the
    layer that learned them gives them. Their gradient is that of the steps, so `gradient` is "unrolled".
    """

    step_size: Tensor | None = field(default=None, compare=False)

    def _of(self, chosen: slice | Tensor, count: int) -> Self:
        if self.step_size is None:
            raise ValueError("solver.name=richardson has no step size outside of a layer that learned one")
        return replace(self, step_size=self.step_size.repeat_interleave(count // len(self.step_size))[chosen])

    def _descend(self, operator: Operator, prepared: None, x: Tensor, r: Tensor, limit: Tensor, steps: Tensor) -> Tensor:
        assert self.step_size is not None
        eta, rr = self.step_size.view(-1, 1, 1).to(r.dtype), dot(r, r)
        # Rounding apart, the residual never grows.
        most = 4.0 * rr
        active = (rr > limit) & (steps < self.max_steps)
        while active.any():
            length = torch.where(active, eta, 0.0)
            x = x.addcmul(length, r)
            steps += active
            active = active & (steps < self.max_steps)
            if active.any():
                r = r.addcmul(length, operator.product(r), value=-1.0)
                rr = dot(r, r)
                active = active & (rr > limit) & (rr < most)
        return x

    def _products(self, steps: float | None) -> float:
        """None follows the last of all steps, whose residual decides nothing."""
        takes_all = self.max_steps > 0 and (steps is None or steps == self.max_steps)
        return super()._products(steps) - takes_all
