"""Both passes of the short convolution on a GPU, in Triton: little is computed, and memory is read and written once.

A program has a block of channels, of which a thread reads 16 bytes at once, and a tile of time. It reads the tile again for
every tap, shifted by a token: from the first cache. Sums are in float32.

    B batch, T time, D channels
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

FORWARD = {"BLOCK_T": 64, "BLOCK_D": 64, "num_warps": 4}
# Three programs share the registers of a multiprocessor (sm_90), and of a width of 4 nothing spills in 2 bytes a number. Four
# warps read ROWS tokens at once of 64 such channels, so that a thread adds up its own tokens before it keeps their sum for a tap.
BACKWARD = {"BLOCK_T": 32, "BLOCK_D": 64, "ROWS": 16, "num_warps": 4, "maxnreg": 168}
PART = 512
"""Tokens over which one program of the backward pass sums the gradient of its weights."""


@triton.jit
def _taps(weight_ptr, d, D, WIDTH: tl.constexpr):
    """A vector of weights in float32 for each tap. They are read as a tile: tap by tap that takes more reads than the tokens."""
    COLUMNS: tl.constexpr = triton.next_power_of_2(WIDTH)
    columns = tl.arange(0, COLUMNS)
    inside = (d < D)[:, None] & (columns < WIDTH)[None, :]
    weight = tl.load(weight_ptr + d[:, None] * WIDTH + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    taps = tl.tuple(())
    for j in tl.static_range(WIDTH):
        taps = taps + (tl.sum(tl.where(columns[None, :] == j, weight, 0.0), axis=1),)
    return taps


@triton.jit
def _convolution_kernel(
    x_ptr, weight_ptr, state_ptr, starts_ptr, y_ptr, T, D, x_stride_b, x_stride_t,
    WIDTH: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    PAST: tl.constexpr = WIDTH - 1
    num_blocks, num_tiles = tl.cdiv(D, BLOCK_D), tl.cdiv(T, BLOCK_T)
    # Programs that run together have channels side by side.
    d = tl.program_id(0) % num_blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    begin = tl.program_id(0) // num_blocks % num_tiles * BLOCK_T
    b = (tl.program_id(0) // (num_blocks * num_tiles)).to(tl.int64)
    t = begin + tl.arange(0, BLOCK_T)
    inside_d = (d < D)[None, :]
    x_at = b * x_stride_b + t.to(tl.int64)[:, None] * x_stride_t + d[None, :]
    state_at = (b * PAST + PAST + t)[:, None] * D + d[None, :]
    taps = _taps(weight_ptr, d, D, WIDTH)
    y = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    seen = t < T
    for j in tl.static_range(WIDTH):
        if j > 0 and starts_ptr is not None:
            # No document begins behind the token that is seen, up to the one that sees it.
            seen = seen & (tl.load(starts_ptr + b * T + t - j + 1, mask=seen & (t - j + 1 >= 0), other=0) == 0)
        x = tl.load(x_ptr + x_at - j * x_stride_t, mask=(seen & (t >= j))[:, None] & inside_d, other=0.0)
        if begin < j:
            x += tl.load(state_ptr + state_at - j * D, mask=(seen & (t < j))[:, None] & inside_d, other=0.0)
        y += x.to(tl.float32) * taps[j][None, :]
    tl.store(y_ptr + (b * T + t)[:, None] * D + d[None, :], y.to(y_ptr.dtype.element_ty), mask=(t < T)[:, None] & inside_d)


@triton.jit
def _convolution_backward_kernel(
    dy_ptr, x_ptr, weight_ptr, state_ptr, starts_ptr, into_x_ptr, into_weight_ptr, into_state_ptr,
    T, D, dy_stride_b, dy_stride_t, x_stride_b, x_stride_t,
    PART: tl.constexpr, WIDTH: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """dx_t = sum_j w_j dy_{t+j}, and into_weight [B parts, WIDTH, D] is sum_t dy_{t+j} x_t over the t of a part.

    At t < 0, which the first part has besides, x_t is the state.
    """
    PAST: tl.constexpr = WIDTH - 1
    num_blocks, num_parts = tl.cdiv(D, BLOCK_D), tl.cdiv(T, PART)
    d = tl.program_id(0) % num_blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    part = tl.program_id(0) // num_blocks % num_parts
    b = (tl.program_id(0) // (num_blocks * num_parts)).to(tl.int64)
    inside_d = (d < D)[None, :]
    taps = _taps(weight_ptr, d, D, WIDTH)
    sums = tl.tuple(())
    for _ in tl.static_range(WIDTH):
        sums = sums + (tl.zeros([ROWS, BLOCK_D], tl.float32),)
    end = tl.minimum(part * PART + PART, T)
    for begin in range(tl.where(part == 0, -PAST, part * PART), end, BLOCK_T):
        t = begin + tl.arange(0, BLOCK_T)
        x_at = b * x_stride_b + t.to(tl.int64)[:, None] * x_stride_t + d[None, :]
        dy_at = b * dy_stride_b + t.to(tl.int64)[:, None] * dy_stride_t + d[None, :]
        state_at = (b * PAST + PAST + t)[:, None] * D + d[None, :]
        is_input, is_state = (t >= 0) & (t < end), (t < 0) & (t < end)
        x = tl.load(x_ptr + x_at, mask=is_input[:, None] & inside_d, other=0.0)
        if begin < 0:
            x += tl.load(state_ptr + state_at, mask=is_state[:, None] & inside_d, other=0.0)
        x = x.to(tl.float32)
        into_x = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
        grown = tl.tuple(())
        seen = t < end
        for j in tl.static_range(WIDTH):
            seen = seen & (t + j < T)
            if j > 0 and starts_ptr is not None:
                seen = seen & (tl.load(starts_ptr + b * T + t + j, mask=seen & (t + j >= 0), other=0) == 0)
            dy = tl.load(dy_ptr + dy_at + j * dy_stride_t, mask=(seen & (t + j >= 0))[:, None] & inside_d, other=0.0)
            dy = dy.to(tl.float32)
            into_x += dy * taps[j][None, :]
            grown = grown + (sums[j] + tl.sum(tl.reshape(dy * x, [BLOCK_T // ROWS, ROWS, BLOCK_D]), axis=0),)
        sums = grown
        into_x = into_x.to(into_x_ptr.dtype.element_ty)
        tl.store(into_x_ptr + (b * T + t)[:, None] * D + d[None, :], into_x, mask=is_input[:, None] & inside_d)
        if begin < 0:
            tl.store(into_state_ptr + state_at, into_x, mask=is_state[:, None] & inside_d)
    for j in tl.static_range(WIDTH):
        row = (b * num_parts + part) * WIDTH + j
        tl.store(into_weight_ptr + row * D + d, tl.sum(sums[j], axis=0), mask=d < D)


def forward(x: Tensor, weight: Tensor, state: Tensor, starts: Tensor | None) -> Tensor:
    """y [B, T, D]. x: [B, T, D], whose channels lie side by side; the others contiguous, the state in the dtype of x."""
    (B, T, D), WIDTH = x.shape, weight.shape[1]
    y = x.new_empty(x.shape)
    grid = (triton.cdiv(D, FORWARD["BLOCK_D"]) * triton.cdiv(T, FORWARD["BLOCK_T"]) * B,)
    _convolution_kernel[grid](x, weight, state, starts, y, T, D, *x.stride()[:2], WIDTH=WIDTH, **FORWARD)
    return y


def backward(dy: Tensor, x: Tensor, weight: Tensor, state: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and state, each in its dtype, from that of y, whose channels lie side by side as those of x.

    The weight's is summed in float32, in an order that depends on sizes alone.
    """
    (B, T, D), WIDTH = x.shape, weight.shape[1]
    num_parts = triton.cdiv(T, PART)
    into_x, into_state = x.new_empty(x.shape), state.new_empty(state.shape)
    parts = x.new_empty((B * num_parts, WIDTH, D), dtype=torch.float32)
    grid = (triton.cdiv(D, BACKWARD["BLOCK_D"]) * num_parts * B,)
    arguments = (dy, x, weight, state, starts, into_x, parts, into_state, T, D, *dy.stride()[:2], *x.stride()[:2])
    _convolution_backward_kernel[grid](*arguments, PART=PART, WIDTH=WIDTH, **BACKWARD)
    return into_x, parts.sum(0).mT.contiguous().to(weight.dtype), into_state
