"""Kimi Delta Attention (KDA, Kimi Linear, arXiv 2510.26692), on the shared backbone of MesaNet (arXiv 2506.05233).

Glossary, our name to the paper's letter: query q, key k, value v, log_decay log(alpha), beta beta, state G (S, transposed).
"""

from __future__ import annotations

from torch import Tensor

from conf.settings import Count, Positive
from models.components import MambaDecay
from models.linear_rnn import DecayRates, LinearRNN
from models.mixer import State
from models.ops import generalized_delta_rule


class KDA(LinearRNN):
    """Gated DeltaNet in which every channel of the key forgets at a rate of its own, W_2 W_1 x of low rank:

        G_t = G_{t-1} Diag(alpha_t) (I - beta_t k_t k_t^T) + beta_t v_t k_t^T,   o_t = G_t q_t
        log(alpha_t) = -rate softplus(W_2 W_1 x_t + b)

    The factor K^-1/2 that the authors give q is left out: behind the norm of a head it changes the weight of norm_eps alone.
    """

    name = "kda.KDA"
    op = generalized_delta_rule

    class Settings(LinearRNN.Settings, kw_only=True):
        """decay_rank: numbers between W_1 and W_2, or None for one matrix.

        decay_bound: b, of log(alpha) = -b sigmoid(rate (W_2 W_1 x + b)) instead, which is above -b (the safe gate), or None.
        negative_eigenvalues: beta in [0, 2] in place of [0, 1], for keys of at most unit length.
        """

        decay_rates: DecayRates
        decay_rank: Count | None
        decay_bound: Positive | None
        negative_eigenvalues: bool

    settings: Settings

    def _decay(self, d_model: int, rates: DecayRates) -> MambaDecay:
        rank, bound = self.settings.decay_rank, self.settings.decay_bound
        return MambaDecay(d_model=d_model, num_heads=self.num_heads, channels=self.key_dim, rank=rank, bound=bound, rates=rates)

    def beta(self, x: Tensor) -> Tensor:
        return super().beta(x) * (2.0 if self.settings.negative_eigenvalues else 1.0)

    def recurrence(
        self, *, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: State
    ) -> tuple[Tensor, State]:
        beta = beta.unsqueeze(-1)
        keys = {"q": q, "e": k, "a": k, "u": v}
        return self.by_op({**keys, "log_decay": log_decay, "erase": beta, "write": beta}, state)

    def recurrence_flops_per_token(self) -> float:
        """What G returns for the key, the outer product written into it and the read-out."""
        return 6.0 * self.num_heads * self.value_dim * self.key_dim
