"""Preconditioned conjugate gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from models.ops.solvers.conjugate_gradients import advance, bounds_of_definite
from models.ops.solvers.iteration import IterativeSolver, dot, step
from models.ops.solvers.operator import Operator, Preconditioner


class PreconditionedConjugateGradients(IterativeSolver):
    """Conjugate gradients for M^-1 A, with the operator's own M near A; plain ones for tokens that have none.

    "diagonal" stands for M^-1 b where there is an M. A step is one product with A and one with M^-1.
    """

    def _prepare(self, operator: Operator) -> Preconditioner:
        return operator.preconditioner()

    def _divide(self, operator: Operator, prepared: Preconditioner, b: Tensor) -> Tensor:
        return torch.where(prepared.where, prepared.inverse(b), b / operator.diagonal())

    def _descend(
        self, operator: Operator, prepared: Preconditioner, x: Tensor, r: Tensor, limit: Tensor, steps: Tensor
    ) -> Tensor:
        least, most = bounds_of_definite(dot(r, r))
        active = (dot(r, r) > limit) & (steps < self.max_steps)
        if not active.any():
            return x
        p = prepared.inverse(r)
        rz = dot(r, p)
        while True:
            ap = operator.product(p)
            curvature = dot(p, ap)
            active &= (curvature > least * dot(p, p)) & (rz > 0.0)
            alpha = rz / curvature.masked_fill(~active, float("inf"))
            x, r = step(x, r, alpha, p, ap)
            steps += active
            rr = dot(r, r)
            active &= (rr > limit) & (rr < most) & (steps < self.max_steps)
            if not active.any():
                return x
            z = prepared.inverse(r)
            rz_before, rz = rz, dot(r, z)
            p = advance(p, rz / rz_before.masked_fill(~active, float("inf")), z)

    def flops(self, dim: int, steps: float | None = None) -> float:
        """A factorisation for one token, two triangular solves a step and for the first guess, and the products."""
        products = self._products(steps)
        # The first guess is a solve also where no product follows.
        solves = max(products, float(self.initial == "diagonal"))
        return dim**3 / 3 + 2.0 * dim**2 * (products + solves)
