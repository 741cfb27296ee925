"""Calls that reach every kernel of flash-linear-attention that our operators use: what a table of launches is made by.

An operator is called on random inputs, forward and backward. Where a kernel depends on a structure (two keys, gates of
channels, micro-steps), that structure is a call of its own.

    B batch, T time, H heads, K key dim, V value dim
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from models.backends import fla, fla_delta_operators, fla_low_rank, fla_operators
from models.ops.mesa import Inputs, MesaState
from models.ops.solvers.conjugate_gradients import ConjugateGradients

MICRO_STEPS = 2


class Sizes(NamedTuple):
    """The sizes of a call. dim: K, and V unless the call has more values. length: T."""

    batch_size: int
    length: int
    num_heads: int
    dim: int
    dtype: torch.dtype


class Call(NamedTuple):
    """takes: a letter an input. K, V: [B, T, H, K] and [B, T, H, V] of the dtype. G, g, b: float32 log-decays [B, T, H, K] and
    [B, T, H], and rates [B, T, H]. S: a float32 state [B, H, V, K]. A dash: None. "n" before a letter: micro-steps of T.

    smallest, largest: sizes from and up to which an adapter calls it; smaller ones it fills with zeros. more_values: V beyond K.
    decodes: one token, without a gradient.
    """

    operator: Callable[..., Any]
    takes: tuple[str, ...]
    smallest: int
    largest: int
    more_values: int = 0
    decodes: bool = False


def _mesa(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    """fla's, by which H is as large as G."""
    solver = ConjugateGradients(max_steps=4, tolerance=0.0, stop="right_hand_side", initial="zero", gradient="implicit")
    regularizer = torch.ones(k.shape[2:], device=k.device)
    inputs = Inputs(q=q, k=k, v=v, log_decay=log_decay, beta=beta, regularizer=regularizer)
    o, state = fla.mesa(inputs, state=MesaState(G, torch.zeros_like(G)), solver=solver)
    return o, state.G


CALLS = {
    "decayed_linear_attention": Call(fla_operators.simple_gla, tuple("KKVgS"), fla.SMALLEST, 256),
    # The read-out's denominator is one more value, and rows are ALIGNED.
    "mlstm": Call(fla_operators.simple_gla, tuple("KKVgS"), fla.SMALLEST, 256, more_values=fla.ALIGNED),
    "gla": Call(fla_operators.gla, tuple("KKVGS"), 16, 256),
    "delta_rule": Call(fla_operators.gated_delta_rule, tuple("KKVgbS"), fla.SMALLEST, 256),
    "kda": Call(fla_delta_operators.kda, tuple("KKVGbS"), fla.SMALLEST, 256),
    "gdn2": Call(fla_delta_operators.gdn2, tuple("KKVGKVS"), fla.SMALLEST, 256),
    "two_keys": Call(fla_delta_operators.apart, tuple("KKVKgbS"), fla.SMALLEST, 256),
    "two_keys_by_channel": Call(fla_delta_operators.apart_by_channel, tuple("KKVKGbS"), fla.SMALLEST, 256),
    "delta_product": Call(fla_delta_operators.delta_product, ("K", "nK", "nV", "g", "nb", "S"), fla.SMALLEST, 256),
    "low_rank": Call(fla_low_rank.bounded, tuple("KKVKKGS"), fla.SMALLEST, 128),
    "low_rank_with_resets": Call(fla_low_rank.exact, tuple("KKVKKGS"), fla.SMALLEST, 128),
    "mesa": Call(_mesa, tuple("KKVgbS"), fla.SMALLEST, 128),
    "decoding": Call(fla_operators.recurrent, tuple("KKVg-S"), 16, 256, decodes=True),
    "decoding_by_channel": Call(fla_operators.recurrent, tuple("KKV-GS"), 16, 256, decodes=True),
}


def make(call: Call, sizes: Sizes, device: torch.device) -> list[Tensor | None]:
    """Inputs of a call, as models have them: unit keys, gates near 1."""
    return [_draw(letter, call, sizes, device) for letter in call.takes]


def run(call: Call, inputs: list[Tensor | None]) -> None:
    """Forward, and backward into every input."""
    if call.decodes:
        with torch.no_grad():
            call.operator(*inputs)
        return
    leaves = [None if x is None else x.detach().requires_grad_() for x in inputs]
    o, state, *_ = call.operator(*leaves)
    torch.autograd.grad([o, state], [x for x in leaves if x is not None], [torch.ones_like(o), torch.ones_like(state)])


def _draw(letter: str, call: Call, sizes: Sizes, device: torch.device) -> Tensor | None:
    kind = letter[-1]
    length = 1 if call.decodes else sizes.length * (MICRO_STEPS if letter[:-1] == "n" else 1)
    leading = (sizes.batch_size, length, sizes.num_heads)
    values = sizes.dim + call.more_values
    match kind:
        case "K":
            return F.normalize(torch.randn(*leading, sizes.dim, device=device), dim=-1).to(sizes.dtype)
        case "V":
            return torch.rand(*leading, values, device=device).to(sizes.dtype)
        case "G":
            return -0.1 * torch.rand(*leading, sizes.dim, device=device)
        case "g":
            return -0.1 * torch.rand(*leading, device=device)
        case "b":
            return torch.rand(*leading, device=device)
        case "S":
            return torch.zeros(sizes.batch_size, sizes.num_heads, values, sizes.dim, device=device)
    return None
