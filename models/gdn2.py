"""Gated DeltaNet-2 (arXiv 2605.22791), on the shared backbone of MesaNet (arXiv 2506.05233).

Glossary, our name to the paper's letter: query q, key k, value v, log_decay log(alpha), erase b, write w, state G.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.kda import KDA
from models.mixer import State


class GatedDeltaNet2(KDA):
    """KDA with two gates in the place of beta, for every channel of the key and of the value, by matrices of full rank:

        G_t = G_{t-1} Diag(alpha_t) (I - (b_t * k_t) k_t^T) + (w_t * v_t) k_t^T,   o_t = G_t q_t
        b_t = sigmoid(W_b x_t),   w_t = sigmoid(W_w x_t)

    b = w = beta is KDA. The rule's matrix is not symmetric: its eigenvalue 1 - sum(b k^2) is in [0, 1], its norm may exceed 1.
    """

    name = "gdn2.GatedDeltaNet2"

    class Settings(KDA.Settings, kw_only=True):
        """negative_eigenvalues: b in [0, 2] in place of [0, 1], for keys of at most unit length; w stays."""

        input_gate_init: None

    def __init__(self, settings: Settings, *, d_model: int, backend: str) -> None:
        super().__init__(settings, d_model=d_model, backend=backend)
        self.erase_projection = nn.Linear(d_model, self.num_heads * self.key_dim, bias=False)
        self.write_projection = nn.Linear(d_model, self.num_heads * self.value_dim, bias=False)

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        """log_decay and erase [B, T, H, K], write [B, T, H, V], in float32 or wider."""
        logits = (self.erase_projection(x), self.write_projection(x))
        wide = (each.to(torch.promote_types(each.dtype, torch.float32)).unflatten(-1, (self.num_heads, -1)) for each in logits)
        erase, write = map(torch.sigmoid, wide)
        return {
            "log_decay": self.log_decay(x),
            "erase": 2.0 * erase if self.settings.negative_eigenvalues else erase,
            "write": write,
        }

    def mix(self, inputs: dict[str, Tensor], state: State) -> tuple[Tensor, State]:
        q, k, v, log_decay, erase, write = (inputs[name] for name in ("q", "k", "v", "log_decay", "erase", "write"))
        keys = {"q": q, "e": k, "a": k, "u": v}
        return self.by_op({**keys, "log_decay": log_decay, "erase": erase, "write": write}, state)
