"""The Mesa layer: regularised least squares over the past, solved at every token (MesaNet, arXiv 2506.05233, eq. 4-9).

    G_t = gamma_t G_{t-1} + beta_t v_t k_t^T
    H_t = gamma_t H_{t-1} + beta_t k_t k_t^T
    o_t = G_t x_t   with   (H_t + Lambda_t) x_t = q_t

All forms take `Inputs` and the state before, float32 or wider, in whose dtype everything is computed. They return
o [B, T, H, V] and the state after the last token.

A sign of -1 may leave H_t + Lambda_t with eigenvalues below 0 (MesaNet App. I): `trace` tells, and nothing raises.
G and H are held as one memory [V + K, K], since H is what G would be with the keys as values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from models.ops.decay import ChunkDecays, chunk_decays, join_heads, over_time, scan_states, split_heads
from models.ops.mesa.operators import ChunkOperator, TokenOperator
from models.ops.mesa.readout import Chunks, MesaOperator, read, solve_and_read, solve_and_read_chunks
from models.ops.solvers import Solver


class MesaState(NamedTuple):
    """G: [B, H, V, K], sums of v k^T. H: [B, H, K, K], sums of k k^T, symmetric.

    x: [B, H, K], the last token's solution, held only where a solver starts from it, and 0 or None before the first token.
    """

    G: Tensor
    H: Tensor
    x: Tensor | None = None


class SolverTrace(NamedTuple):
    """What the solver did and had to do at every token, all [B, T, H].

    steps: int64, what the solver used. chunk_steps: int64, the most of any token of its chunk, which a chunk waits for.
    residual: |q - (H + Lambda) x| / |q|, 0 where q is. cosine: between the read-outs G x and G q.
    smallest, largest: eigenvalues of H + Lambda, or None where no spectrum was asked for.
    """

    steps: Tensor
    chunk_steps: Tensor
    residual: Tensor
    cosine: Tensor
    smallest: Tensor | None
    largest: Tensor | None


class Inputs(NamedTuple):
    """What all forms take beside the state: q, k [B, T, H, K] and v [B, T, H, V].

    log_decay: <= 0, where -inf forgets all that came before; beta: in [0, 1]; both [B, T, H]. regularizer: the diagonal of
    Lambda, > 0, [H, K], or [B, T, H, K] where every token has its own. sign: [B, T, H] of 1 and -1 with
    gamma = sign exp(log_decay), or None for gamma = exp(log_decay).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor
    beta: Tensor
    regularizer: Tensor
    sign: Tensor | None = None


def recurrent(inputs: Inputs, *, state: MesaState) -> tuple[Tensor, MesaState]:
    """The definition, a token at a time, solved exactly and differentiated through the solve: the ground truth."""
    q, k, v, log_decay, beta, regularizer, sign = inputs
    G, H, outputs = state.G, state.H, []
    penalty = regularizer.to(H.dtype)
    penalties = [torch.diag_embed(penalty)] * q.shape[1] if penalty.ndim == 2 else map(torch.diag_embed, penalty.unbind(1))
    tokens = over_time(q, k, v, _signed(log_decay.exp(), sign), beta, dtype=H.dtype)
    for (q_t, k_t, v_t, gamma_t, beta_t), penalty_t in zip(tokens, penalties, strict=True):
        G = gamma_t * G + (beta_t * v_t) @ k_t.mT
        H = gamma_t * H + (beta_t * k_t) @ k_t.mT
        A = H + penalty_t
        # Only decays below 0 can leave A indefinite.
        x_t = torch.cholesky_solve(q_t, torch.linalg.cholesky(A)) if sign is None else torch.linalg.solve_ex(A, q_t).result
        outputs.append(G @ x_t)
    return torch.stack(outputs, dim=1).squeeze(-1), MesaState(G, H)


def chunked(inputs: Inputs, *, state: MesaState, solver: Solver, chunk_size: int) -> tuple[Tensor, MesaState]:
    """The layer in matrix products over chunks of chunk_size >= 1 tokens, solved by `solver`: what trains.

    Time and memory are linear in T; save with `Cholesky`, no K x K matrix is held per token. A solver that starts at the
    token before has nothing to do in parallel: it runs `decode` token after token, and holds G and H of each for gradients.
    """
    if solver.initial == "previous_token":
        outputs = []
        for token in _tokens(inputs):
            o, state = decode(token, state=state, solver=solver)
            outputs.append(o)
        return torch.cat(outputs, dim=1), state
    chunks = _split(inputs, state, chunk_size)
    if solver.gradient == "implicit":
        o, after = solve_and_read_chunks(chunks, solver)
    else:
        operator, after = _scan(chunks)
        o, _ = solve_and_read(operator, chunks.q, solver, None)
    return join_heads(o, inputs.v.shape), _halves(after, inputs)


