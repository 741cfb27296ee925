"""DeltaNet (arXiv 2406.06484) and Gated DeltaNet (arXiv 2412.06464), on the shared backbone of MesaNet (arXiv 2506.05233).

Glossary, our name to the papers' letter: query q, key k, value v, log_decay log(gamma) (alpha in Gated DeltaNet),
beta beta (writing strength), state G (S in both).
"""

from __future__ import annotations

from torch import Tensor

from models.backends import fla, form
from models.linear_rnn import LinearRNN
from models.mixer import State
from models.ops import delta_rule


class DeltaNet(LinearRNN):
    """G_t = gamma_t G_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T, o_t = G_t q_t; ungated without a forget gate."""

    name = "deltanet.DeltaNet"

    @classmethod
    def backends(cls, settings: LinearRNN.Settings) -> tuple[str, ...]:
        return ("fla", "torch") if settings.key_dim <= fla.LARGEST_KEY_OF_DELTA_RULE else ("torch",)

    def recurrence(
        self, *, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: State
    ) -> tuple[Tensor, State]:
        op = form(
            delta_rule, backend=self.backend, length=q.shape[1], chunk_size=self.chunk_size, adapters={"fla": fla.delta_rule}
        )
        o, G = op(q=q, k=k, v=v, log_decay=log_decay, beta=self.writing_strength(k, beta), state=state["G"])
        return o, {"G": G}

    def recurrence_(self, inputs: dict[str, Tensor], state: State) -> Tensor:
        if self.backend != "fla":
            return super().recurrence_(inputs, state)
        beta = self.writing_strength(inputs["k"], inputs["beta"])
        return fla.delta_rule_(**inputs | {"beta": beta}, state=state["G"])

    def writing_strength(self, k: Tensor, beta: Tensor) -> Tensor:
        """How far G k is moved towards v, [B, T, H] in [0, 1 / |k|^2]."""
        return beta

    def recurrence_flops_per_token(self) -> float:
        """What G returns for the key, the outer product written into it and the read-out."""
        return 6.0 * self.num_heads * self.value_dim * self.key_dim
