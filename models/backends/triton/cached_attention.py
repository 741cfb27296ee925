"""The attention of models/ops/cached_attention.py by the kernels beside this file, as an operator that a compiler takes whole.

Layers hold `attend` on any machine, so Triton is not imported before a kernel runs.
"""

from __future__ import annotations

import torch
from torch import Tensor


def attend(*, q: Tensor, k: Tensor, v: Tensor, position: Tensor) -> Tensor:
    """As models.ops.cached_attention.attend, for float32, bfloat16 or float16 and K up to 256, without a gradient.

    Slots above the position are not read. Scores and sums are in float32, and o alone is rounded. Nothing waits for the device:
    it can be captured in a CUDA graph.
    """
    return _attend(q, k, v, position)


def _with_dense_rows(x: Tensor) -> Tensor:
    """x itself where the numbers of a head lie side by side, else a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


@torch.library.custom_op("linear_rnn_suite::cached_attention", mutates_args=())
def _attend(q: Tensor, k: Tensor, v: Tensor, position: Tensor) -> Tensor:
    from models.backends.triton.cached_attention_kernels import forward
    from models.backends.triton.launch import on_its_device

    q, k, v = (_with_dense_rows(x) for x in (q, k, v))
    return on_its_device(forward)(q, k, v, position.contiguous())


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, position: Tensor) -> Tensor:
    return q.new_empty(q.shape)
