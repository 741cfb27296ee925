"""Softmax attention of one query a head over a cache, in Triton: keys and values of the slots seen are read once, and no others.

A program has one head of one sequence, or a part of its slots where heads are few (Flash-Decoding, Dao et al. 2023); a second
kernel then adds the parts up. Every row of threads has a maximum and sums of its own (the online softmax of Milakov and
Gimelshein 2018, arXiv 1805.02867), so that threads meet only behind the last slot. All in float32, without tensor cores.

    B batch, H heads, S slots, K key dim
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.backends.triton.launch import launch

LAUNCH = {"DEPTH": 4, "num_warps": 4, "maxnreg": 128}
"""A row of threads asks for DEPTH slots at once. Four programs then share a multiprocessor's registers, and nothing spills.

Measured on an H200 in bfloat16 with heads of 128, other depths, warps and registers took 4 to 16 % longer at batch 64.
"""
LAUNCH_OF_PARTS = LAUNCH | {"num_warps": 2}
"""Parts are short: with half of the threads they took 8 to 13 % less, but at batch 1 with few slots, where they took as long."""
READ_BYTES = 16
"""What a thread reads at once."""
PROGRAMS = 528
"""Programs up to which heads are cut into parts: four for each of the 132 multiprocessors of an H200."""
SHORTEST_PART = 32
"""Slots: a part of fewer takes longer to begin and to add up than it saves."""
MOST_PARTS = 64

LOWEST = tl.constexpr(-3.0e38)
"""Below any score, and finite, so that a row that has seen no slot yet weighs 0 and not NaN."""


@triton.jit
def _tile(pointer, rows, columns, left, stride, K: tl.constexpr):
    """[DEPTH, ROWS, BLOCK_K] numbers in their dtype, 0 from the row `left` on and beyond K."""
    inside = (rows < left)[:, :, None] & (columns < K)[None, None, :]
    return tl.load(pointer + rows[:, :, None] * stride + columns[None, None, :], mask=inside, other=0.0)


@triton.jit(do_not_specialize=("H", "S"))
def _attention_kernel(
    q_ptr, k_ptr, v_ptr, position_ptr, o_ptr, sums_ptr, weights_ptr, H, S, scale,
    q_stride_b, q_stride_h, k_stride_b, k_stride_h, k_stride_s, v_stride_b, v_stride_h, v_stride_s,
    K: tl.constexpr, BLOCK_K: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """o [B, H, K]; of several parts their unweighted sums [B H, PARTS, K], and maxima and sums of weights [2, B H, PARTS]."""
    head, part = (tl.program_id(0) // PARTS).to(tl.int64), tl.program_id(0) % PARTS
    b, h = head // H, head % H
    # What is seen is shared out evenly, however many slots there are besides.
    seen = tl.minimum(tl.load(position_ptr + b) + 1, S).to(tl.int32)
    size = tl.cdiv(seen, PARTS)
    first = part * size
    left = tl.minimum(seen - first, size)
    columns = tl.arange(0, BLOCK_K)
    rows = tl.arange(0, DEPTH)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
    k_ptr += b * k_stride_b + h * k_stride_h + first.to(tl.int64) * k_stride_s
    v_ptr += b * v_stride_b + h * v_stride_h + first.to(tl.int64) * v_stride_s
    k, v = _tile(k_ptr, rows, columns, left, k_stride_s, K), _tile(v_ptr, rows, columns, left, v_stride_s, K)
    q = tl.load(q_ptr + b * q_stride_b + h * q_stride_h + columns, mask=columns < K, other=0.0).to(tl.float32) * scale
    largest = tl.full([ROWS], LOWEST, tl.float32)
    weight = tl.zeros([ROWS], tl.float32)
    o = tl.zeros([ROWS, BLOCK_K], tl.float32)
    while left > 0:
        ahead = left - DEPTH * ROWS
        k_ptr += DEPTH * ROWS * k_stride_s
        v_ptr += DEPTH * ROWS * v_stride_s
        # Asked for before the others are computed with, so that memory never waits.
        next_k, next_v = _tile(k_ptr, rows, columns, ahead, k_stride_s, K), _tile(v_ptr, rows, columns, ahead, v_stride_s, K)
        score = tl.where(rows < left, tl.sum(k.to(tl.float32) * q[None, None, :], axis=2), float("-inf"))
        before, largest = largest, tl.maximum(largest, tl.max(score, axis=0))
        faded = tl.exp2(before - largest)
        p = tl.exp2(score - largest[None, :])
        weight = weight * faded + tl.sum(p, axis=0)
        o = o * faded[:, None] + tl.sum(p[:, :, None] * v.to(tl.float32), axis=0)
        k, v, left = next_k, next_v, ahead
    highest = tl.max(largest, axis=0)
    share = tl.exp2(largest - highest)
    total = tl.sum(weight * share, axis=0)
    o = tl.sum(o * share[:, None], axis=0)
    if PARTS == 1:
        tl.store(o_ptr + head * K + columns, (o / total).to(o_ptr.dtype.element_ty), mask=columns < K)
    else:
        at = head * PARTS + part
        tl.store(sums_ptr + at * K + columns, o, mask=columns < K)
        tl.store(weights_ptr + at, highest)
        tl.store(weights_ptr + tl.num_programs(0) + at, total)


@triton.jit
def _sum_kernel(o_ptr, sums_ptr, weights_ptr, K: tl.constexpr, BLOCK_K: tl.constexpr, PARTS: tl.constexpr):
    """o [B, H, K] from what `_attention_kernel` leaves of several parts."""
    head = tl.program_id(0).to(tl.int64)
    part, columns = head * PARTS + tl.arange(0, PARTS), tl.arange(0, BLOCK_K)
    largest = tl.load(weights_ptr + part)
    total = tl.load(weights_ptr + tl.num_programs(0) * PARTS + part)
    o = tl.load(sums_ptr + part[:, None] * K + columns[None, :], mask=(columns < K)[None, :], other=0.0)
    share = tl.exp2(largest - tl.max(largest, axis=0))
    o = tl.sum(o * share[:, None], axis=0) / tl.sum(total * share, axis=0)
    tl.store(o_ptr + head * K + columns, o.to(o_ptr.dtype.element_ty), mask=columns < K)


def num_parts(heads: int, slots: int) -> int:
    """Into how many parts the slots of each of so many heads are cut, a power of two; by sizes alone."""
    most = min(PROGRAMS // heads, slots // SHORTEST_PART, MOST_PARTS)
    return 1 << max(0, most.bit_length() - 1)


def forward(q: Tensor, k: Tensor, v: Tensor, position: Tensor) -> Tensor:
    """o [B, H, K] contiguous, as `attend` says; the numbers of a head lie side by side in q, k and v, position is contiguous."""
    B, H, S, K = k.shape
    if B == 0:
        return q.new_empty(q.shape)
    parts, block_k = num_parts(B * H, S), max(16, triton.next_power_of_2(K))
    how = LAUNCH if parts == 1 else LAUNCH_OF_PARTS
    # As many as all threads read at once.
    rows = max(1, how["num_warps"] * 32 * READ_BYTES // (block_k * k.element_size()))
    o, kept = q.new_empty(q.shape), parts if parts > 1 else 0
    sums, weights = (q.new_empty(shape, dtype=torch.float32) for shape in ((B * H, kept, K), (2, B * H, kept)))
    strides = (*q.stride()[:2], *k.stride()[:3], *v.stride()[:3])
    arguments = (q, k, v, position, o, sums, weights, H, S, math.log2(math.e) / math.sqrt(K), *strides)
    sizes = {"K": K, "BLOCK_K": block_k, "PARTS": parts}
    launch(_attention_kernel, (B * H * parts, 1, 1), arguments, {**sizes, "ROWS": rows, **how})
    if kept:
        launch(_sum_kernel, (B * H, 1, 1), (o, sums, weights), {**sizes, "num_warps": 4})
    return o
