"""Comba (arXiv 2506.02475), on the shared backbone of MesaNet (arXiv 2506.05233): the state and the read-out are fed back.

Glossary, our name to the paper's letter: query q, key k, value v, log_decay log(alpha), beta beta, feedback sigmoid(d) in
p = sigmoid(d) k, correction D, state G (S, transposed).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conf.settings import Refusal, within
from models.linear_rnn import LinearRNN
from models.mixer import State
from models.ops import generalized_delta_rule

SMALLEST_LOG_DECAY = -40.0
"""A stronger decay leaves nothing of a state beside what the same token erases of it, in float64 as well."""


class Comba(LinearRNN):
    """G_t = G_{t-1} (gamma_t I - beta_t p_t k_t^T) + beta_t v_t k_t^T,   o_t = G_t (q_t - D p_t),   p_t = sigmoid(d) k_t

    with a d and a D for every head: less is erased than is written, what is erased is read before the state decays (Gated
    DeltaNet has gamma_t (I - beta_t k_t k_t^T)), and what the key returns is taken out of the read-out.
    The authors' kernels (fla 0.6) bring q - D p, k and p to unit length behind all this. sigmoid(d) k is then k again, and d
    acts through q - D p alone, which is made of q and k of any length: unit_length="last".
    The factor K^-1/2 of the read-out is left out: behind the norm of a head it changes the weight of norm_eps alone.
    """

    name = "comba.Comba"
    op = generalized_delta_rule

    class Settings(LinearRNN.Settings, kw_only=True):
        """unit_length: "first" takes q and k as the feature map leaves them, "last" brings q - D p, k and p to unit length.

        feedback_init: d at the start. correction_init: D at the start.
        """

        unit_length: Literal["first", "last"]
        feedback_init: Annotated[float, within(-100, 100)]
        correction_init: Annotated[float, within(-100, 100)]

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.unit_length == "last" and self.feature_map != "silu":
                raise Refusal("feature_map", self.feature_map, "silu with unit_length=last")

    settings: Settings

    def __init__(self, settings: Settings, *, d_model: int, backend: str) -> None:
        super().__init__(settings, d_model=d_model, backend=backend)
        self.feedback = nn.Parameter(torch.empty(self.num_heads))
        self.correction = nn.Parameter(torch.empty(self.num_heads))

    def recurrence(
        self, *, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: State
    ) -> tuple[Tensor, State]:
        beta = beta.unsqueeze(-1)
        p = torch.sigmoid(self.feedback.to(beta.dtype)).unsqueeze(-1) * k
        q = q - self.correction.to(beta.dtype).unsqueeze(-1) * p
        if self.settings.unit_length == "last":
            q, k, p = (F.normalize(each, dim=-1) for each in (q, k, p))
        # The op reads what has decayed, hence p / gamma, which would overflow where gamma is too small to matter.
        held = log_decay.clamp(min=SMALLEST_LOG_DECAY)
        log_decay = torch.where(log_decay == float("-inf"), log_decay, held)
        e = p * torch.exp(-held).unsqueeze(-1)
        return self.by_op({"q": q, "e": e, "a": k, "u": v, "log_decay": log_decay, "erase": beta, "write": beta}, state)

    def recurrence_flops_per_token(self) -> float:
        """What G returns for the key, the outer product written into it and the read-out."""
        return 6.0 * self.num_heads * self.value_dim * self.key_dim

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator) -> None:
        super().reset_parameters(generator)
        nn.init.constant_(self.feedback, self.settings.feedback_init)
        nn.init.constant_(self.correction, self.settings.correction_init)
