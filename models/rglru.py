"""Hawk's recurrent block around the RG-LRU (De et al. 2024, arXiv 2402.19427, sections 2.3 and 2.4).

Glossary, our name to the paper's letter: state h, recurrence gate r, input gate i, log_decay log(a_t),
decay_parameter Lambda, decay_power c, width D_RNN.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conf.settings import Count, Positive, Refusal, between
from models.components import BlockDiagonalLinear, ShortConvolution, linear_flops_per_token
from models.initialization import uniform_
from models.mixer import SequenceMixer, State
from models.ops import rglru


class RGLRU(SequenceMixer):
    """linear(gelu(linear(x)) * RG-LRU(conv(linear(x)))), a recurrence with a vector for a state.

        r_t, i_t = sigmoid(W_r x_t + b_r), sigmoid(W_i x_t + b_i)         W block-diagonal with num_heads blocks
        log a_t  = -decay_power * softplus(Lambda) * r_t
        h_t      = a_t * h_{t-1} + sqrt(1 - a_t^2) * (i_t * x_t)

    At a start h_{t-1} is zero and the input keeps its factor sqrt(1 - a_t^2), the paper's equation at t = 1, so that a
    document in a pack and the same one by itself are one; the authors' code lets a first token in at full size. Linear
    maps have biases as in their code; the convolution has none, as in every mixer here.
    """

    name = "rglru.RGLRU"
    op = rglru

    class Settings(SequenceMixer.Settings, kw_only=True):
        """width_multiplier: width / d_model. decay_min, decay_max: range of a^c at the start. chunk_size: tokens a chunk."""

        num_heads: Count
        width_multiplier: Positive
        conv_width: Count
        decay_power: Positive
        decay_min: Annotated[float, between(0, 1)]
        decay_max: Annotated[float, between(0, 1)]
        chunk_size: Count

        def __post_init__(self) -> None:
            if self.decay_min >= self.decay_max:
                raise Refusal("decay_min", self.decay_min, f"numbers below decay_max, {self.decay_max}")

    settings: Settings

    def __init__(self, settings: Settings, *, d_model: int, backend: str) -> None:
        super().__init__(settings, d_model=d_model, backend=backend)
        num_heads, width = settings.num_heads, round(settings.width_multiplier * d_model)
        if width < 1 or width % num_heads:
            raise Refusal("num_heads", num_heads, f"divisors of the width {width} = width_multiplier * d_model {d_model}")
        self.width = width
        self.gate_projection = nn.Linear(d_model, width)
        self.input_projection = nn.Linear(d_model, width)
        self.convolution = ShortConvolution(channels=width, width=settings.conv_width)
        self.gates = BlockDiagonalLinear(num_blocks=num_heads, d_in=width // num_heads, d_out=2 * width // num_heads)
        self.decay_parameter = nn.Parameter(torch.empty(width))
        self.output_projection = nn.Linear(width, d_model)

    def forward(self, x: Tensor, state: State | None = None, *, starts: Tensor | None = None) -> tuple[Tensor, State]:
        state = self.init_state(x.shape[0]) if state is None else state
        inner, conv = self.convolution(self.input_projection(x), state["conv"], starts=starts)
        log_decay, gate = self._log_decay_and_input_gate(inner)
        u = rglru.input_scale(log_decay) * gate * inner
        if starts is not None:
            log_decay = log_decay.masked_fill(starts.unsqueeze(-1), float("-inf"))
        op = self.kernel.computes if self.kernel is not None else partial(rglru.chunked, chunk_size=self.settings.chunk_size)
        h, last = op(log_decay=log_decay, u=u, state=state["h"])
        return self.output_projection(F.gelu(self.gate_projection(x)) * h.to(x.dtype)), {"conv": conv, "h": last}

    def _log_decay_and_input_gate(self, inner: Tensor) -> tuple[Tensor, Tensor]:
        """log a_t <= 0 and i_t in [0, 1], both [B, T, width] in float32 or wider."""
        logits = self.gates(inner)
        gates = torch.sigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32)))
        recurrence_gate, input_gate = (gate.flatten(-2) for gate in gates.chunk(2, dim=-1))
        return -self.settings.decay_power * F.softplus(self.decay_parameter) * recurrence_gate, input_gate

    def init_state(self, batch_size: int) -> State:
        return {"conv": self.convolution.init_state(batch_size), "h": self.zeros(batch_size, self.width)}

    def forward_flops_per_token(self, seq_len: int) -> float:
        """Linear maps and the convolution; the recurrence is elementwise."""
        return linear_flops_per_token(self)

    def reset_parameters(self, generator: torch.Generator) -> None:
        super().reset_parameters(generator)
        # a^c ~ U(decay_min, decay_max) where a = exp(-softplus(Lambda)), hence Lambda = log(exp(-log(a^c) / c) - 1).
        low, high = self.settings.decay_min, self.settings.decay_max
        uniform_(self.decay_parameter, low=low, high=high, generator=generator)
        with torch.no_grad():
            self.decay_parameter.copy_(torch.log(torch.expm1(-torch.log(self.decay_parameter) / self.settings.decay_power)))
