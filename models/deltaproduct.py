"""DeltaProduct (arXiv 2502.10297), on the shared backbone of MesaNet (arXiv 2506.05233): several delta steps a token.

Glossary, our name to the paper's letter: query q, key k, value v, log_decay log(gamma), beta beta, num_householder n_h, state G
(H, transposed).
"""

from __future__ import annotations

from torch import Tensor

from conf.settings import Count
from models.linear_rnn import LinearRNN
from models.mixer import State
from models.ops import generalized_delta_rule


class DeltaProduct(LinearRNN):
    """o_t = G_{t,n} q_t behind n delta steps with keys, values and betas of their own, the first of which forgets as well:

        G_{t,0} = gamma_t G_{t-1,n},   G_{t,j} = G_{t,j-1} (I - beta_{t,j} k_{t,j} k_{t,j}^T) + beta_{t,j} v_{t,j} k_{t,j}^T

    With beta = 2 a step is a reflection, and n of them are any rotation of n dimensions or permutation of n + 1 elements. The
    factor K^-1/2 of the read-out is left out: behind the norm of a head it changes the weight of norm_eps alone.
    """

    name = "deltaproduct.DeltaProduct"
    op = generalized_delta_rule

    class Settings(LinearRNN.Settings, kw_only=True):
        """num_householder: n. negative_eigenvalues: beta in [0, 2] in place of [0, 1], for keys of at most unit length."""

        num_householder: Count
        negative_eigenvalues: bool

    settings: Settings

    @property
    def num_writes(self) -> int:
        return self.settings.num_householder

    def beta(self, x: Tensor) -> Tensor:
        return super().beta(x) * (2.0 if self.settings.negative_eigenvalues else 1.0)

    def recurrence(
        self, *, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: State
    ) -> tuple[Tensor, State]:
        beta = beta.unsqueeze(-1)
        keys = {"q": q, "e": k, "a": k, "u": v}
        return self.by_op({**keys, "log_decay": log_decay, "erase": beta, "write": beta}, state)

    def recurrence_flops_per_token(self) -> float:
        """What G returns for every key, the outer products written into it and the read-out."""
        return (4.0 * self.num_writes + 2.0) * self.num_heads * self.value_dim * self.key_dim
