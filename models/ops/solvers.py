"""Solvers of A_t x_t = b_t for every token at once, with A_t = H_t + Lambda symmetric positive definite.

A solver is a frozen set of settings with one method, `solve`. It sees the matrices through an `Operator` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

CACHED_ELEMENTS = 2**17
"""Of one [M, C, K] tensor in a block; conjugate gradients go through about eight of them in every step."""


class Operator(Protocol):
    """M * C matrices of K x K; iterating over it gives the tensors it is made of, M first, and its type builds it again."""

    def product(self, p: Tensor) -> Tensor:
        """A p, [M, C, K]."""

    def diagonal(self) -> Tensor:
        """[M, C, K]."""

    def dense(self) -> Tensor:
        """[M, C, K, K], for the exact solver."""


class Solution(NamedTuple):
    """x: [M, C, K]. steps: [M, C] int64, the iterations of every token; 0 for an exact solver."""

    x: Tensor
    steps: Tensor


@dataclass(frozen=True, kw_only=True)
class Cholesky:
    """The exact solution; holds a K x K matrix a token, so it is a reference and not what trains long sequences."""

    def solve(self, operator: Operator, b: Tensor) -> Solution:
        factor = torch.linalg.cholesky(operator.dense())
        x = torch.cholesky_solve(b.unsqueeze(-1), factor).squeeze(-1)
        return Solution(x, torch.zeros(b.shape[:-1], dtype=torch.long, device=b.device))

    def flops(self, dim: int, steps: float | None = None) -> float:
        """A factorisation and two triangular solves of dim x dim, whatever the steps."""
        return dim**3 / 3 + 2.0 * dim**2


@dataclass(frozen=True, kw_only=True)
class ConjugateGradients:
    """Conjugate gradients from x = b / diag(A) (MesaNet, arXiv 2506.05233, Algorithm 1).

    max_steps: >= 0; 0 returns b / diag(A), which is not gated linear attention.
    tolerance: a token stops at |b - A x| <= tolerance * |reference|; 0 asks for max_steps, though rounding ends it too.
    stop: the reference, "right_hand_side" (|b|) or "initial_residual" (the paper's).
    A token depends on its own matrix only, at any number of steps: one that has stopped is frozen while others go on.
    Raises ValueError for values outside these.
    """

    max_steps: int
    tolerance: float
    stop: str

    def __post_init__(self) -> None:
        if self.max_steps < 0:
            raise ValueError(f"solver.max_steps is {self.max_steps}, permitted are whole numbers from 0")
        if not 0.0 <= self.tolerance < 1.0:
            raise ValueError(f"solver.tolerance is {self.tolerance}, permitted are numbers from 0 to below 1")
        if self.stop not in ("right_hand_side", "initial_residual"):
            raise ValueError(f"solver.stop is {self.stop!r}, permitted are right_hand_side and initial_residual")

    def solve(self, operator: Operator, b: Tensor) -> Solution:
        # A CPU is fastest on blocks that stay in its cache from step to step; and a block ends when its tokens have.
        size = max(1, CACHED_ELEMENTS // b[0].numel()) if b.device.type == "cpu" else len(b)
        blocks = zip(*(x.split(size) for x in (*operator, b)), strict=True)
        solutions = [self._solve_block(type(operator)(*parts), b_block) for *parts, b_block in blocks]
        return Solution(*(torch.cat(parts) for parts in zip(*solutions, strict=True)))

    def _solve_block(self, operator: Operator, b: Tensor) -> Solution:
        # At unit size: the squares of a cotangent of 1e-25 would vanish, and its token would count as solved.
        scale = b.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(b.dtype).tiny)
        b = b / scale
        x = b / operator.diagonal()
        r = b - operator.product(x)
        reference = r if self.stop == "initial_residual" else b
        # A residual below the rounding of b can't improve x, and shrinking it further ends in slow denormal numbers.
        limit = max(self.tolerance, torch.finfo(b.dtype).eps) ** 2 * _dot(reference, reference)
        steps = torch.zeros(limit.shape, dtype=torch.long, device=b.device)
        self._descend(operator, x, r, limit, steps)
        if (steps < self.max_steps).any():
            # The residual of the recursion drifts from b - A x by the rounding of its largest terms: on from the true one.
            self._descend(operator, x, b - operator.product(x), limit, steps)
        return Solution(x.mul_(scale), steps.squeeze(-1))

    def _descend(self, operator: Operator, x: Tensor, r: Tensor, limit: Tensor, steps: Tensor) -> None:
        """Moves x, whose residual is r, until |r|^2 <= limit or steps is max_steps, token by token and in place."""
        p, rr, zero = r.clone(), _dot(r, r), r.new_zeros(())
        active = (rr > limit) & (steps < self.max_steps)
        while active.any():
            ap = operator.product(p)
            alpha = torch.where(active, rr / _dot(p, ap), zero)
            x.addcmul_(alpha, p)
            r.addcmul_(alpha, ap, value=-1.0)
            rr, rr_before = _dot(r, r), rr
            steps += active
            active &= (rr > limit) & (steps < self.max_steps)
            p.mul_(torch.where(active, rr / rr_before, zero)).add_(r)

    def flops(self, dim: int, steps: float | None = None) -> float:
        """Products with dim x dim matrices: one a step and the first residual, and the true one after an early stop.

        steps: how many on average, max_steps unless given.
        """
        products = 1 + self.max_steps if steps is None else 2 + steps
        return 2.0 * dim**2 * products


Solver = ConjugateGradients | Cholesky
SOLVERS: dict[str, type[Solver]] = {"cg": ConjugateGradients, "cholesky": Cholesky}


def build_solver(config: Mapping[str, Any]) -> Solver:
    """The solver that `name` in a model's YAML stands for; the other keys are settings, of which it takes its own.

    Raises ValueError for a name or a setting's value that is not permitted.
    """
    name = config["name"]
    if name not in SOLVERS:
        raise ValueError(f"solver.name is {name!r}, permitted are {', '.join(SOLVERS)}")
    settings = {field.name for field in fields(SOLVERS[name])}
    return SOLVERS[name](**{key: value for key, value in config.items() if key in settings})


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)
