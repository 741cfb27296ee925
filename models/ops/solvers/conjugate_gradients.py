"""Conjugate gradients (MesaNet, arXiv 2506.05233, Algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from models.ops.solvers.iteration import IterativeSolver, dot, step
from models.ops.solvers.operator import Operator


class ConjugateGradients(IterativeSolver):
    """Conjugate gradients; the paper's start at "diagonal".

    A direction p with p^T A p <= 0 shows that A is not positive definite: its token stops there, with what it has.
    """

    def _descend(self, operator: Operator, prepared: None, x: Tensor, r: Tensor, limit: Tensor, steps: Tensor) -> Tensor:
        p, rr, infinity = r.clone(), dot(r, r), r.new_tensor(float("inf"))
        least, most = bounds_of_definite(rr)
        active = (rr > limit) & (steps < self.max_steps)
        while active.any():
            ap = operator.product(p)
            curvature = dot(p, ap)
            active = active & (curvature > least * rr)
            # Divided by infinity, a step is 0, and so is its gradient.
            alpha = rr / torch.where(active, curvature, infinity)
            x, r = step(x, r, alpha, p, ap)
            rr_before, rr = rr, dot(r, r)
            steps += active
            p = advance(p, rr / torch.where(active, rr_before, infinity), r)
            active = active & (rr > limit) & (rr < most) & (steps < self.max_steps)
        return x


def advance(p: Tensor, factor: Tensor, r: Tensor) -> Tensor:
    """factor p + r, in place where no gradient is recorded."""
    return torch.addcmul(r, factor, p) if torch.is_grad_enabled() else p.mul_(factor).add_(r)


def bounds_of_definite(rr: Tensor) -> tuple[float, Tensor]:
    """The least p^T A p / |p|^2 and the most |r|^2, for the first |r|^2, that a positive definite A could lead to.

    Beyond these, which rounding never comes near, x would leave the range of the numbers.
    """
    rounding = torch.finfo(rr.dtype).eps
    return rounding**4, rr / rounding**2
