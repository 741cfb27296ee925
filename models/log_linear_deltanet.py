"""Log-linear Gated DeltaNet (arXiv 2506.04761) on the shared backbone of MesaNet (arXiv 2506.05233): a state for every scale.

Glossary, our name to the paper's letter: query q, key k, value v, log_decay log(alpha), beta beta (writing strength), weights
lambda, states S.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conf.settings import Count
from models.attention import positions_in_document
from models.backends import resolve
from models.linear_rnn import LinearRNN
from models.mixer import State
from models.ops import log_linear_delta_rule


class LogLinearDeltaNet(LinearRNN):
    """o_t = sum_l lambda_t^l S_t^l q_t,   lambda_t^l = softplus(c^l (W x_t)^l),   by models/ops/log_linear_delta_rule.py

    The S^l add up to Gated DeltaNet's state, so that there are as many matrices of a head as there are levels, about the
    logarithm of the length; W has a row, and c a number, for every head and level. c is 1 at the start.
    """

    name = "log_linear_deltanet.LogLinearDeltaNet"
    op = log_linear_delta_rule

    class Settings(LinearRNN.Settings, kw_only=True):
        """max_length: the tokens up to which a scale of the past has a level of its own; beyond it the last level grows."""

        max_length: Count

    settings: Settings

    def __init__(self, settings: Settings, *, d_model: int, backend: str) -> None:
        super().__init__(settings, d_model=d_model, backend=backend)
        self.num_levels = log_linear_delta_rule.num_levels(settings.max_length)
        self.level_projection = nn.Linear(d_model, self.num_heads * self.num_levels, bias=False)
        self.level_scale = nn.Parameter(torch.empty(self.num_heads, self.num_levels))

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        """Those of the base class, and weights [B, T, H, L] of the levels."""
        gates = super().gates(x)
        logits = self.level_projection(x).unflatten(-1, self.level_scale.shape).to(gates["beta"].dtype)
        return {**gates, "weights": F.softplus(self.level_scale * logits)}

    def mix(self, inputs: dict[str, Tensor], state: State) -> tuple[Tensor, State]:
        positions = positions_in_document(state["age"], inputs["log_decay"].isneginf().all(-1))
        length = positions.shape[1]
        op = resolve(log_linear_delta_rule, self.kernel, length=length, chunk_size=self.settings.chunk_size)
        o, S = op(**inputs, positions=positions, state=state["S"])
        return o, {"S": S, "age": positions[:, -1] + 1}

    def recurrence_flops_per_token(self) -> float:
        """Every level is read by the query and written, and all but the lowest are read by the key, too."""
        return self.num_heads * (6.0 * self.num_levels - 2.0) * self.value_dim * self.key_dim

    def init_state(self, batch_size: int) -> State:
        """S [B, H, L, V, K] in the place of G, and age [B] int64, the tokens of the document so far."""
        state = super().init_state(batch_size)
        S = self.zeros(batch_size, self.num_heads, self.num_levels, self.value_dim, self.key_dim)
        held = {name: x for name, x in state.items() if name != "G"}
        return {**held, "S": S, "age": torch.zeros(batch_size, dtype=torch.int64, device=S.device)}

    def reset_parameters(self, generator: torch.Generator) -> None:
        super().reset_parameters(generator)
        nn.init.ones_(self.level_scale)
