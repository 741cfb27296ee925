"""The published layers of xLSTM (Beck et al. 2024, arXiv 2405.04517, sections 2.2 to 2.4), on the shared backbone.

Glossary, our name to the paper's letter: query q, key k, value v, log_decay log(f) and log_beta the logit of i (forget and input
gate of the mLSTM), state G (C of the mLSTM), normaliser z (n of the mLSTM); of the sLSTM hidden state h, cell c, normaliser n;
stabiliser m.

What is taken from the authors' code (NX-AI/xlstm) is named in the two classes. The block around them is that of all arms: their
mLSTM has no MLP behind it, since it widens its input itself, and their sLSTM one of 4/3 d_model; here either has the same, and
norms before a layer are RMSNorm. Matrices and convolutions start as in every mixer here, gates as the authors' do.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conf.settings import Count, Positive, Refusal, within
from models.backends import resolve
from models.components import BlockDiagonalLinear, ShortConvolution, linear_flops_per_token
from models.initialization import normal_
from models.linear_rnn import NormEps
from models.mixer import SequenceMixer, State
from models.ops import mlstm, slstm

Logit = Annotated[float, within(-100, 100)]


class HeadwiseLinear(BlockDiagonalLinear):
    """A linear map without bias of each block of channels by itself, [..., num_blocks * d_in] -> [..., num_blocks, d_out]."""

    def __init__(self, *, num_blocks: int, d_in: int, d_out: int) -> None:
        super().__init__(num_blocks=num_blocks, d_in=d_in, d_out=d_out)
        self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("...hi,hio->...ho", x.unflatten(-1, self.weight.shape[:2]), self.weight)

    def reset_parameters(self, generator: torch.Generator) -> None:
        normal_(self.weight, std=self.weight.shape[1] ** -0.5, generator=generator)


class MLSTM(SequenceMixer):
    """linear((norm(o_t) + skip * y_t) * silu(z_t)), the mLSTM in a widened stream (the paper's pre up-projection block).

        x, z = linear(input),   y = silu(conv(x) + bias)                      each expand * d_model wide
        q, k = headwise(y), headwise(y),   v = headwise(x)                    matrices of projection_block channels
        log_decay = log sigmoid(linear(q, k, v)),   log_beta = linear(q, k, v)
        G_t = gamma_t G_{t-1} + beta_t v_t k_t^T,   o_t = G_t q_t / max(1, |z_t^T q_t|)

    with q divided by sqrt(key_dim), and the normaliser z as in models/ops/mlstm.py. The norm is a LayerNorm of every head with
    a weight and no bias. The authors round the width up to a multiple of 64 and add 1e-6 to the denominator.
    """

    name = "xlstm_original.MLSTM"
    op = mlstm

    class Settings(SequenceMixer.Settings, kw_only=True):
        """expand: width / d_model. projection_block: channels that a block of the maps to q, k and v mixes.

        forget_bias_first, forget_bias_last: biases of the forget gates at the start, even over the heads. input_bias_std: the
        standard deviation of those of the input gates. chunk_size: tokens a chunk of the chunked form.
        """

        expand: Count
        num_heads: Count
        projection_block: Count
        conv_width: Count
        forget_bias_first: Logit
        forget_bias_last: Logit
        input_bias_std: Positive
        norm_eps: NormEps
        chunk_size: Count

    settings: Settings

    def __init__(self, settings: Settings, *, d_model: int, backend: str) -> None:
        super().__init__(settings, d_model=d_model, backend=backend)
        self.num_heads, self.width, block = settings.num_heads, settings.expand * d_model, settings.projection_block
        if self.width % self.num_heads:
            raise Refusal("num_heads", self.num_heads, f"divisors of the width {self.width}")
        if self.width % block:
            raise Refusal("projection_block", block, f"divisors of the width {self.width}")
        self.head_dim = self.width // self.num_heads
        self.input_projection = nn.Linear(d_model, 2 * self.width, bias=False)
        self.convolution = ShortConvolution(channels=self.width, width=settings.conv_width)
        self.convolution_bias = nn.Parameter(torch.empty(self.width))
        self.query_key_projection = HeadwiseLinear(num_blocks=self.width // block, d_in=block, d_out=2 * block)
        self.value_projection = HeadwiseLinear(num_blocks=self.width // block, d_in=block, d_out=block)
        self.gates = nn.Linear(3 * self.width, 2 * self.num_heads)
        self.norm_weight = nn.Parameter(torch.empty(self.width))
        self.skip = nn.Parameter(torch.empty(self.width))
        self.output_projection = nn.Linear(self.width, d_model, bias=False)

    def forward(self, x: Tensor, state: State | None = None, *, starts: Tensor | None = None) -> tuple[Tensor, State]:
        state = self.init_state(x.shape[0]) if state is None else state
        inner, z = self.input_projection(x).chunk(2, dim=-1)
        convolved, conv = self.convolution(inner, state["conv"], starts=starts)
        convolved = F.silu(convolved + self.convolution_bias.to(convolved.dtype))
        q, k = (part.flatten(-2) for part in self.query_key_projection(convolved).chunk(2, dim=-1))
        v = self.value_projection(inner).flatten(-2)
        log_decay, log_beta = self._gates(torch.cat([q, k, v], dim=-1))
        if starts is not None:
            log_decay = log_decay.masked_fill(starts.unsqueeze(-1), float("-inf"))
        q, k, v = (part.unflatten(-1, (self.num_heads, self.head_dim)) for part in (q, k, v))
        op = resolve(mlstm, self.kernel, length=x.shape[1], chunk_size=self.settings.chunk_size)
        held = mlstm.MLSTMState(state["G"], state["z"], state["m"])
        # Autocast would narrow the products of the recurrence, whose state is a sum over the whole sequence.
        with torch.autocast(x.device.type, enabled=False):
            q = q.to(held.G.dtype) / math.sqrt(self.head_dim)
            o, held = op(q=q, k=k, v=v, log_decay=log_decay, log_beta=log_beta, state=held)
        o = head_norm(o, weight=self.norm_weight, eps=self.settings.norm_eps).to(x.dtype)
        return self.output_projection((o + self.skip.to(x.dtype) * convolved) * F.silu(z)), {"conv": conv, **held._asdict()}

    def _gates(self, query_key_value: Tensor) -> tuple[Tensor, Tensor]:
        """log_decay <= 0 and log_beta, both [B, T, H] in float32 or wider."""
        logits = self.gates(query_key_value)
        log_beta, forget = logits.to(torch.promote_types(logits.dtype, torch.float32)).chunk(2, dim=-1)
        return F.logsigmoid(forget), log_beta

    def init_state(self, batch_size: int) -> State:
        G = self.zeros(batch_size, self.num_heads, self.head_dim, self.head_dim)
        z, m = self.zeros(batch_size, self.num_heads, self.head_dim), self.zeros(batch_size, self.num_heads)
        return {"conv": self.convolution.init_state(batch_size), "G": G, "z": z, "m": m}

    def forward_flops_per_token(self, seq_len: int) -> float:
        """Linear maps, the convolution, the outer product written into G and the read-outs of G and z."""
        recurrence = self.num_heads * (4.0 * self.head_dim**2 + 2.0 * self.head_dim)
        return linear_flops_per_token(self) + recurrence

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator) -> None:
        super().reset_parameters(generator)
        nn.init.zeros_(self.gates.weight)
        input_bias, forget_bias = self.gates.bias.chunk(2)
        normal_(input_bias, std=self.settings.input_bias_std, generator=generator)
        forget_bias.copy_(torch.linspace(self.settings.forget_bias_first, self.settings.forget_bias_last, self.num_heads))
        nn.init.zeros_(self.convolution_bias)
        nn.init.ones_(self.norm_weight)
        nn.init.ones_(self.skip)


class SLSTM(SequenceMixer):
    """linear(norm(h_t)) of the sLSTM, whose gates read the token before: num_heads LSTMs with exponential input gates.

        y = silu(conv(input) + bias)
        g = (headwise(y), headwise(y), headwise(input), headwise(input)) + bias       logits of i, f, z and o
        h_t by models/ops/slstm.py from g_t and h_{t-1}

    A head is d_model / num_heads wide. The forget gate is a sigmoid, as in the authors' code; the paper permits an exponential
    one. The norm is a LayerNorm of every head with a weight and no bias. The last linear map is ours: a mixer ends in one.
    """

    name = "xlstm_original.SLSTM"

    class Settings(SequenceMixer.Settings, kw_only=True):
        """forget_bias_first, forget_bias_last: biases of the forget gates at the start, from the first to the last channel of a
        head; forget_bias_power: of a channel's place between them, which the authors raise from 0.3 to 1.6 with the depth.
        """

        num_heads: Count
        conv_width: Count
        forget_bias_first: Logit
        forget_bias_last: Logit
        forget_bias_power: Positive
        norm_eps: NormEps

    settings: Settings

    def __init__(self, settings: Settings, *, d_model: int, backend: str) -> None:
        super().__init__(settings, d_model=d_model, backend=backend)
        self.num_heads = settings.num_heads
        if d_model % self.num_heads:
            raise Refusal("num_heads", self.num_heads, f"divisors of d_model {d_model}")
        self.head_dim = d_model // self.num_heads
        sizes = {"num_blocks": self.num_heads, "d_in": self.head_dim}
        self.convolution = ShortConvolution(channels=d_model, width=settings.conv_width)
        self.convolution_bias = nn.Parameter(torch.empty(d_model))
        self.convolved_gates = HeadwiseLinear(**sizes, d_out=2 * self.head_dim)
        self.direct_gates = HeadwiseLinear(**sizes, d_out=2 * self.head_dim)
        self.gate_bias = nn.Parameter(torch.empty(4 * d_model))
        self.recurrent_gates = HeadwiseLinear(**sizes, d_out=4 * self.head_dim)
        self.norm_weight = nn.Parameter(torch.empty(d_model))
        self.output_projection = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State | None = None, *, starts: Tensor | None = None) -> tuple[Tensor, State]:
        state = self.init_state(x.shape[0]) if state is None else state
        convolved, conv = self.convolution(x, state["conv"], starts=starts)
        convolved = F.silu(convolved + self.convolution_bias.to(convolved.dtype))
        gates = torch.cat([self.convolved_gates(convolved), self.direct_gates(x)], dim=-1)
        held = slstm.SLSTMState(state["h"], state["c"], state["n"], state["m"])
        # Autocast would narrow the products of the recurrence, whose state is a sum over the whole sequence.
        with torch.autocast(x.device.type, enabled=False):
            gates = gates.to(held.h.dtype) + self.gate_bias.view(self.num_heads, -1)
            h, held = slstm.recurrent(gates=gates, weight=self.recurrent_gates.weight, starts=starts, state=held)
        y = head_norm(h, weight=self.norm_weight, eps=self.settings.norm_eps).to(x.dtype)
        return self.output_projection(y), {"conv": conv, **held._asdict()}

    def init_state(self, batch_size: int) -> State:
        held = {name: self.zeros(batch_size, self.num_heads, self.head_dim) for name in slstm.SLSTMState._fields}
        return {"conv": self.convolution.init_state(batch_size), **held}

    def forward_flops_per_token(self, seq_len: int) -> float:
        """Linear maps, what the gates read of h among them, and the convolution; the rest is elementwise."""
        return linear_flops_per_token(self)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator) -> None:
        super().reset_parameters(generator)
        nn.init.zeros_(self.recurrent_gates.weight)
        nn.init.zeros_(self.gate_bias)
        first, last = self.settings.forget_bias_first, self.settings.forget_bias_last
        place = torch.linspace(0.0, 1.0, self.head_dim) ** self.settings.forget_bias_power
        self.gate_bias.view(self.num_heads, 4, self.head_dim)[:, 1] = first + (last - first) * place
        nn.init.zeros_(self.convolution_bias)
        nn.init.ones_(self.norm_weight)


def head_norm(x: Tensor, *, weight: Tensor, eps: float) -> Tensor:
    """LayerNorm of every head by itself, without bias: x [B, T, H, V] -> [B, T, H V], in the dtype of x."""
    batch_size, length, num_heads, _ = x.shape
    normed = F.group_norm(x.flatten(2).flatten(0, 1), num_heads, weight.to(x.dtype), eps=eps)
    return normed.view(batch_size, length, -1)
