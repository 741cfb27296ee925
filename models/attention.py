"""Softmax attention with rotary positions, over everything before or over a sliding window.

Glossary, our name to the paper's letter: num_heads h, key_dim d_k = d_v (Vaswani et al. 2017); position m,
rope_base 10000 in theta_i = 10000^(-2i/d) (Su et al. 2021); window W (Beltagy et al. 2020).
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional as F

from conf.settings import Count, Positive
from models.backends import load
from models.components import linear_flops_per_token
from models.mixer import SequenceMixer, State
from models.ops import cached_attention, softmax_attention


class Rotation(NamedTuple):
    """cos and sin of position * base^(-2i/K), [B, T, 1, K/2], or B = 1 where all sequences agree."""

    cos: Tensor
    sin: Tensor


def rotation(positions: Tensor, *, key_dim: int, base: float, dtype: torch.dtype) -> Rotation:
    """positions: [B, T] or [1, T]. key_dim: K, even. Angles in float32, or in `dtype` where that is wider."""
    half, wide = key_dim // 2, torch.promote_types(dtype, torch.float32)
    frequencies = base ** (-torch.arange(half, dtype=wide, device=positions.device) / half)
    angles = (positions.unsqueeze(-1) * frequencies).unsqueeze(2)
    # For a single token a launch more would cost more than it spares.
    if torch.compiler.is_compiling() and positions.shape[1] > 1:
        return Rotation(*_cos_sin(angles))
    return Rotation(angles.cos(), angles.sin())


@torch.library.custom_op("linear_rnn_suite::cos_sin", mutates_args=())
def _cos_sin(angles: Tensor) -> tuple[Tensor, Tensor]:
    """An operator, which a compiler leaves alone: else it works both out again for every head of every sequence, and on the
    way back as well, which takes longer than all else about an attention layer of small heads."""
    return angles.cos(), angles.sin()


@_cos_sin.register_fake
def _(angles: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(angles), torch.empty_like(angles)


def rotate(x: Tensor, turn: Rotation) -> Tensor:
    """Rotary position embedding (Su et al. 2021, eq. 15): turns the pair (x_i, x_{i + K/2}) by its angle.

    x: [B, T, H, K]. Computed in the dtype of the rotation; returns the shape and dtype of x.
    """
    first, second = x.split(x.shape[-1] // 2, dim=-1)
    return torch.cat([first * turn.cos - second * turn.sin, second * turn.cos + first * turn.sin], dim=-1).to(x.dtype)


def positions_in_document(position: Tensor, starts: Tensor) -> Tensor:
    """Position of every token since the last start [B, T]; position [B] is what the first token has if it is no start."""
    index = torch.arange(starts.shape[1], device=starts.device)
    last_start = torch.where(starts, index, -1).cummax(dim=1).values
    return torch.where(last_start < 0, position.unsqueeze(1) + index, index - last_start)


class Attention(SequenceMixer):
    """Multi-head causal softmax attention without biases; its state is the cache of rotated keys and of values.

    The state holds the window - 1 latest tokens that a later one can see, or all of them: k, v [B, S, H, K] and
    `position` [B] int64, the number of tokens since the last start, which hides what lies before it. k and v are kept as
    they were computed, in bfloat16 under autocast: nothing is added up in them, so a wider type would hold the same numbers.
    """

    name = "attention.Attention"
    op = softmax_attention

    class Settings(SequenceMixer.Settings, kw_only=True):
        """window: how many tokens an output sees, itself included; None for all. rope_base: None for no rotary positions."""

        num_heads: Count
        key_dim: Annotated[
            int, Meta(ge=2, le=2**31 - 1, multiple_of=2, description="even numbers from 2: rotary positions turn pairs")
        ]
        window: Count | None
        rope_base: Positive | None

    settings: Settings

    def __init__(self, settings: Settings, *, d_model: int, backend: str) -> None:
        super().__init__(settings, d_model=d_model, backend=backend)
        self.num_heads, self.key_dim, self.window = settings.num_heads, settings.key_dim, settings.window
        self.query_key_value_projection = nn.Linear(d_model, 3 * self.num_heads * self.key_dim, bias=False)
        self.output_projection = nn.Linear(self.num_heads * self.key_dim, d_model, bias=False)
        self.decoding_kernel = load(cached_attention, "triton")

    def forward(self, x: Tensor, state: State | None = None, *, starts: Tensor | None = None) -> tuple[Tensor, State]:
        whole = state is None and starts is None
        positions = self._positions(x, None if state is None else state["position"], starts=starts)
        q, k, v = self._rotated(x, positions)
        if state is not None:
            k, v = (torch.cat([state[name].to(y.dtype), y], dim=1) for name, y in (("k", k), ("v", v)))
        o = self._attend(q, k, v, self._span(positions, whole=whole))
        forgotten = k.shape[1] - self._tokens_held(k.shape[1])
        # A view would keep all of what it was cut from.
        k, v = (y[:, forgotten:].clone() if forgotten else y.contiguous() for y in (k, v))
        position = (positions[:, -1] + 1).expand(x.shape[0])
        return self.output_projection(o.flatten(2)), {"k": k, "v": v, "position": position}

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, span: Tensor | None) -> Tensor:
        if self.kernel is not None and self.kernel.suits(q=q, k=k, span=span, window=self.window):
            return self.kernel.computes(q=q, k=k, v=v, span=span)
        return softmax_attention.attend(q=q, k=k, v=v, span=span, window=self.window)

    def _rotated(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q and k, turned to their positions where there is a rope_base, and v of x, each [B, T, H, K]."""
        q, k, v = self.query_key_value_projection(x).unflatten(-1, (3, self.num_heads, self.key_dim)).unbind(2)
        if self.settings.rope_base is None:
            return q, k, v
        turn = rotation(positions, key_dim=self.key_dim, base=self.settings.rope_base, dtype=q.dtype)
        return rotate(q, turn), rotate(k, turn), v

    def _positions(self, x: Tensor, position: Tensor | None, *, starts: Tensor | None) -> Tensor:
        """[B, T], or [1, T] where all sequences agree, which saves computing the angles of each."""
        index = torch.arange(x.shape[1], device=x.device).unsqueeze(0)
        if starts is not None:
            return positions_in_document(index.new_zeros(x.shape[0]) if position is None else position, starts)
        return index if position is None else position.unsqueeze(1) + index

    def _span(self, positions: Tensor, *, whole: bool) -> Tensor | None:
        if self.window is None:
            return None if whole else positions
        return positions.clamp(max=self.window - 1)

    def reserve(self, state: State, num_tokens: int) -> State:
        """The keys and values as a `cache` [B, 2, H, S, K] of fixed size, and `position`; num_tokens >= 1.

        The token at position p of its document lies in slot p, modulo the window: a token that goes out of sight is
        written over, and a slot above the position holds nothing that may be seen.
        """
        held = state["k"].shape[1]
        slots = held + num_tokens if self.window is None else min(held + num_tokens, self.window)
        kept = torch.stack([state["k"], state["v"]], dim=1).transpose(2, 3)  # [B, 2, H, S held, K]
        slot = torch.arange(slots, device=kept.device)
        source = (slot - state["position"].unsqueeze(1) + held) % slots
        padded = F.pad(kept, (0, 0, 0, slots - held))
        cache = padded.gather(3, source.view(-1, 1, 1, slots, 1).expand_as(padded))
        return {"cache": cache, "position": state["position"].clone()}

    def step_(self, x_t: Tensor, state: State) -> Tensor:
        cache, position = state["cache"], state["position"]
        q, k, v = self._rotated(x_t.unsqueeze(1), position.unsqueeze(1))
        slot = position if self.window is None else position % self.window
        # By an index: a compiler makes a copy of the whole cache for a scatter, and back.
        sequence = torch.arange(cache.shape[0], device=cache.device)
        cache[sequence, :, :, slot] = torch.cat([k, v], dim=1).to(cache.dtype)  # [B, 2, H, K]
        o = self._attend_cache(q.squeeze(1).to(cache.dtype), cache, position)
        position.add_(1)
        return self.output_projection(o.to(x_t.dtype).flatten(1))

    def _attend_cache(self, q: Tensor, cache: Tensor, position: Tensor) -> Tensor:
        k, v, kernel = cache[:, 0], cache[:, 1], self.decoding_kernel
        if kernel is not None and kernel.suits is not None and kernel.suits(q=q, k=k, v=v):
            return kernel.computes(q=q, k=k, v=v, position=position)
        return cached_attention.attend(q=q, k=k, v=v, position=position)

    def _tokens_held(self, seq_len: int) -> int:
        return seq_len if self.window is None else min(seq_len, self.window - 1)

    def init_state(self, batch_size: int) -> State:
        empty = self.zeros(batch_size, 0, self.num_heads, self.key_dim)
        return {"k": empty, "v": empty, "position": torch.zeros(batch_size, dtype=torch.int64, device=empty.device)}

    def state_elements(self, seq_len: int) -> int:
        return 2 * self._tokens_held(seq_len) * self.num_heads * self.key_dim + 1

    def state_bytes(self, seq_len: int, dtype: torch.dtype) -> int:
        """k and v are kept as they were computed."""
        return dtype.itemsize * (self.state_elements(seq_len) - 1) + 4

    def forward_flops_per_token(self, seq_len: int) -> float:
        """Two contractions of K with each of the keys a token sees, min(t, window) at token t, and the projections."""
        full = seq_len if self.window is None else min(seq_len, self.window)
        mean_keys = (full * (full + 1) / 2 + (seq_len - full) * full) / seq_len
        return linear_flops_per_token(self) + 4.0 * mean_keys * self.num_heads * self.key_dim

    @property
    def reach(self) -> int | None:
        return None if self.window is None else self.window - 1
