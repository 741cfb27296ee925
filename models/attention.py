"""Softmax attention with rotary positions, over everything before or over a sliding window.

Glossary, our name to the paper's letter: num_heads h, key_dim d_k = d_v (Vaswani et al. 2017); position m,
rope_base 10000 in theta_i = 10000^(-2i/d) (Su et al. 2021); window W (Beltagy et al. 2020).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.initialization import fan_in_normal_
from models.mixer import SequenceMixer, State
from models.ops import softmax_attention


def rotate(x: Tensor, positions: Tensor, *, base: float) -> Tensor:
    """Rotary position embedding (Su et al. 2021, eq. 15): turns the pair (x_i, x_{i + K/2}) by position * base^(-2i/K).

    x: [B, T, H, K], K even. positions: [B, T] or [1, T]. Angles in float32 or wider; returns the shape and dtype of x.
    """
    half = x.shape[-1] // 2
    dtype = torch.promote_types(x.dtype, torch.float32)
    frequencies = base ** (-torch.arange(half, dtype=dtype, device=x.device) / half)
    angles = (positions.unsqueeze(-1) * frequencies).unsqueeze(2)  # [B, T, 1, K/2]
    cos, sin = angles.cos(), angles.sin()
    first, second = x.split(half, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def positions_in_document(position: Tensor, starts: Tensor) -> Tensor:
    """Position of every token since the last start [B, T]; position [B] is what the first token has if it is no start."""
    index = torch.arange(starts.shape[1], device=starts.device)
    last_start = torch.where(starts, index, -1).cummax(dim=1).values
    return torch.where(last_start < 0, position.unsqueeze(1) + index, index - last_start)


class Attention(SequenceMixer):
    """Multi-head causal softmax attention without biases; its state is the cache of rotated keys and of values.

    window: how many tokens an output sees, itself included, >= 1; None for all. rope_base: > 0.
    The state holds the window - 1 latest tokens that a later one can see, or all of them: k, v [B, S, H, K] and
    `position` [B] int64, the number of tokens since the last start, which hides what lies before it.
    Raises ValueError for values outside these ranges or an odd key_dim.
    """

    def __init__(self, *, d_model: int, backend: str, num_heads: int, key_dim: int, window: int | None, rope_base: float) -> None:
        super().__init__()
        if num_heads < 1:
            raise ValueError(f"num_heads is {num_heads}, permitted are whole numbers from 1")
        if key_dim < 2 or key_dim % 2:
            raise ValueError(f"key_dim is {key_dim}, permitted are even numbers from 2: rotary positions turn pairs")
        if window is not None and window < 1:
            raise ValueError(f"window is {window}, permitted are null and whole numbers from 1")
        if rope_base <= 0:
            raise ValueError(f"rope_base is {rope_base}, permitted are numbers above 0")
        self.num_heads, self.key_dim, self.window, self.rope_base = num_heads, key_dim, window, rope_base
        self.query_key_value_projection = nn.Linear(d_model, 3 * num_heads * key_dim, bias=False)
        self.output_projection = nn.Linear(num_heads * key_dim, d_model, bias=False)

    def forward(self, x: Tensor, state: State | None = None, *, starts: Tensor | None = None) -> tuple[Tensor, State]:
        whole = state is None and starts is None
        state = self.init_state(x.shape[0]) if state is None else state
        positions = self._positions(x, state["position"], starts=starts, whole=whole)
        q, k, v = self.query_key_value_projection(x).unflatten(-1, (3, self.num_heads, self.key_dim)).unbind(2)
        q, k = (rotate(y, positions, base=self.rope_base) for y in (q, k))
        k, v = (torch.cat([state[name].to(y.dtype), y], dim=1) for name, y in (("k", k), ("v", v)))
        if self.window is None:
            o = softmax_attention.fused(q=q, k=k, v=v, span=None if whole else positions)
        else:
            span = positions.clamp(max=self.window - 1)
            o = softmax_attention.windowed(q=q, k=k, v=v, span=span, window=self.window)
        forgotten = k.shape[1] - self._tokens_held(k.shape[1])
        position = (positions[:, -1] + 1).expand(x.shape[0])
        held = {name: y[:, forgotten:].to(state[name].dtype) for name, y in (("k", k), ("v", v))}
        return self.output_projection(o.flatten(2)), {**held, "position": position}

    def _positions(self, x: Tensor, position: Tensor, *, starts: Tensor | None, whole: bool) -> Tensor:
        """[B, T], or [1, T] where all sequences agree, which saves computing the angles of each."""
        if starts is not None:
            return positions_in_document(position, starts)
        index = torch.arange(x.shape[1], device=x.device).unsqueeze(0)
        return index if whole else position.unsqueeze(1) + index

    def _tokens_held(self, seq_len: int) -> int:
        return seq_len if self.window is None else min(seq_len, self.window - 1)

    def init_state(self, batch_size: int) -> State:
        weight = self.output_projection.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        empty = torch.zeros(batch_size, 0, self.num_heads, self.key_dim, dtype=dtype, device=weight.device)
        return {"k": empty, "v": empty, "position": torch.zeros(batch_size, dtype=torch.int64, device=weight.device)}

    def state_elements(self, seq_len: int) -> int:
        return 2 * self._tokens_held(seq_len) * self.num_heads * self.key_dim + 1

    def forward_flops_per_token(self, seq_len: int) -> float:
        """Two contractions of K with each of the keys a token sees, min(t, window) at token t, and the projections."""
        full = seq_len if self.window is None else min(seq_len, self.window)
        mean_keys = (full * (full + 1) / 2 + (seq_len - full) * full) / seq_len
        projections = self.query_key_value_projection.weight.numel() + self.output_projection.weight.numel()
        return 2.0 * projections + 4.0 * mean_keys * self.num_heads * self.key_dim

    def reset_parameters(self, generator: torch.Generator) -> None:
        for projection in (self.query_key_value_projection, self.output_projection):
            fan_in_normal_(projection.weight, generator=generator)

    @property
    def reach(self) -> int | None:
        return None if self.window is None else self.window - 1
