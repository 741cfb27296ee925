"""DeltaNet (arXiv 2406.06484) and Gated DeltaNet (arXiv 2412.06464), on the shared backbone of MesaNet (arXiv 2506.05233).

Glossary, our name to the papers' letter: query q, key k, value v, log_decay log(gamma) (alpha in Gated DeltaNet),
beta beta (writing strength), state G (S in both).
"""

from __future__ import annotations

from models.linear_rnn import LinearRNN
from models.ops import delta_rule


class DeltaNet(LinearRNN):
    """G_t = gamma_t G_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T, o_t = G_t q_t; ungated without a forget gate."""

    name = "deltanet.DeltaNet"
    op = delta_rule

    def recurrence_flops_per_token(self) -> float:
        """What G returns for the key, the outer product written into it and the read-out."""
        return 6.0 * self.num_heads * self.value_dim * self.key_dim
