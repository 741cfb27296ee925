"""PaTH attention (Yang et al. 2025, arXiv 2505.16381): softmax attention with a position code that depends on the tokens between.

Glossary, our name to the paper's letter: query q, key k, value v, direction w, strength beta, transition H, log_forget log(f)
(of FoX, Lin et al. 2025, arXiv 2503.02130).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conf.settings import Count
from models.attention import positions_in_document
from models.backends import resolve
from models.components import ScalarGate, ShortConvolution, linear_flops_per_token
from models.linear_rnn import GateStart
from models.mixer import SequenceMixer, State
from models.ops import path_attention


class PathAttention(SequenceMixer):
    """o_t = sum_j p_tj v_j with p_t = softmax over j <= t of q_t^T H_t H_{t-1} ... H_{j+1} k_j / sqrt(key_dim).

        H_s = I - beta_s w_s w_s^T,   beta_s = 2 sigmoid(W x_s + b),   w_s = unit(silu(conv(W_2 W_1 x_s)))

    W_2 W_1 has rank direction_rank. There are neither rotary positions nor a convolution of q, k and v. With a forget gate
    (PaTH-FoX) sum_{j < s <= t} log sigmoid(W_f x_s + b_f) is added to the logit, not divided by sqrt(key_dim), as FoX has it;
    the kernels of flash-linear-attention 0.6.0 divide it.

    The state is a cache, [B, H, S, K]: keys k, which every token turns by its H, in float32 or wider; values v as they were
    computed; with a forget gate `decay` [B, H, S], what has been forgotten since each token; the convolution's inputs `conv`;
    and `position` [B] int64, the number of tokens since the last start, which hides what lies before it.
    """

    name = "path_attention.PathAttention"
    op = path_attention

    class Settings(SequenceMixer.Settings, kw_only=True):
        """direction_rank, conv_width: of the map to w. strength_init: beta / 2 at the start. chunk_size: tokens a chunk.

        forget_gate_init: the forget gate at the start; None is no such gate.
        """

        num_heads: Count
        key_dim: Count
        direction_rank: Count
        conv_width: Count
        strength_init: GateStart
        forget_gate_init: GateStart | None
        chunk_size: Count

    settings: Settings

    def __init__(self, settings: Settings, *, d_model: int, backend: str) -> None:
        super().__init__(settings, d_model=d_model, backend=backend)
        self.num_heads, self.key_dim = settings.num_heads, settings.key_dim
        width, start = self.num_heads * self.key_dim, settings.forget_gate_init
        self.query_key_value_projection = nn.Linear(d_model, 3 * width, bias=False)
        self.direction_bottleneck = nn.Linear(d_model, settings.direction_rank, bias=False)
        self.direction_projection = nn.Linear(settings.direction_rank, width, bias=False)
        self.convolution = ShortConvolution(channels=width, width=settings.conv_width)
        self.strength = ScalarGate(d_model=d_model, num_heads=self.num_heads, initial=settings.strength_init)
        self.forget_gate: ScalarGate | None = None
        if start is not None:
            self.forget_gate = ScalarGate(d_model=d_model, num_heads=self.num_heads, initial=start)
        self.output_projection = nn.Linear(width, d_model, bias=False)

    def forward(self, x: Tensor, state: State | None = None, *, starts: Tensor | None = None) -> tuple[Tensor, State]:
        state = self.init_state(x.shape[0]) if state is None else state
        inputs, log_forget, conv = self._inputs(x, state["conv"], starts)
        span = self._positions(state["position"], x.shape[1], starts)
        op = resolve(path_attention, self.kernel, length=x.shape[1], chunk_size=self.settings.chunk_size)
        cache = path_attention.Cache(state["k"], state["v"], state.get("decay"))
        # Autocast would narrow the products that turn the keys, which are rewritten once a token.
        with torch.autocast(x.device.type, enabled=False):
            o, (k, v, decay) = op(**inputs, log_forget=log_forget, span=span, cache=cache)
        held = {"k": k, "v": v, "conv": conv, "position": span[:, -1] + 1}
        return self._output(o, x.dtype), held if decay is None else held | {"decay": decay}

    def _inputs(self, x: Tensor, conv: Tensor, starts: Tensor | None) -> tuple[dict[str, Tensor], Tensor | None, Tensor]:
        """q, k, v, w and beta by name and log_forget, as the op takes them, and the new state of the convolution."""
        q, k, v = self.query_key_value_projection(x).unflatten(-1, (3, self.num_heads, self.key_dim)).unbind(2)
        w, conv = self.convolution(self.direction_projection(self.direction_bottleneck(x)), conv, starts=starts)
        w = F.silu(w).unflatten(-1, (self.num_heads, self.key_dim))
        w = F.normalize(w.to(torch.promote_types(w.dtype, torch.float32)), dim=-1)
        beta = 2.0 * torch.sigmoid(self.strength(x))
        log_forget = None if self.forget_gate is None else F.logsigmoid(self.forget_gate(x))
        return {"q": q, "k": k, "v": v, "w": w, "beta": beta}, log_forget, conv

    def _positions(self, position: Tensor, length: int, starts: Tensor | None) -> Tensor:
        """How many tokens of its document each has before it [B, T]."""
        if starts is not None:
            return positions_in_document(position, starts)
        return position.unsqueeze(1) + torch.arange(length, device=position.device)

    def _output(self, o: Tensor, dtype: torch.dtype) -> Tensor:
        return self.output_projection(o.to(dtype).flatten(-2))

    def reserve(self, state: State, num_tokens: int) -> State:
        """`keys` and `decays`, which are rewritten at every token, and the values as a `cache`, all [B, H, slots, ...].

        The token at position p of its document lies in slot p; a slot above the position holds nothing that may be seen.
        """
        held = state["k"].shape[2]
        slot = torch.arange(held + num_tokens, device=state["k"].device)
        source = (slot - state["position"].unsqueeze(1) + held) % len(slot)
        kept = {"keys": state["k"], "cache": state["v"]}
        if "decay" in state:
            kept["decays"] = state["decay"].unsqueeze(-1)
        reserved = {"conv": state["conv"].contiguous(), "position": state["position"].clone()}
        for name, tokens in kept.items():
            padded = F.pad(tokens, (0, 0, 0, num_tokens))
            reserved[name] = padded.gather(2, source.view(-1, 1, len(slot), 1).expand_as(padded))
        return reserved

    def step_(self, x_t: Tensor, state: State) -> Tensor:
        inputs, log_forget, conv = self._inputs(x_t.unsqueeze(1), state["conv"], None)
        decays = state["decays"].squeeze(-1) if "decays" in state else None
        cache = path_attention.Cache(state["keys"], state["cache"], decays)
        token = {name: x.squeeze(1) for name, x in inputs.items()}
        forget_t = None if log_forget is None else log_forget.squeeze(1)
        with torch.autocast(x_t.device.type, enabled=False):
            o = path_attention.decode_(**token, log_forget=forget_t, slot=state["position"], cache=cache)
        state["conv"].copy_(conv)
        state["position"].add_(1)
        return self._output(o, x_t.dtype)

    def init_state(self, batch_size: int) -> State:
        empty = self.zeros(batch_size, self.num_heads, 0, self.key_dim)
        position = torch.zeros(batch_size, dtype=torch.int64, device=empty.device)
        conv = self.convolution.init_state(batch_size)
        decay = {} if self.forget_gate is None else {"decay": empty.sum(-1)}
        return {"k": empty, "v": empty, **decay, "conv": conv, "position": position}

    def state_elements(self, seq_len: int) -> int:
        a_token = self.num_heads * (2 * self.key_dim + (self.forget_gate is not None))
        return super().state_elements(seq_len) + seq_len * a_token

    def state_bytes(self, seq_len: int, dtype: torch.dtype) -> int:
        """Values are kept as they were computed, the rest in float32."""
        values = seq_len * self.num_heads * self.key_dim
        return 4 * (self.state_elements(seq_len) - values) + dtype.itemsize * values

    def forward_flops_per_token(self, seq_len: int) -> float:
        """The linear maps, turning the keys (t - 1 at token t, two contractions of K each), and two contractions with t keys."""
        mean_keys = (seq_len + 1) / 2
        return linear_flops_per_token(self) + 4.0 * self.num_heads * self.key_dim * (mean_keys + mean_keys - 1.0)