def decode(inputs: Inputs, *, state: MesaState, solver: Solver) -> tuple[Tensor, MesaState]:
    """The layer for T = 1, solved by `solver` on the H_t that has to be written anyway."""
    q, operator, guess, after = _step(inputs, state, solver)
    o, x = solve_and_read(operator, q, solver, guess)
    return o.reshape(inputs.v.shape), _remember(after, x, solver)


@torch.no_grad()
def trace(inputs: Inputs, *, state: MesaState, solver: Solver, chunk_size: int, spectrum: bool) -> SolverTrace:
    """What `chunked` spends on the same inputs, how far from solved it is then, and with `spectrum` how hard it was.

    For one token, T = 1, it is what `decode` spends: its matrix is at hand there, and so is a better preconditioner.

    A solver that starts at the token before waits for no other token: its chunk_steps are its steps.
    """
    batch_size, length, num_heads, _ = inputs.q.shape
    if solver.initial != "previous_token" and length > 1:
        chunks = _split(inputs, state, chunk_size)
        observed, _ = _observe(_scan(chunks)[0], chunks.q, solver, None, spectrum)
        return SolverTrace(*(x if x is None else join_heads(x.unsqueeze(-1), inputs.k.shape).squeeze(-1) for x in observed))
    traces = []
    for token in _tokens(inputs):
        q_t, operator, guess, after = _step(token, state, solver)
        observed, x = _observe(operator, q_t, solver, guess, spectrum)
        traces.append(observed)
        state = _remember(after, x, solver)
    shape = (batch_size, num_heads, length)
    return SolverTrace(*(None if x[0] is None else torch.cat(x, dim=1).view(shape).mT for x in zip(*traces, strict=True)))


def frobenius_norm(*, k: Tensor, log_decay: Tensor, beta: Tensor, sign: Tensor | None, H: Tensor, chunk_size: int) -> Tensor:
    """|H_t|_F at every token [B, T, H], with no K x K matrix a token; H is the state before, the rest as in `chunked`."""
    nothing, penalty = k[..., :0], torch.zeros_like(k[0, 0])
    inputs = Inputs(k, k, nothing, log_decay, beta, penalty, sign)
    operator, _ = _scan(_split(inputs, MesaState(H[..., :0, :], H), chunk_size))
    return join_heads(operator.frobenius_norm(), k.shape).squeeze(-1)


def _signed(x: Tensor, sign: Tensor | None) -> Tensor:
    return x if sign is None else x * sign


def _scan(chunks: Chunks) -> tuple[ChunkOperator, Tensor]:
    """The matrices of every token, and the state behind the last chunk, [B, H, V + K, K]."""
    before, after = scan_states(torch.bmm(chunks.values.mT, chunks.ends), chunks.kept, chunks.state)
    return chunks.operator(before), after


def _halves(memory: Tensor, inputs: Inputs) -> MesaState:
    """G and H, which [B, H, V + K, K] holds one above the other."""
    return MesaState(*memory.split([inputs.v.shape[-1], inputs.k.shape[-1]], dim=-2))


def _split(inputs: Inputs, state: MesaState, chunk_size: int) -> Chunks:
    """The sequence as chunks."""
    q, k, v, log_decay, beta, regularizer, sign = inputs
    batch_size, length, num_heads, key_dim = k.shape
    dtype = state.H.dtype
    values = torch.cat([v, k], dim=-1)
    q, k, values, log_decay, beta = split_heads(q, k, values, log_decay, beta, chunk_size=chunk_size, dtype=dtype)
    decays = chunk_decays(log_decay)
    if sign is not None:
        decays = _with_sign(decays, *split_heads(sign, chunk_size=chunk_size, dtype=dtype))
    num_chunks = len(k) // (batch_size * num_heads)
    if regularizer.ndim == 2:
        per_chunk = regularizer.to(dtype)[:, None, None].expand(batch_size, num_heads, num_chunks, 1, key_dim).flatten(0, 2)
    else:
        # 1 in the padding, where H may be 0 and A must not be.
        padded = F.pad(regularizer, (0, 0, 0, 0, 0, num_chunks * k.shape[1] - length), value=1.0)
        (per_chunk,) = split_heads(padded, chunk_size=k.shape[1], dtype=dtype)
    from_start = decays.from_start.unsqueeze(-1)
    return Chunks(
        q=q,
        keys=k,
        values=values,
        weights=decays.within * beta.unsqueeze(-2),
        from_start=from_start,
        regularizer=per_chunk,
        ends=k * (beta * decays.to_end).unsqueeze(-1),
        kept=from_start[:, -1:],
        state=torch.cat([state.G, state.H], dim=-2),
    )


