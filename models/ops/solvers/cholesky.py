"""The exact solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from models.ops.solvers.operator import Operator, Solution, widened

DENSE_ELEMENTS = 2**23
"""Numbers in the matrices that are held at a time."""


@dataclass(frozen=True, kw_only=True)
class Cholesky:
    """The exact solution, by a factorisation in float64 of a K x K matrix a token, some at a time: a reference.

    Where A is not positive definite, which takes decays below 0, the token is solved by LU; where it is singular, x is 0.
    It has no first guess to choose, and the gradient of the solution is that of the way to it.
    """

    initial: ClassVar[str] = "zero"
    gradient: ClassVar[str] = "implicit"

    def solve(self, operator: Operator, b: Tensor, guess: Tensor | None = None) -> Solution:
        """x with A x = b, both [M, C, K]; a guess is of no use."""
        size = max(1, DENSE_ELEMENTS // (b[0].numel() * b.shape[-1]))
        blocks = zip(*(x.split(size) for x in (*operator, b)), strict=True)
        wide = [_solve_dense(widened(type(operator)(*parts)).dense(), b_block.double()) for *parts, b_block in blocks]
        exact = torch.cat(wide)
        x = exact.to(b.dtype)
        steps = torch.zeros(b.shape[:-1], dtype=torch.long, device=b.device)
        return Solution(x, steps, None if b.dtype == torch.float64 else (exact - x).to(b.dtype))

    def flops(self, dim: int, steps: float | None = None) -> float:
        """A factorisation and two triangular solves of dim x dim, whatever the steps."""
        return dim**3 / 3 + 2.0 * dim**2


def _solve_dense(A: Tensor, b: Tensor) -> Tensor:
    factor, failed_at = torch.linalg.cholesky_ex(A)
    x = torch.cholesky_solve(b.unsqueeze(-1), factor).squeeze(-1)
    indefinite = failed_at > 0
    if indefinite.any():
        solved, singular = torch.linalg.solve_ex(A[indefinite], b[indefinite])
        x[indefinite] = torch.where(singular.unsqueeze(-1) > 0, 0.0, solved)
    return x
