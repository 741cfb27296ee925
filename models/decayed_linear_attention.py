"""Linear attention with no gate, a forget gate ("Mamba2") or both gates ("GLA"), as MesaNet (arXiv 2506.05233) has them.

These are ablations on the shared backbone (Table 1), with one scalar gate a head, not the published architectures.

Glossary, our name to the paper's letter: query q, key k, value v, log_decay log(gamma) (forget gate),
beta beta (input gate), state G.
"""

from __future__ import annotations

from models.linear_rnn import LinearRNN
from models.ops import decayed_linear_attention


class DecayedLinearAttention(LinearRNN):
    """G_t = gamma_t G_{t-1} + beta_t v_t k_t^T, o_t = G_t q_t (Table 1, rows Mamba2 and GLA)."""

    name = "gated_linear_attention.DecayedLinearAttention"
    op = decayed_linear_attention

    def recurrence_flops_per_token(self) -> float:
        """The outer product written into G and the read-out."""
        return 4.0 * self.num_heads * self.value_dim * self.key_dim
