"""o_t = G_t x_t of the Mesa layer at the solution x_t, and its gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from models.ops.mesa.operators import ChunkOperator, TokenOperator
from models.ops.solvers import Solver
from models.ops.solvers.operator import Solution, select, widened

MesaOperator = TokenOperator | ChunkOperator


def solve_and_read(operator: MesaOperator, q: Tensor, solver: Solver, guess: Tensor | None) -> tuple[Tensor, Tensor]:
    """o_t = G_t x_t [M, C, V] and x_t = (H_t + Lambda)^-1 q_t for q [M, C, K]."""
    if solver.gradient == "unrolled":
        solution = solver.solve(operator, q, guess)
        return read(operator, solution), solution.x
    return _ImplicitGradient.apply(q, guess, solver, type(operator), *operator)


def read(operator: MesaOperator, solution: Solution) -> Tensor:
    """G x [M, C, V], in all the digits that the solution has.

    Where a query is nearly at right angles to the keys, so is x, and G x is a small difference of large numbers: of those
    that x was rounded to, hardly any digits would be left.
    """
    o, remainder = operator.read(solution.x), solution.remainder
    if remainder is None:
        return o
    chosen = remainder.flatten(1).any(-1).nonzero().squeeze(-1)
    part = remainder[chosen]
    exact = widened(select(operator, chosen)).read(solution.x[chosen].double() + part).to(o.dtype)
    return o.index_copy(0, chosen, torch.where(part.any(-1, keepdim=True), exact, o[chosen]))


class _ImplicitGradient(torch.autograd.Function):
    """Differentiates the solution and not the steps towards it (MesaNet App. D).

    With y the cotangent of o and e = (H + Lambda)^-1 G^T y, the inputs change y^T o as they change

        y^T G x - e^T (H + Lambda) x + e^T q   at fixed x and e,

    so e is the gradient of q, and everything G and H + Lambda are made of is differentiated as in a mere read-out.
    H counts as symmetric. The solution itself is returned for the next token to start at, and carries no gradient.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, q: Tensor, guess: Tensor | None, solver: Solver, kind: type[MesaOperator], *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        operator = kind(*tensors)
        solution = solver.solve(operator, q, guess)
        x = solution.x
        ctx.solver, ctx.kind = solver, kind
        ctx.save_for_backward(x, *tensors)
        ctx.mark_non_differentiable(x)
        return read(operator, solution), x

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, y: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        operator = ctx.kind(*tensors)
        with torch.autocast(y.device.type, enabled=False):
            e = ctx.solver.solve(operator, operator.read_transposed(y)).x
            return e, None, None, None, *operator.gradients(x, torch.cat([y, -e], dim=-1))
