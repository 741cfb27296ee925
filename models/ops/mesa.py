"""The Mesa layer: regularised least squares over the past, solved at every token (MesaNet, arXiv 2506.05233, eq. 4-9).

    G_t = exp(log_decay_t) G_{t-1} + beta_t v_t k_t^T
    H_t = exp(log_decay_t) H_{t-1} + beta_t k_t k_t^T
    o_t = G_t x_t   with   (H_t + Lambda) x_t = q_t

All forms take q, k [B, T, H, K]; v [B, T, H, V]; log_decay <= 0 (-inf forgets all that came before) and beta in [0, 1],
both [B, T, H]; regularizer, the diagonal of Lambda, [H, K] > 0; and the state before, float32 or wider, in whose dtype
everything is computed. They return o [B, T, H, V] and the state after the last token.

G and H are held as one memory [V + K, K], since H is what G would be with the keys as values.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from models.ops.decay import chunk_decays, join_heads, over_time, scan_states, split_heads
from models.ops.solvers import Solver


class MesaState(NamedTuple):
    """G: [B, H, V, K], sums of v k^T. H: [B, H, K, K], sums of k k^T, symmetric."""

    G: Tensor
    H: Tensor


class SolverTrace(NamedTuple):
    """steps: [B, T, H] int64, what the solver used. residual: [B, T, H], |q - (H + Lambda) x| / |q|, 0 where q is."""

    steps: Tensor
    residual: Tensor


class TokenOperator(NamedTuple):
    """G and H + Lambda of one token: memory [M, V + K, K], regularizer [M, 1, K].

    Beside what a solver needs of H + Lambda: `read` is G x, `read_transposed` is G^T y, and `gradients` are those of
    y^T [G x, (H + Lambda) x] with respect to the tensors here, for x [M, C, K] and y [M, C, V + K]; C = 1.
    """

    memory: Tensor
    regularizer: Tensor

    def product(self, p: Tensor) -> Tensor:
        return torch.baddbmm(self.regularizer * p, p, self._H)

    def diagonal(self) -> Tensor:
        return self._H.diagonal(dim1=-2, dim2=-1).unsqueeze(-2) + self.regularizer

    def dense(self) -> Tensor:
        return self._H.unsqueeze(1) + torch.diag_embed(self.regularizer)

    def read(self, x: Tensor) -> Tensor:
        return torch.bmm(x, self.memory[:, : -x.shape[-1]].mT)

    def read_transposed(self, y: Tensor) -> Tensor:
        return torch.bmm(y, self.memory[:, : y.shape[-1]])

    def gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        key_dim = x.shape[-1]
        return torch.bmm(y.mT, x), (y[..., -key_dim:] * x).sum(-2, keepdim=True)

    @property
    def _H(self) -> Tensor:
        return self.memory[:, -self.memory.shape[-1] :]


class ChunkOperator(NamedTuple):
    """The same of all tokens of M chunks, without ever holding a G_t or H_t (MesaNet eq. 9; for H with v := k).

    keys: [M, C, K]. values: [M, C, V + K], v and k. weights: [M, C, C], zeta_ts beta_s, what token s weighs at t.
    from_start: [M, C, 1], what is left at t of `memory` [M, V + K, K] before the chunk. regularizer: [M, 1, K].
    """

    keys: Tensor
    values: Tensor
    weights: Tensor
    from_start: Tensor
    memory: Tensor
    regularizer: Tensor

    def product(self, p: Tensor) -> Tensor:
        return self._attend(p, self.keys, self.keys, self._H).addcmul_(p, self.regularizer)

    def diagonal(self) -> Tensor:
        start = self.from_start * self._H.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
        return torch.baddbmm(start + self.regularizer, self.weights, self.keys.square())

    def dense(self) -> Tensor:
        within = torch.einsum("mts,msi,msj->mtij", self.weights, self.keys, self.keys)
        return within + self.from_start.unsqueeze(-1) * self._H.unsqueeze(1) + torch.diag_embed(self.regularizer)

    def read(self, x: Tensor) -> Tensor:
        key_dim = x.shape[-1]
        return self._attend(x, self.keys, self.values[..., :-key_dim], self.memory[:, :-key_dim].mT)

    def read_transposed(self, y: Tensor) -> Tensor:
        value_dim = y.shape[-1]
        return self._attend(y, self.values[..., :value_dim], self.keys, self.memory[:, :value_dim])

    def gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        scores, into_weighted = torch.bmm(x, self.keys.mT), torch.bmm(y, self.values.mT)
        into_keys = torch.bmm((into_weighted * self.weights).mT, x)
        into_values = torch.bmm((scores * self.weights).mT, y)
        into_from_start = (torch.bmm(y, self.memory) * x).sum(-1, keepdim=True)
        into_memory = torch.bmm((y * self.from_start).mT, x)
        into_regularizer = (y[..., -x.shape[-1] :] * x).sum(-2, keepdim=True)
        return into_keys, into_values, into_weighted.mul_(scores), into_from_start, into_memory, into_regularizer

    @property
    def _H(self) -> Tensor:
        return self.memory[:, -self.keys.shape[-1] :]

    def _attend(self, p: Tensor, keys: Tensor, values: Tensor, start: Tensor) -> Tensor:
        """Gated linear attention: sum_s weights_ts (keys_s . p_t) values_s + from_start_t p_t start."""
        # In place, as this is the inner loop of the solver and fresh memory costs a CPU as much as the arithmetic.
        scores = torch.bmm(p, keys.mT).mul_(self.weights)
        return torch.bmm(p, start).mul_(self.from_start).baddbmm_(scores, values)


def recurrent(
    *, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, regularizer: Tensor, state: MesaState
) -> tuple[Tensor, MesaState]:
    """The definition, a token at a time, solved exactly and differentiated through the solve: the ground truth."""
    G, H = state
    penalty, outputs = torch.diag_embed(regularizer.to(H.dtype)), []
    for q_t, k_t, v_t, decay_t, beta_t in over_time(q, k, v, log_decay.exp(), beta, dtype=H.dtype):
        G = decay_t * G + (beta_t * v_t) @ k_t.mT
        H = decay_t * H + (beta_t * k_t) @ k_t.mT
        outputs.append(G @ torch.cholesky_solve(q_t, torch.linalg.cholesky(H + penalty)))
    return torch.stack(outputs, dim=1).squeeze(-1), MesaState(G, H)


def chunked(
    *,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    regularizer: Tensor,
    state: MesaState,
    solver: Solver,
    chunk_size: int,
) -> tuple[Tensor, MesaState]:
    """The same in matrix products over chunks of chunk_size >= 1 tokens, solved by `solver`: what trains.

    Time and memory are linear in T; with `ConjugateGradients` no K x K matrix is held per token.
    """
    q_chunks, operator, state = _split(q, k, v, log_decay, beta, regularizer, state, chunk_size)
    return join_heads(_solve_and_read(operator, q_chunks, solver), v.shape), state


def decode(
    *,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    regularizer: Tensor,
    state: MesaState,
    solver: Solver,
) -> tuple[Tensor, MesaState]:
    """The same for T = 1, solved by `solver` on the H_t that has to be written anyway."""
    batch_size, _, num_heads, key_dim = k.shape
    ((q_t, k_t, values, decay_t, beta_t),) = over_time(
        q, k, torch.cat([v, k], dim=-1), log_decay.exp(), beta, dtype=state.H.dtype
    )
    memory = decay_t * torch.cat(state, dim=-2) + (beta_t * values) @ k_t.mT
    per_head = regularizer.to(memory.dtype).expand(batch_size, num_heads, key_dim).reshape(-1, 1, key_dim)
    o = _solve_and_read(TokenOperator(memory.flatten(0, 1), per_head), q_t.flatten(0, 1).mT, solver)
    return o.reshape(v.shape), MesaState(*memory.split([v.shape[-1], key_dim], dim=-2))


@torch.no_grad()
def trace(
    *,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    regularizer: Tensor,
    state: MesaState,
    solver: Solver,
    chunk_size: int,
) -> SolverTrace:
    """What `chunked` spends on the same inputs: the steps of every token, and how far from solved it is then."""
    q_chunks, operator, _ = _split(q, k, v, log_decay, beta, regularizer, state, chunk_size)
    x, steps = solver.solve(operator, q_chunks)
    residual = (q_chunks - operator.product(x)).norm(dim=-1) / q_chunks.norm(dim=-1)
    per_token = (steps, residual.nan_to_num(0.0))
    return SolverTrace(*(join_heads(y.unsqueeze(-1), k.shape).squeeze(-1) for y in per_token))


def _split(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, regularizer: Tensor, state: MesaState, chunk_size: int
) -> tuple[Tensor, ChunkOperator, MesaState]:
    """The sequence as M = B H N independent chunks: q [M, C, K], the matrices of every token, and the state at the end."""
    batch_size, _, num_heads, key_dim = k.shape
    dtype, sizes = state.H.dtype, (v.shape[-1], key_dim)
    values = torch.cat([v, k], dim=-1)
    q, k, values, log_decay, beta = split_heads(q, k, values, log_decay, beta, chunk_size=chunk_size, dtype=dtype)
    decays = chunk_decays(log_decay)
    written = torch.bmm(values.mT, k * (beta * decays.to_end).unsqueeze(-1))
    before, after = scan_states(written, decays.from_start[:, -1], torch.cat(state, dim=-2))
    num_chunks = len(k) // (batch_size * num_heads)
    per_chunk = regularizer.to(dtype)[:, None, None].expand(batch_size, num_heads, num_chunks, 1, key_dim).flatten(0, 2)
    weights = decays.within * beta.unsqueeze(-2)
    operator = ChunkOperator(k, values, weights, decays.from_start.unsqueeze(-1), before, per_chunk)
    return q, operator, MesaState(*after.split(sizes, dim=-2))


def _solve_and_read(operator: TokenOperator | ChunkOperator, q: Tensor, solver: Solver) -> Tensor:
    """o_t = G_t (H_t + Lambda)^-1 q_t for q [M, C, K]."""
    return _ImplicitGradient.apply(q, solver, type(operator), *operator)


class _ImplicitGradient(torch.autograd.Function):
    """Differentiates the solution and not the steps towards it (MesaNet App. D).

    With y the cotangent of o and e = (H + Lambda)^-1 G^T y, the inputs change y^T o as they change

        y^T G x - e^T (H + Lambda) x + e^T q   at fixed x and e,

    so e is the gradient of q, and everything G and H + Lambda are made of is differentiated as in a mere read-out.
    H counts as symmetric.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, q: Tensor, solver: Solver, kind: type[TokenOperator | ChunkOperator], *tensors: Tensor
    ) -> Tensor:
        operator = kind(*tensors)
        x = solver.solve(operator, q).x
        ctx.solver, ctx.kind = solver, kind
        ctx.save_for_backward(x, *tensors)
        return operator.read(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, y: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        operator = ctx.kind(*tensors)
        with torch.autocast(y.device.type, enabled=False):
            e = ctx.solver.solve(operator, operator.read_transposed(y)).x
            return e, None, None, *operator.gradients(x, torch.cat([y, -e], dim=-1))
