"""Decoding Mesa with the inverse itself, kept up by rank-one updates (Sherman-Morrison; MesaNet, arXiv 2506.05233, App. H).

With R for (H + Lambda)^-1, a token's update of H = gamma H + beta k k^T is one of R, and the solve a mere product:

    R' = R_{t-1} / gamma_t,   R_t = R' - (R' k_t) (R' k_t)^T / (1 / beta_t + k_t^T R' k_t),   o_t = G_t R_t q_t

What forgetting does to the regulariser: the recursion inverts gamma (H + Lambda) + beta k k^T, so Lambda is forgotten as
the keys are. With r the token of the last inversion,

    R_t = (H_t + c_t Lambda)^-1   with   c_t = prod_{r < s <= t} gamma_s

which is Mesa where gamma = 1, and least squares with a fading penalty elsewhere: R grows as 1 / c_t in all directions
that the keys have not visited, while MesaNet's Lambda stays. Two things bound that. A token that is `due` inverts
H_t + Lambda anew, so its c_t is 1. And a head does so by itself once half of the digits of its state would be lost, as
soon as R_ii Lambda_i > eps^-1/2 for some i (3e3 in float32, 7e7 in float64; an exact R has R_ii Lambda_i <= 1) or a gamma
falls below eps^1/2, as at a reset. So R stays finite at any length and any gate, but in float32 a head with a gate of
0.98 that is never due still comes to c = 3e-4, about 400 tokens after an inversion.

Rounding adds up from update to update, where a solve begins anew at every token: after 2000 tokens of one repeated key
(beta 1, Lambda 0.25, no forgetting) a float32 read-out is off by 9 %, that of a float32 solve by 0.03 %.

Inverting costs K^3 where an update costs K^2. It needs H, so the state holds three matrices a head where Mesa has two.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from models.ops.decay import over_time
from models.ops.mesa import Inputs


class InverseState(NamedTuple):
    """G: [B, H, V, K], sums of v k^T. H: [B, H, K, K], sums of k k^T. R: [B, H, K, K], the inverse of H + c Lambda."""

    G: Tensor
    H: Tensor
    R: Tensor


def invert(H: Tensor, regularizer: Tensor) -> Tensor:
    """(H + Lambda)^-1, exactly symmetric, for H [..., K, K] symmetric and the diagonal of Lambda [..., K] > 0."""
    inverse = torch.linalg.inv(H + torch.diag_embed(regularizer.to(H.dtype)))
    return (inverse + inverse.mT) / 2


def decode(inputs: Inputs, *, state: InverseState, due: Tensor) -> tuple[Tensor, InverseState]:
    """One token, T = 1, without a sign and with one Lambda for all tokens.

    due: [B] bool, the sequences in which R is inverted anew.
    Returns o [B, 1, H, V] and the state, both in the dtype of the state before, float32 or wider.
    """
    q, k, v, log_decay, beta, regularizer, _ = inputs
    G, H, R = state
    ((q_t, k_t, v_t, decay_t, beta_t),) = over_time(q, k, v, log_decay.exp(), beta, dtype=H.dtype)
    G = decay_t * G + (beta_t * v_t) @ k_t.mT
    H = decay_t * H + (beta_t * k_t) @ k_t.mT
    digits = torch.finfo(R.dtype).eps ** 0.5
    forgotten = decay_t < digits
    # Where almost all is forgotten R is replaced below; a quotient that overflows would leave NaN in its gradient.
    R = R / decay_t.masked_fill(forgotten, 1.0)
    Rk = R @ k_t
    R = R - (beta_t / (1.0 + beta_t * (k_t * Rk).sum(-2, keepdim=True))) * (Rk @ Rk.mT)
    low, high = (R.diagonal(dim1=-2, dim2=-1) * regularizer).aminmax(dim=-1)
    anew = forgotten.flatten(1) | (low <= 0.0) | (high > 1.0 / digits) | due.unsqueeze(-1)
    if anew.any():
        # Only of those heads: an inversion costs as much as K updates.
        per_head = regularizer.expand(*anew.shape, -1)
        R = R.index_put(anew.nonzero(as_tuple=True), invert(H[anew], per_head[anew]))
    o = (G @ (R @ q_t)).squeeze(-1).unsqueeze(1)
    return o, InverseState(G, H, R)
