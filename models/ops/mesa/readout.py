"""o_t = G_t x_t of the Mesa layer at the solution x_t, and its gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.ops.mesa.operators import ChunkOperator, TokenOperator
from models.ops.scan import Writes, gradients_of_linear, states
from models.ops.solvers import Solver
from models.ops.solvers.iteration import dot
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


class Chunks(NamedTuple):
    """A sequence in M = B H N chunks, whose states are not known yet; the names are those of `ChunkOperator`.

    q [M, C, K]. ends [M, C, K]: keys times what they weigh at the end of the chunk. kept [M, 1, 1]: what is left there of the
    state before. state: [B, H, V + K, K], G above H, before the first chunk.
    """

    q: Tensor
    keys: Tensor
    values: Tensor
    weights: Tensor
    from_start: Tensor
    regularizer: Tensor
    ends: Tensor
    kept: Tensor
    state: Tensor

    def operator(self, before: Tensor) -> ChunkOperator:
        """The matrices of all tokens, given the states before their chunks [M, V + K, K]."""
        return ChunkOperator(self.keys, self.values, self.weights, self.from_start, before, self.regularizer)


def solve_and_read_chunks(chunks: Chunks, solver: Solver) -> tuple[Tensor, Tensor]:
    """o_t = G_t x_t [M, C, V] at x_t = (H_t + Lambda)^-1 q_t, with an implicit gradient, and the state after the last chunk."""
    return _ImplicitGradientOfChunks.apply(solver, *chunks)


class _ImplicitGradientOfChunks(torch.autograd.Function):
    """`_ImplicitGradient` and the states that the chunks start from, whose gradient is that of a read-out by x as well.

    Apart, the gradient into every state would be a tensor of its own, the largest of all.
    """

    @staticmethod
    def forward(ctx: Any, solver: Solver, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        chunks = Chunks(*tensors)
        before, after = states(Writes(chunks.values, chunks.ends), chunks.kept, chunks.state)
        operator = chunks.operator(before)
        solution = solver.solve(operator, chunks.q, None)
        ctx.solver = solver
        ctx.save_for_backward(solution.x, before, *tensors)
        return read(operator, solution), after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y: Tensor, into_after: Tensor) -> tuple[Tensor | None, ...]:
        x, before, *tensors = ctx.saved_tensors
        chunks = Chunks(*tensors)
        operator = chunks.operator(before)
        with torch.autocast(y.device.type, enabled=False):
            e = ctx.solver.solve(operator, operator.read_transposed(y)).x
            y = torch.cat([y, -e], dim=-1)
            into_keys, into_values, into_weights, into_regularizer = operator.gradients_within(x, y)
            into_read, written, into_ends, into_kept, into_state = gradients_of_linear(
                into_read=y,
                into_after=into_after,
                q=x * chunks.from_start,
                writes=Writes(chunks.values, chunks.ends),
                kept=chunks.kept,
                before=before,
            )
            into_from_start = dot(into_read, x)
            into_values = into_values.add_(written)
        into_matrices = into_keys, into_values, into_weights, into_from_start, into_regularizer
        return None, e, *into_matrices, into_ends, into_kept, into_state


class _ImplicitGradient(torch.autograd.Function):
    """Differentiates the solution and not the steps towards it (MesaNet App. D).

    With y the cotangent of o and e = (H + Lambda)^-1 G^T y, the inputs change y^T o as they change

        y^T G x - e^T (H + Lambda) x + e^T q   at fixed x and e,

    so e is the gradient of q, and everything G and H + Lambda are made of is differentiated as in a mere read-out.
    H counts as symmetric. The solution itself is returned for the next token to start at, and carries no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, guess: Tensor | None, solver: Solver, kind: type[MesaOperator], *tensors: Tensor
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
    def backward(ctx: Any, y: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        operator = ctx.kind(*tensors)
        with torch.autocast(y.device.type, enabled=False):
            e = ctx.solver.solve(operator, operator.read_transposed(y)).x
            return e, None, None, None, *operator.gradients(x, torch.cat([y, -e], dim=-1))
