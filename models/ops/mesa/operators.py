"""The matrices H_t + Lambda of the Mesa layer and the read-outs from its G_t, for one token and for whole chunks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from models.ops.mesa.preconditioners import (
    ChunkPreconditioner,
    TokenPreconditioner,
    precondition_chunks,
    precondition_token,
    root,
)


class TokenOperator(NamedTuple):
    """G and H + Lambda of one token: memory [M, V + K, K], G above H; regularizer [M, 1, K], the diagonal of Lambda.

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
        return torch.bmm(y.mT, x), y[..., -key_dim:] * x

    def bounds(self) -> tuple[Tensor, Tensor]:
        return _bounds(self.regularizer, self.frobenius_norm())

    def preconditioner(self) -> TokenPreconditioner:
        return precondition_token(self.dense().squeeze(1))

    def frobenius_norm(self) -> Tensor:
        """|H|_F, [M, 1, 1]."""
        return root(self._H.square().sum((-2, -1), keepdim=True))

    @property
    def _H(self) -> Tensor:
        return self.memory[:, -self.memory.shape[-1] :]


class ChunkOperator(NamedTuple):
    """G_t and H_t + Lambda of all tokens of M chunks, without ever holding a G_t or H_t (MesaNet eq. 9; for H with v := k).

    keys: [M, C, K]. values: [M, C, V + K], v and k. weights: [M, C, C], zeta_ts beta_s, what token s weighs at t.
    from_start: [M, C, 1], what is left at t of `memory` [M, V + K, K] before the chunk. regularizer: [M, 1, K], or
    [M, C, K] where each token has its own.
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
        into_keys, into_values, into_weights, into_regularizer = self.gradients_within(x, y)
        into_from_start = (torch.bmm(y, self.memory) * x).sum(-1, keepdim=True)
        into_memory = torch.bmm((y * self.from_start).mT, x)
        return into_keys, into_values, into_weights, into_from_start, into_memory, into_regularizer

    def gradients_within(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`gradients` into keys, values, weights and the regularizer, which the state before a chunk has no part in."""
        scores, into_weighted = torch.bmm(x, self.keys.mT), torch.bmm(y, self.values.mT)
        into_keys = torch.bmm((into_weighted * self.weights).mT, x)
        into_values = torch.bmm((scores * self.weights).mT, y)
        into_regularizer = (y[..., -x.shape[-1] :] * x).sum_to_size(self.regularizer.shape)
        return into_keys, into_values, into_weighted.mul_(scores), into_regularizer

    def bounds(self) -> tuple[Tensor, Tensor]:
        return _bounds(self.regularizer, self.frobenius_norm())

    def preconditioner(self) -> ChunkPreconditioner:
        beta = self.weights.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
        return precondition_chunks(self.keys, beta, self.from_start, self._H, self.regularizer)

    def frobenius_norm(self) -> Tensor:
        """|H_t|_F, [M, C, 1], with H_t = a H + W, W = sum_s w_s k_s k_s^T.

        |H_t|^2 = a^2 |H|^2 + 2 a sum_s w_s k_s^T H k_s + |W|^2 and |W|^2 = sum_rs w_r w_s (k_r^T k_s)^2.
        """
        H, overlaps = self._H, torch.bmm(self.keys, self.keys.mT)
        start = self.from_start.square() * H.square().sum((-2, -1), keepdim=True)
        mixed = torch.bmm(self.weights, (torch.bmm(self.keys, H) * self.keys).sum(-1, keepdim=True))
        within = (torch.bmm(self.weights, overlaps.square()) * self.weights).sum(-1, keepdim=True)
        return root(start + 2.0 * self.from_start * mixed + within)

    @property
    def _H(self) -> Tensor:
        return self.memory[:, -self.keys.shape[-1] :]

    def _attend(self, p: Tensor, keys: Tensor, values: Tensor, start: Tensor) -> Tensor:
        """Gated linear attention: sum_s weights_ts (keys_s . p_t) values_s + from_start_t p_t start."""
        # In place, as this is the inner loop of the solver and fresh memory costs a CPU as much as the arithmetic.
        scores = torch.bmm(p, keys.mT).mul_(self.weights)
        return torch.bmm(p, start).mul_(self.from_start).baddbmm_(scores, values)


def _bounds(regularizer: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
    """H has eigenvalues between 0 and its Frobenius norm; both [M, C, 1]."""
    smallest, largest = regularizer.amin(-1, keepdim=True), regularizer.amax(-1, keepdim=True) + norm
    return smallest.expand_as(largest), largest
