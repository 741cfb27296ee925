"""The short convolution of models/ops/short_convolution.py by the kernels beside this file, as operators.

A compiler takes each whole, so that what stands behind it, such as SiLU and the norm of a head, becomes a kernel that reads its
input once: with the shifted reads of a convolution in it, it would read all of them twice. Layers hold `convolve` on any
machine, so Triton is not imported before a kernel runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.ops import short_convolution


def convolve(x: Tensor, weight: Tensor, state: Tensor, *, starts: Tensor | None) -> Tensor:
    """As models.ops.short_convolution.convolve, differentiable any number of times, for x in float32, bfloat16 or float16.

    Products and their sum are in float32 and the weight is read as it is; y alone is rounded to the dtype of x.
    """
    return _convolve(x, weight, state.to(x.dtype), starts)


def _with_dense_rows(x: Tensor) -> Tensor:
    """x itself where it is some of the channels of a wider tensor, else a copy if need be."""
    return x if x.stride(2) == 1 else x.contiguous()


@torch.library.custom_op("linear_rnn_suite::short_convolution", mutates_args=())
def _convolve(x: Tensor, weight: Tensor, state: Tensor, starts: Tensor | None) -> Tensor:
    from models.backends.triton.short_convolution_kernels import forward

    dense = None if starts is None else starts.contiguous()
    # Triton launches on the current device, wherever x is.
    with torch.cuda.device_of(x):
        return forward(_with_dense_rows(x), weight.contiguous(), state.contiguous(), dense)


@_convolve.register_fake
def _(x: Tensor, weight: Tensor, state: Tensor, starts: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("linear_rnn_suite::short_convolution_backward", mutates_args=())
def _differentiate(dy: Tensor, x: Tensor, weight: Tensor, state: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    from models.backends.triton.short_convolution_kernels import backward

    dense = None if starts is None else starts.contiguous()
    with torch.cuda.device_of(x):
        return backward(_with_dense_rows(dy), _with_dense_rows(x), weight.contiguous(), state.contiguous(), dense)


@_differentiate.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor, state: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), state.new_empty(state.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    if not torch.is_grad_enabled():
        return *_differentiate(dy, *ctx.saved_tensors), None
    # This gradient is to be differentiated again, so it is made of PyTorch's own operations.
    *inputs, starts = ctx.saved_tensors

    def in_float32(*inputs: Tensor) -> Tensor:
        return short_convolution.convolve(*(each.float() for each in inputs), starts=starts).to(dy.dtype)

    return *torch.func.vjp(in_float32, *inputs)[1](dy), None


_convolve.register_autograd(_backward, setup_context=_save)
