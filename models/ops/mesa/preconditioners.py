"""Matrices M_t near the H_t + Lambda of Mesa for all tokens of a chunk, which are inverted all at once.

Let H be the state before a chunk, a_t what is left of it at t, and w_s = beta_s / a_s. Then

    H_t + Lambda = a_t (H + Lambda / a_t + sum_{s <= t} w_s k_s k_s^T).

Were it not for the a_t below Lambda, the brackets would differ by nothing but how many of the same terms they sum. So let

    M_t = a_t (H + Lambda / c + sum_{s <= t} w_s k_s k_s^T) = H_t + Lambda + (a_t / c - 1) Lambda,   c a constant,

and, with P = (H + Lambda / c)^-1 and W the C x K matrix of rows sqrt(w_s) k_s, let S = I + W P W^T = L L^T. By Woodbury

    M_t^-1 = 1 / a_t (P - P W_t^T S_t^-1 W_t P)   with W_t the first t rows of W, and S_t the first t rows and columns of S.

The Cholesky factor of S_t is that block of L, and solving with L goes from the first row down, so that the first t rows of
F = L^-1 W P are those of every t, and one causal linear attention with F as keys and values serves the chunk:

    M_t^-1 r_t = 1 / a_t (P r_t - sum_{s <= t} (f_s . r_t) f_s).

M_t - (H_t + Lambda) is a multiple of Lambda, which is nowhere above H_t + Lambda, so that whatever the conditioning, the
eigenvalues of M_t^-1 (H_t + Lambda) lie between 1 and c / a_t: the condition number is at most that of c to a_t, and n steps
after the guess M_t^-1 b leave at most 2 ((sqrt(k) - 1) / (sqrt(k) + 1))^(n + 1) of the error in the norm of A at a condition
number k. Two constants are enough for the `ANCHORS`' k of 1.13 at a_t from 0.8, thus 6e-5 after two steps, and of 1.75 at a_t
from 0.2, thus 1e-4 after four. Below, w would grow out of bounds, and H_t + Lambda is well conditioned, as little is
remembered: there M_t is the identity.

A token takes its constant by its own a_t, and no other than it sees enters: at any number of steps, the future changes
nothing. Where a Lambda_t is given for every token, that of the chunk's first one takes its place in M_t, and a token takes
the constant by a_t Lambda_1 / Lambda_t. Where a decay is negative, M_t is the identity from then on.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ANCHORS = {0.6: 0.89, 0.2: 0.35}
"""The constant c of all tokens with an a_t from the key on, up to the key before."""

LEAST = min(ANCHORS)


class TokenPreconditioner(NamedTuple):
    """M = A, exactly, for one token: factor [M, K, K], its Cholesky factor; where [M, 1, 1], whether it has one."""

    where: Tensor
    factor: Tensor

    def inverse(self, r: Tensor) -> Tensor:
        return torch.where(self.where, torch.cholesky_solve(r.mT, self.factor).mT, r)


class Level(NamedTuple):
    """The M_t of one constant: chunks [N], which of all there are; start P [N, K, K]; keys F [N, C, K].

    share: [N, C, 1], 1 / a_t of the tokens that take this constant, 0 of the others. within: [N, C, C], the same at s <= t.
    """

    chunks: Tensor
    start: Tensor
    keys: Tensor
    share: Tensor
    within: Tensor

    def inverse(self, r: Tensor) -> Tensor:
        scores = torch.bmm(r, self.keys.mT).mul_(self.within)
        return torch.bmm(r, self.start).mul_(self.share).baddbmm_(scores, self.keys, alpha=-1.0)


class ChunkPreconditioner(NamedTuple):
    """where: [M, C, 1], the tokens that take one of the constants."""

    where: Tensor
    levels: list[Level]

    def inverse(self, r: Tensor) -> Tensor:
        z = r.masked_fill(self.where, 0.0)
        for level in self.levels:
            everywhere = len(level.chunks) == len(r)
            part = level.inverse(r if everywhere else r[level.chunks])
            z = z + part if everywhere else z.index_add(0, level.chunks, part)
        return z


def precondition_token(A: Tensor) -> TokenPreconditioner:
    """A: [M, K, K], already held where there is one token; the identity where it is not positive definite."""
    factor, definite = _factorise(A)
    return TokenPreconditioner(definite, factor)


def precondition_chunks(keys: Tensor, beta: Tensor, decay: Tensor, H: Tensor, regularizer: Tensor) -> ChunkPreconditioner:
    """keys [M, C, K]; beta and decay, a_t, [M, C, 1]; H [M, K, K]; regularizer [M, 1, K] or [M, C, K]."""
    first = regularizer[:, :1]
    # From the first a_t below on, also where a second negative decay makes them positive again.
    usable = decay.detach().cummin(dim=-2).values >= LEAST
    relative = decay.detach() * (first / regularizer).detach().mean(-1, keepdim=True)
    share = torch.where(usable, 1.0 / decay.masked_fill(~usable, 1.0), 0.0)
    weighted = root(beta * share) * keys
    levels, where, below = [], torch.zeros_like(usable), float("inf")
    for lowest, anchor in ANCHORS.items():
        taken, below = usable & (relative >= lowest) & (relative < below), lowest
        chunks = taken.flatten(1).any(-1).nonzero().squeeze(-1)
        if len(chunks):
            level, definite = _level(chunks, weighted[chunks], H[chunks], first[chunks] / anchor, (share * taken)[chunks])
            levels.append(level)
            where = where.index_copy(0, chunks, where[chunks] | (taken[chunks] & definite))
    return ChunkPreconditioner(where, levels)


def _level(chunks: Tensor, weighted: Tensor, H: Tensor, penalty: Tensor, share: Tensor) -> tuple[Level, Tensor]:
    """The level of these chunks, and for which of them [N, 1, 1] it is positive definite."""
    factor, definite = _factorise(H + torch.diag_embed(penalty.squeeze(-2)))
    start = torch.cholesky_inverse(factor)
    projected = torch.bmm(weighted, start)
    inner, also = _factorise(torch.baddbmm(torch.eye(weighted.shape[1]).to(H), projected, weighted.mT))
    keys = torch.linalg.solve_triangular(inner, projected, upper=False)
    share = share * (definite & also)
    return Level(chunks, start, keys, share, share.expand(-1, -1, keys.shape[1]).tril()), definite & also


def _factorise(A: Tensor) -> tuple[Tensor, Tensor]:
    """The Cholesky factors of A [N, K, K], and whether they exist [N, 1, 1]: the identity where they do not."""
    factor, failed_at = torch.linalg.cholesky_ex(A)
    definite = (failed_at == 0).view(-1, 1, 1)
    return torch.where(definite, factor, torch.eye(A.shape[-1]).to(A)), definite


def root(x: Tensor) -> Tensor:
    """The square root of what rounding may have left below 0, with a gradient of 0 there."""
    positive = x > 0.0
    return torch.where(positive, x, 1.0).sqrt().masked_fill(~positive, 0.0)
