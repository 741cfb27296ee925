"""What all iterative solvers share: their settings, the first guess, and when a token stops."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from models.ops.solvers.operator import Operator, Rounded, Solution, select, widened

CACHED_ELEMENTS = 2**17
"""Numbers in one [M, C, K] tensor of a block; conjugate gradients go through about eight such tensors in every step."""


@dataclass(frozen=True, kw_only=True)
class IterativeSolver(ABC):
    """Settings that every iteration takes; `SolverSettings` checks them.

    max_steps: >= 0; 0 returns the first guess.
    tolerance: a token stops at |b - A x| <= tolerance * |reference|; 0 asks for max_steps, though rounding ends it too, and
        a number between 0 and that rounding (e.g. 1e-10 in float32) for a `Solution.remainder`, at about twice the cost.
    stop: the reference, "right_hand_side" (|b|) or "initial_residual" (the paper's).
    initial: the first guess; "zero"; "diagonal", b / diag(A); "query", b itself, with which Mesa at 0 steps is gated linear
        attention; "previous_token", see `solve`.
    gradient: "implicit", of the solution that the steps lead to, or "unrolled", of the steps that were taken.
    bits: those of the operands of every product with A, see `Rounded`; None for all that they have. A layer gives them.
    A token depends on its own matrix only, at any number of steps: one that has stopped is frozen while others go on.
    """

    max_steps: int
    tolerance: float
    stop: str
    initial: str
    gradient: str
    bits: int | None = field(default=None)

    def solve(self, operator: Operator, b: Tensor, guess: Tensor | None = None) -> Solution:
        """x with A x = b, both [M, C, K], as near as the settings ask.

        guess: [M, C, K], e.g. the token before; x starts at the multiple of it that is nearest to the solution in the norm
        of A, so never further from it than zero. It takes the place of `initial`, save for tokens where it is 0; and
        "previous_token" without it is "diagonal".
        """
        # A CPU is fastest on blocks that stay in its cache from step to step; and a block ends when its tokens have.
        size = max(1, CACHED_ELEMENTS // b[0].numel()) if b.device.type == "cpu" else len(b)
        given = (*operator, b) if guess is None else (*operator, b, guess)
        blocks = enumerate(zip(*(x.split(size) for x in given), strict=True))
        count, solutions = len(operator), []
        for i, parts in blocks:
            solver = self._of(slice(i * size, (i + 1) * size), len(b))
            solutions.append(solver._solve_block(type(operator)(*parts[:count]), *parts[count:]))
        return _join(solutions)

    def _of(self, chosen: slice | Tensor, count: int) -> Self:
        """The solver of some of `count` matrices, for one whose settings are not the same for all of them."""
        return self

    def _solve_block(self, operator: Operator, b: Tensor, guess: Tensor | None = None) -> Solution:
        # At unit size: the squares of a cotangent of 1e-25 would vanish, and its token would count as solved.
        scale = _largest(b.detach())
        given, b = b, b / scale
        operator = operator if self.bits is None else Rounded(operator, self.bits)
        prepared = self._prepare(operator)
        x, r = self._start(operator, prepared, b, guess)
        reference = r if self.stop == "initial_residual" else b
        # A residual below the rounding of b can't improve x, and shrinking it further ends in slow denormal numbers.
        rounding = torch.finfo(b.dtype).eps
        limit = max(self.tolerance, rounding) ** 2 * dot(reference, reference).detach()
        steps = torch.zeros(limit.shape, dtype=torch.long, device=b.device)
        x = self._descend(operator, prepared, x, r, limit, steps)
        if (steps < self.max_steps).any():
            if 0.0 < self.tolerance < rounding and b.dtype != torch.float64:
                limit = limit * (max(self.tolerance, rounding**2) / rounding) ** 2
                return self._refine(operator, given, x, scale, limit, steps)
            # The residual of the recursion drifts from b - A x by the rounding of its largest terms: on from the true one.
            x = self._descend(operator, prepared, x, b - operator.product(x), limit, steps)
        return Solution(_times(x, scale), steps.squeeze(-1), None)

    def _refine(self, operator: Operator, b: Tensor, x: Tensor, scale: Tensor, limit: Tensor, steps: Tensor) -> Solution:
        """On from x, which solves for b / scale, by a remainder from the true residual, where tokens have steps left."""
        chosen = (steps < self.max_steps).flatten(1).any(-1).nonzero().squeeze(-1)
        part, coarse, unit, taken = select(operator, chosen), x[chosen].double(), scale[chosen].double(), steps[chosen]
        r = (b[chosen].double() / unit - widened(part).product(coarse)).to(b.dtype)
        rest = self._of(chosen, len(b))._descend(part, self._prepare(part), torch.zeros_like(r), r, limit[chosen], taken)
        steps[chosen] = taken
        solution = unit * (coarse + rest)
        rounded = solution.to(b.dtype)
        # 0 and not what its scale rounds off, where a token had no steps left.
        remainder = torch.where(rest.any(-1, keepdim=True), solution - rounded, 0.0).to(b.dtype)
        x, nothing = x * scale, torch.zeros_like(x)
        return Solution(x.index_copy(0, chosen, rounded), steps.squeeze(-1), nothing.index_copy(0, chosen, remainder))

    def _start(self, operator: Operator, prepared: Any, b: Tensor, guess: Tensor | None) -> tuple[Tensor, Tensor]:
        """The first x and its residual, in memory of their own."""
        if guess is not None:
            return self._start_along(operator, prepared, b, guess)
        if self.initial == "zero":
            return torch.zeros_like(b), b.clone()
        x = b.clone() if self.initial == "query" else self._divide(operator, prepared, b)
        # Where no step follows, nothing asks for the residual.
        return x, b - operator.product(x) if self.max_steps else b

    def _start_along(self, operator: Operator, prepared: Any, b: Tensor, guess: Tensor) -> tuple[Tensor, Tensor]:
        empty = (guess == 0.0).all(-1, keepdim=True)
        direction = torch.where(empty, self._divide(operator, prepared, b), guess / _largest(guess.detach()))
        product = operator.product(direction)
        curvature = dot(direction, product)
        usable = curvature > 0.0
        # Masked before the division, whose gradient would be NaN.
        best = (dot(direction, b) / curvature.masked_fill(~usable, 1.0)).masked_fill(~usable, 0.0)
        length = best.masked_fill(empty, 1.0)
        return length * direction, b - length * product

    def _prepare(self, operator: Operator) -> Any:
        """What the iteration wants to know of A, once."""
        return None

    def _divide(self, operator: Operator, prepared: Any, b: Tensor) -> Tensor:
        """The guess named "diagonal": b divided by what is easily inverted in place of A."""
        return b / operator.diagonal()

    @abstractmethod
    def _descend(self, operator: Operator, prepared: Any, x: Tensor, r: Tensor, limit: Tensor, steps: Tensor) -> Tensor:
        """x, whose residual is r, moved until |r|^2 <= limit or steps is max_steps, token by token; both may be overwritten."""

    def flops(self, dim: int, steps: float | None = None) -> float:
        """Contractions with dim x dim matrices a token; steps: how many it took, max_steps unless given."""
        return 2.0 * dim**2 * self._products(steps)

    def _products(self, steps: float | None) -> float:
        """Products with A: one a step, the first residual unless x starts at zero, and the true one after an early stop.

        Without a step there is no residual, and one product alone for the multiple of the token before that is nearest.
        """
        if self.max_steps == 0:
            return 1.0 if self.initial == "previous_token" else 0.0
        first = 0 if self.initial == "zero" else 1
        stops_early = steps is not None and steps < self.max_steps
        return first + 1 + steps if stops_early else first + self.max_steps


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def step(x: Tensor, r: Tensor, length: Tensor, p: Tensor, ap: Tensor) -> tuple[Tensor, Tensor]:
    """x + length p and its residual r - length A p, in place where no gradient is recorded: fresh memory costs a CPU much."""
    if torch.is_grad_enabled():
        return x.addcmul(length, p), r.addcmul(length, ap, value=-1.0)
    return x.addcmul_(length, p), r.addcmul_(length, ap, value=-1.0)


def _times(x: Tensor, factor: Tensor) -> Tensor:
    return x * factor if torch.is_grad_enabled() else x.mul_(factor)


def _largest(x: Tensor) -> Tensor:
    return x.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)


def _join(solutions: list[Solution]) -> Solution:
    x, steps, remainders = zip(*solutions, strict=True)
    if all(part is None for part in remainders):
        return Solution(torch.cat(x), torch.cat(steps), None)
    filled = [torch.zeros_like(part.x) if part.remainder is None else part.remainder for part in solutions]
    return Solution(torch.cat(x), torch.cat(steps), torch.cat(filled))
