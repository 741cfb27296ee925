"""Which calls a kernel computes, by their tensors and whatever the run's backend: what rows of KERNELS have as `suits`."""

from __future__ import annotations

import torch
from torch import Tensor

from models.installed import version

FLEXIBLE_FROM = 256
"""Tokens from which FlexAttention's blocks of 128 by 128 can leave any out."""

PAIRS_WORTH_A_MASK = 2**23
"""Queries times the keys that one sees, from which FlexAttention pays uncompiled, where it takes 3 ms to make its mask.

Measured on an H200 at 32,768 tokens a batch, by tests/benchmarks/gpu_windows.py; compiled it is the fastest at any number.
"""


def is_worth_a_mask(length: int, num_keys: int, window: int | None, *, compiled: bool) -> bool:
    """Whether FlexAttention is the fastest of the forms for `length` queries on num_keys keys, of which each sees `window`."""
    if length < FLEXIBLE_FROM:
        return False
    return compiled or length * min(num_keys, window or num_keys) >= PAIRS_WORTH_A_MASK


def suits_flex_attention(*, q: Tensor, k: Tensor, span: Tensor | None, window: int | None) -> bool:
    if span is None or not (q.is_cuda and q.dtype in (torch.bfloat16, torch.float16) and q.shape[3] >= 16):
        return False
    return is_worth_a_mask(q.shape[1], k.shape[1], window, compiled=torch.compiler.is_compiling())


def suits_fused_loss(features: Tensor) -> bool:
    return features.is_cuda and features.dtype != torch.float64


HAS_TRITON = version("triton") is not None


def suits_short_convolution(x: Tensor) -> bool:
    # A compiler makes one kernel of a single token's convolution and what stands beside it.
    return HAS_TRITON and x.is_cuda and x.dtype != torch.float64 and x.shape[1] > 1 and not _is_transformed()


def _is_transformed() -> bool:
    """Whether torch.func looks on, or derivatives go forward: of an operator these would be refused, or zero without a word."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def suits_cached_attention(*, q: Tensor, k: Tensor, v: Tensor) -> bool:
    # The kernel has no gradient.
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        return False
    return HAS_TRITON and q.is_cuda and q.dtype != torch.float64 and q.shape[-1] <= 256 and not _is_transformed()


MOST_COPIES = 16
MOST_ELEMENTS = 2**24
"""Numbers that all copies of a gradient may hold: 64 MB of float32."""


def copies_of_gradient(ids: Tensor, weight: Tensor) -> int:
    """How many copies of an embedding's gradient pay for their memory traffic: four times as many rows as there are tokens."""
    return max(1, min(MOST_COPIES, 4 * ids.numel() // len(weight), MOST_ELEMENTS // weight.numel()))


def suits_spread_embedding(ids: Tensor, weight: Tensor) -> bool:
    # Uncompiled PyTorch sorts, which takes no longer where one row is asked for often, and sums in one order.
    return weight.is_cuda and torch.compiler.is_compiling() and copies_of_gradient(ids, weight) >= 4
