"""The published Mamba2 block (Dao & Gu 2024, arXiv 2405.21060, section 7), on the shared backbone.

Glossary, our name to the paper's letter: query C, key B, value X, gate z, step size dt, state h, key_dim N (state size),
value_dim P (head dimension), decay_rate -A, skip D.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conf.settings import Count, Positive, Refusal
from models.backends import resolve
from models.components import HeadRMSNorm, ShortConvolution, linear_flops_per_token
from models.initialization import uniform_
from models.linear_rnn import NormEps
from models.mixer import SequenceMixer, State
from models.ops import ssd


class Mamba2(SequenceMixer):
    """linear(norm((h_t C_t + D x_t) * silu(z_t))), where one linear map and one convolution give what the recurrence reads.

        x, B, C = silu(conv(linear(input)) + bias)
        dt      = softplus(linear(input) + bias)
        h_t     = exp(-dt_t decay_rate) h_{t-1} + dt_t x_t B_t^T        in every head

    B and C are shared by the heads of a group, and the RMS of the norm is that of a group. Matrices and the convolution start
    as in every mixer here; the authors take PyTorch's uniform numbers.
    """

    name = "mamba2_original.Mamba2"
    op = ssd

    class Settings(SequenceMixer.Settings, kw_only=True):
        """expand: width / d_model. value_dim: width of a head. chunk_size: tokens a chunk of the chunked form.

        step_size_min, step_size_max: range of dt at the start, log-uniform. decay_rate_min, decay_rate_max: range of -A at
        the start, uniform.
        """

        expand: Count
        key_dim: Count
        value_dim: Count
        num_groups: Count
        conv_width: Count
        step_size_min: Positive
        step_size_max: Positive
        decay_rate_min: Positive
        decay_rate_max: Positive
        norm_eps: NormEps
        chunk_size: Count

        def __post_init__(self) -> None:
            if self.step_size_min > self.step_size_max:
                raise Refusal("step_size_min", self.step_size_min, f"numbers up to step_size_max, {self.step_size_max}")
            if self.decay_rate_min > self.decay_rate_max:
                raise Refusal("decay_rate_min", self.decay_rate_min, f"numbers up to decay_rate_max, {self.decay_rate_max}")

    settings: Settings

    def __init__(self, settings: Settings, *, d_model: int, backend: str) -> None:
        super().__init__(settings, d_model=d_model, backend=backend)
        self.key_dim, self.value_dim, self.num_groups = settings.key_dim, settings.value_dim, settings.num_groups
        self.width = settings.expand * d_model
        if self.width % self.value_dim:
            raise Refusal("value_dim", self.value_dim, f"divisors of the width {self.width}")
        self.num_heads = self.width // self.value_dim
        if self.num_heads % self.num_groups:
            raise Refusal("num_groups", self.num_groups, f"divisors of the number of heads {self.num_heads}")
        channels = self.width + 2 * self.num_groups * self.key_dim
        self.input_projection = nn.Linear(d_model, self.width + channels + self.num_heads, bias=False)
        self.convolution = ShortConvolution(channels=channels, width=settings.conv_width)
        self.convolution_bias = nn.Parameter(torch.empty(channels))
        self.step_size_bias = nn.Parameter(torch.empty(self.num_heads))
        self.log_decay_rate = nn.Parameter(torch.empty(self.num_heads))
        self.skip = nn.Parameter(torch.empty(self.num_heads))
        self.norm = HeadRMSNorm(num_heads=self.num_groups, dim=self.width // self.num_groups, eps=settings.norm_eps)
        self.output_projection = nn.Linear(self.width, d_model, bias=False)

    def forward(self, x: Tensor, state: State | None = None, *, starts: Tensor | None = None) -> tuple[Tensor, State]:
        state = self.init_state(x.shape[0]) if state is None else state
        gate, inputs, conv = self._inputs(x, state["conv"], starts)
        op = resolve(ssd, self.kernel, length=x.shape[1], chunk_size=self.settings.chunk_size)
        # Autocast would narrow the products of the recurrence, whose state is a sum over the whole sequence.
        with torch.autocast(x.device.type, enabled=False):
            y, h = op(**inputs, A=self._A(), starts=starts, state=state["h"])
        return self._output(y, inputs["v"], gate, x.dtype), {"conv": conv, "h": h}

    def step_(self, x_t: Tensor, state: State) -> Tensor:
        if self.kernel is None:
            return super().step_(x_t, state)
        gate, inputs, conv = self._inputs(x_t.unsqueeze(1), state["conv"], None)
        y = self.kernel.in_place(*(x.squeeze(1) for x in inputs.values()), self._A(), state["h"])
        state["conv"].copy_(conv)
        return self._output(y.unsqueeze(1), inputs["v"], gate, x_t.dtype).squeeze(1)

    def _inputs(self, x: Tensor, conv: Tensor, starts: Tensor | None) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The gate [B, T, width], q, k, v and dt as in models/ops/ssd.py, and the new state of the convolution."""
        widths = [self.width, self.width + 2 * self.num_groups * self.key_dim, self.num_heads]
        gate, channels, dt = self.input_projection(x).split(widths, dim=-1)
        channels, conv = self.convolution(channels, conv, starts=starts)
        channels = F.silu(channels + self.convolution_bias.to(channels.dtype))
        values, keys_queries = channels.split([self.width, 2 * self.num_groups * self.key_dim], dim=-1)
        k, q = keys_queries.unflatten(-1, (2, self.num_groups, self.key_dim)).unbind(2)
        dt = F.softplus(dt.to(self._wide) + self.step_size_bias)
        v = values.unflatten(-1, (self.num_heads, self.value_dim))
        return gate, {"q": q, "k": k, "v": v, "dt": dt}, conv

    def _output(self, y: Tensor, v: Tensor, gate: Tensor, dtype: torch.dtype) -> Tensor:
        """The output of the layer [B, T, d_model], computed up to its projection in float32 or wider and then in dtype."""
        y = y + self.skip.unsqueeze(-1) * v
        y = y.flatten(-2) * F.silu(gate.to(self._wide))
        return self.output_projection(self.norm(y.unflatten(-1, (self.num_groups, -1))).flatten(-2).to(dtype))

    def _A(self) -> Tensor:
        """The negative decay rates [H]."""
        return -torch.exp(self.log_decay_rate.to(self._wide))

    @property
    def _wide(self) -> torch.dtype:
        """The dtype of gates and states: that of the parameters, but at least float32."""
        return torch.promote_types(self.skip.dtype, torch.float32)

    def init_state(self, batch_size: int) -> State:
        h = self.zeros(batch_size, self.num_heads, self.value_dim, self.key_dim)
        return {"conv": self.convolution.init_state(batch_size), "h": h}

    def forward_flops_per_token(self, seq_len: int) -> float:
        """Linear maps, the convolution, and the recurrence: the outer product written into h and the read-out."""
        return linear_flops_per_token(self) + 4.0 * self.width * self.key_dim

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator) -> None:
        super().reset_parameters(generator)
        nn.init.zeros_(self.convolution_bias)
        low, high = math.log(self.settings.step_size_min), math.log(self.settings.step_size_max)
        dt = uniform_(self.step_size_bias, low=low, high=high, generator=generator).exp()
        # softplus(x) = dt, hence x = log(exp(dt) - 1) = dt + log(1 - exp(-dt)), which is exact near 0.
        self.step_size_bias.copy_(dt + torch.log(-torch.expm1(-dt)))
        low, high = self.settings.decay_rate_min, self.settings.decay_rate_max
        uniform_(self.log_decay_rate, low=low, high=high, generator=generator).log_()
        nn.init.ones_(self.skip)
