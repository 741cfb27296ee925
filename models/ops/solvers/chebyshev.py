"""Chebyshev iteration, as Gated KalmaNet (arXiv 2511.21016) solves."""

from __future__ import annotations

from torch import Tensor

from models.ops.solvers.conjugate_gradients import advance
from models.ops.solvers.iteration import IterativeSolver, dot, step
from models.ops.solvers.operator import Operator


class Chebyshev(IterativeSolver):
    """The residual polynomial that is smallest over a range [a, b] of eigenvalues, and not, as in CG, over A's own.

        x_{n+1} = x_n + d_n,  d_{n+1} = rho_{n+1} rho_n d_n + 2 rho_{n+1} / h r_{n+1},  rho_{n+1} = h / (2 m - h rho_n)

    from d_0 = r_0 / m and rho_0 = h / m, with m = (a + b) / 2 and h = (b - a) / 2. Its steps take no inner products of their
    own (Mesa's range [min Lambda, max Lambda + |H_t|_F] is known beforehand, token by token), but with k = b / a

        |r_n| <= 2 ((sqrt(k) - 1) / (sqrt(k) + 1))^n |r_0|

    is also about what it comes to, since it does not know that the eigenvalues are fewer or nearer to each other.
    A residual that grows shows an eigenvalue outside the range, e.g. below 0: its token stops there.
    """

    def _prepare(self, operator: Operator) -> tuple[Tensor, Tensor]:
        """m and h, both [M, C, 1]."""
        low, high = operator.bounds()
        return (high + low) / 2.0, (high - low) / 2.0

    def _descend(
        self, operator: Operator, prepared: tuple[Tensor, Tensor], x: Tensor, r: Tensor, limit: Tensor, steps: Tensor
    ) -> Tensor:
        middle, half_width = prepared
        d, rho, rr = r / middle, half_width / middle, dot(r, r)
        # Rounding apart, the residual never grows.
        most = 4.0 * rr
        active = (rr > limit) & (steps < self.max_steps)
        while active.any():
            x, r = step(x, r, active.to(x.dtype), d, operator.product(d))
            rr = dot(r, r)
            steps += active
            active &= (rr > limit) & (rr < most) & (steps < self.max_steps)
            pace = 1.0 / (2.0 * middle - half_width * rho)
            d = advance(d, half_width * pace * rho, 2.0 * pace * r)
            rho = half_width * pace
        return x