def _with_sign(decays: ChunkDecays, sign: Tensor) -> ChunkDecays:
    """The decays where gamma_t has the sign [M, C]; the padding's 0 counts as 1."""
    total = torch.where(sign < 0.0, -1.0, 1.0).to(sign.dtype).cumprod(-1)
    within = decays.within * total.unsqueeze(-1) * total.unsqueeze(-2)
    return ChunkDecays(within, decays.from_start * total, within[..., -1, :])


def _step(inputs: Inputs, state: MesaState, solver: Solver) -> tuple[Tensor, TokenOperator, Tensor | None, MesaState]:
    """One token: q [M, 1, K] with M = B H, its matrices, the guess from the token before it, and the state it leaves."""
    q, k, v, log_decay, beta, regularizer, sign = inputs
    batch_size, _, num_heads, key_dim = k.shape
    ((q_t, k_t, values, gamma_t, beta_t),) = over_time(
        q, k, torch.cat([v, k], dim=-1), _signed(log_decay.exp(), sign), beta, dtype=state.H.dtype
    )
    memory = gamma_t * torch.cat([state.G, state.H], dim=-2) + (beta_t * values) @ k_t.mT
    diagonal = regularizer if regularizer.ndim == 2 else regularizer[:, 0]
    per_head = diagonal.to(memory.dtype).expand(batch_size, num_heads, key_dim).reshape(-1, 1, key_dim)
    guess = None
    if solver.initial == "previous_token" and state.x is not None:
        # What a reset forgets is no guess either.
        guess = state.x.masked_fill(log_decay[:, 0, :, None] == float("-inf"), 0.0).reshape(-1, 1, key_dim)
    after = MesaState(*memory.split([v.shape[-1], key_dim], dim=-2))
    return q_t.flatten(0, 1).mT, TokenOperator(memory.flatten(0, 1), per_head), guess, after


def _remember(state: MesaState, x: Tensor, solver: Solver) -> MesaState:
    return state._replace(x=x.view(*state.H.shape[:-1])) if solver.initial == "previous_token" else state


def _tokens(inputs: Inputs) -> Iterator[Inputs]:
    """One token after the other, with T = 1; what is [H, K] or None is the same at all."""
    length = inputs.q.shape[1]
    tokens = ([x] * length if x is None or x.ndim == 2 else x.split(1, dim=1) for x in inputs)
    return (Inputs(*token) for token in zip(*tokens, strict=True))


def _observe(
    operator: MesaOperator, q: Tensor, solver: Solver, guess: Tensor | None, spectrum: bool
) -> tuple[SolverTrace, Tensor]:
    """The fields of the trace, each [M, C], and the solution x [M, C, K]."""
    solution = solver.solve(operator, q, guess)
    x, steps, _ = solution
    size = q.norm(dim=-1)
    # 0 where q is 0, and NaN still where x is.
    residual = (q - operator.product(x)).norm(dim=-1) / size.masked_fill(size == 0.0, 1.0)
    cosine = F.cosine_similarity(read(operator, solution), operator.read(q), dim=-1)
    smallest, largest = _extreme_eigenvalues(operator) if spectrum else (None, None)
    chunk_steps = steps.amax(-1, keepdim=True).expand_as(steps)
    return SolverTrace(steps, chunk_steps, residual, cosine, smallest, largest), x


def _extreme_eigenvalues(operator: MesaOperator) -> tuple[Tensor, Tensor]:
    # A chunk at a time, as each of its tokens has a K x K matrix.
    parts = zip(*(x.split(1) for x in operator), strict=True)
    eigenvalues = [torch.linalg.eigvalsh(type(operator)(*part).dense())[..., [0, -1]] for part in parts]
    return torch.cat(eigenvalues).unbind(-1)
