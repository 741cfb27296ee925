"""What reads G around the Mesa layer's solves in Triton, a chunk of C tokens at a time.

They are kernels of their own because a solve fills a multiprocessor's registers, and what waits for memory in it waits alone.
Layouts and names are those of `mesa_tiles.py`.
"""

import triton
import triton.language as tl

from models.backends.triton.mesa_tiles import (
    SIZES,
    chunk_weights,
    dot,
    inverse_power_of_two,
    load_parts,
    load_tile,
    split,
    store_tile,
)


@triton.jit(do_not_specialize=SIZES)
def read_out_kernel(
    x, k, v, log, resets, strength, from_start, G_states, o, T, N, heads, part,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """o_t = G_t x_t of one chunk, BLOCK_V of its V columns; K is read in steps of as many where PARTS is 1."""
    # the blocks of a chunk run together: all but the first find x and k in the cache
    blocks: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    c, block, head = tl.program_id(0).to(tl.int64) // blocks, tl.program_id(0) % blocks, tl.program_id(1).to(tl.int64)
    first = (head // heads * T + c * C) * heads + head % heads
    t = tl.arange(0, C)
    # counted from this chunk's start, as t is; offsets within a chunk fit 32 bits
    T -= c.to(tl.int32) * C
    j = block * BLOCK_V + tl.arange(0, BLOCK_V)
    chunk = (head * N + c) * C
    size = 1.0
    if PARTS == 1:
        out = tl.zeros([C, BLOCK_V], tl.float32)
        scores = tl.zeros([C, C], tl.float32)
        for start in range(0, K, BLOCK_V):
            i = start + tl.arange(0, BLOCK_V)
            x_high = load_tile(x + first * K, t, i, heads * K, T, K)
            x_low = load_tile(x + part + first * K, t, i, heads * K, T, K)
            key = load_tile(k + first * K, t, i, heads * K, T, K)
            G = load_tile(G_states + (head * N + c) * V * K, j, i, K, V, K)
            G_high, G_low = split(tl.trans(G), tl.bfloat16)
            out = tl.dot(x_high, G_high, out)
            out = tl.dot(x_low, G_high, out)
            out = tl.dot(x_high, G_low, out)
            scores = tl.dot(x_high, tl.trans(key), scores)
            scores = tl.dot(x_low, tl.trans(key), scores)
    else:
        i = tl.arange(0, BLOCK_K)
        G = load_tile(G_states + (head * N + c) * V * K, j, i, K, V, K)
        key = load_tile(k + first * K, t, i, heads * K, T, K)
        # 22 bits of two float16 parts, within their range
        solution = load_parts(x + first * K, part, t, i, heads * K, T, K)
        solution += load_tile(x + 2 * part + first * K, t, i, heads * K, T, K).to(tl.float32)
        unit = inverse_power_of_two(tl.max(tl.abs(solution), 1))
        G_scale = inverse_power_of_two(tl.max(tl.abs(G)))
        solution *= unit[:, None]
        out = dot(solution, tl.trans(G * G_scale), tl.zeros([C, BLOCK_V], tl.float32), 2, 2, tl.float16) / G_scale
        scores = dot(solution, tl.trans(key), tl.zeros([C, C], tl.float32), 2, 2, tl.float16)
        size = 1.0 / unit[:, None]
    value = load_tile(v + first * V, t, j, heads * V, T, V)
    weights = chunk_weights(log + chunk, resets + chunk, strength + chunk, C)
    kept = tl.load(from_start + chunk + t)
    out = dot(scores * weights, value, out * kept[:, None], 2, PARTS, tl.bfloat16)
    store_tile(o + first * V, out * size, t, j, heads * V, T, V)


@triton.jit(do_not_specialize=SIZES)
def right_side_kernel(
    d_o, k, v, log, resets, strength, from_start, G_states, rhs, T, N, heads, skipped,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """G_t^T do_t of one chunk, BLOCK_K of its K columns, in float32: the tokens there are of rhs [places, N, C, K]."""
    blocks: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    c, block, place = tl.program_id(0).to(tl.int64) // blocks, tl.program_id(0) % blocks, tl.program_id(1).to(tl.int64)
    head = skipped + place
    first = (head // heads * T + c * C) * heads + head % heads
    t = tl.arange(0, C)
    # counted from this chunk's start, as t is; offsets within a chunk fit 32 bits
    T -= c.to(tl.int32) * C
    state = place * N + c
    i = block * BLOCK_K + tl.arange(0, BLOCK_K)
    out = tl.zeros([C, BLOCK_K], tl.float32)
    scores = tl.zeros([C, C], tl.float32)
    for start in range(0, V, BLOCK_V):
        j = start + tl.arange(0, BLOCK_V)
        y = load_tile(d_o + first * V, t, j, heads * V, T, V)
        G = load_tile(G_states + state * V * K, j, i, K, V, K)
        value = load_tile(v + first * V, t, j, heads * V, T, V)
        # three parts, 24 bits: an error across the key is kept by the solve where G^T do itself nearly vanishes
        out = dot(y, G, out, PARTS, 3, tl.bfloat16)
        scores = dot(y, tl.trans(value), scores, PARTS, PARTS, tl.bfloat16)
    key = load_tile(k + first * K, t, i, heads * K, T, K)
    chunk = (head * N + c) * C
    weights = chunk_weights(log + chunk, resets + chunk, strength + chunk, C)
    kept = tl.load(from_start + chunk + t)
    out = dot(scores * weights, key, out * kept[:, None], 2, PARTS, tl.bfloat16)
    store_tile(rhs + state * C * K, out, t, i, K, T, K)
