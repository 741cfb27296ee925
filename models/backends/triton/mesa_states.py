"""The Mesa layer's states before every chunk of C tokens in Triton; `mesa_launches.py` calls these kernels.

A state follows from the one before, so a program walks along time with one tile of a state of one head. Where heads and tiles
are too few to fill a GPU, time is cut into segments of `span` chunks: `segment_states_kernel` sums each segment as if nothing
were before it, all at once, and then `states_kernel` walks through all segments at once, each from what those before it left.

Layouts, all contiguous: tokens [B, T, heads, D]; gates [B, T, heads]; the state at an end of the sequence [B, heads, rows, K].
A call has some of the heads of all sequences, all in a row but the first `skipped`, and places for these alone: states before
every chunk [places, N, rows, K]; of segments, all but one [places, segments - 1]: their sums [rows, K], what they keep of a
state and the mass of their tokens.
"""

import triton
import triton.language as tl

from models.backends.triton.mesa_tiles import (
    SIZES,
    decay_between,
    decays,
    dot,
    inverse_power_of_two,
    load_gates,
    load_tile,
    split,
    store_tile,
)


@triton.jit
def _mass_scale(mass):
    """A power of two that brings sums of `mass` products of keys up to 31 in size into float16, and wastes little."""
    return inverse_power_of_two(tl.maximum(mass, 1e-30)) * 32.0


@triton.jit
def _after_chunk(
    S, mass, c, values, keys, log_decay, beta, rows, columns, T, heads,
    V: tl.constexpr, K: tl.constexpr, C: tl.constexpr,
    WEIGHTED_PARTS: tl.constexpr, KEY_PARTS: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """(S, mass, decay): a tile of a_c S + sum_s zeta_cs beta_s values_s keys_s^T, what tokens weigh in all, and a_c."""
    t = tl.arange(0, C)
    start, left = c * C * heads, T - c * C
    log, resets, total, total_resets, forgets = decays(load_gates(log_decay + start, t, left, heads))
    weight = decay_between(total, total_resets, log, resets, t < left) * load_gates(beta + start, t, left, heads)
    y = load_tile(values + start * V, t, rows, heads * V, left, V).to(tl.float32) * weight[:, None]
    k = load_tile(keys + start * K, t, columns, heads * K, left, K)
    decay = decay_between(total, total_resets, 0.0, 0, True)
    S *= decay
    S = dot(tl.trans(y), k, S, WEIGHTED_PARTS, KEY_PARTS, LOW)
    return S, mass * decay + tl.sum(weight, 0), decay


@triton.jit(do_not_specialize=SIZES)
def segment_states_kernel(
    values, keys, log_decay, beta, sums, kept, masses, T, heads, skipped, span,
    V: tl.constexpr, K: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
    WEIGHTED_PARTS: tl.constexpr, KEY_PARTS: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """What a segment adds to G, or to H with keys as values: a full one, with more behind it."""
    blocks_k: tl.constexpr = (K + BLOCK - 1) // BLOCK
    block, place, segment = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    head = skipped + place
    batch, h = head // heads, head % heads
    rows = (block // blocks_k) * BLOCK + tl.arange(0, BLOCK)
    columns = (block % blocks_k) * BLOCK + tl.arange(0, BLOCK)
    first = batch * T * heads + h
    here = place * tl.num_programs(2) + segment
    S = tl.zeros([BLOCK, BLOCK], tl.float32)
    mass, decay = 0.0, 1.0
    for c in range(segment * span, (segment + 1) * span):
        S, mass, chunk_decay = _after_chunk(
            S, mass, c, values + first * V, keys + first * K, log_decay + first, beta + first, rows, columns, T, heads,
            V, K, C, WEIGHTED_PARTS, KEY_PARTS, LOW,
        )  # fmt: skip
        decay *= chunk_decay
    store_tile(sums + here * V * K, S, rows, columns, K, V, K)
    if block == 0:
        tl.store(kept + here, decay)
        tl.store(masses + here, mass)


@triton.jit(do_not_specialize=SIZES)
def states_kernel(
    values, keys, log_decay, beta, initial, initial_mass, sums, kept, masses, states, scales, final,
    T, N, heads, skipped, span, ends,
    V: tl.constexpr, K: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
    HAS_INITIAL: tl.constexpr, SPLIT: tl.constexpr, WEIGHTED_PARTS: tl.constexpr, KEY_PARTS: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """S_c = a_C S_{c-1} + sum_s zeta_Cs beta_s values_s keys_s^T through a segment: G, and H with keys as values.

    SPLIT stores S as two float16 parts [N, 2, V, K] of S times a scale [N], from what the tokens weigh in all. `final` is
    that after segment `ends`, if there is one.
    """
    blocks_k: tl.constexpr = (K + BLOCK - 1) // BLOCK
    block, place, segment = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    head = skipped + place
    batch, h = head // heads, head % heads
    rows = (block // blocks_k) * BLOCK + tl.arange(0, BLOCK)
    columns = (block % blocks_k) * BLOCK + tl.arange(0, BLOCK)
    first = batch * T * heads + h
    PARTS: tl.constexpr = 2 if SPLIT else 1
    states += place * N * V * K * PARTS
    scales += place * N
    if HAS_INITIAL:
        S = load_tile(initial + head * V * K, rows, columns, K, V, K).to(tl.float32)
        mass = tl.load(initial_mass + head)
    else:
        S = tl.zeros([BLOCK, BLOCK], tl.float32)
        mass = 0.0
    before = place * (tl.num_programs(2) - 1)
    for here in range(before, before + segment):
        decay = tl.load(kept + here)
        S = S * decay + load_tile(sums + here * V * K, rows, columns, K, V, K)
        mass = mass * decay + tl.load(masses + here)
    for c in range(segment * span, tl.minimum((segment + 1) * span, N)):
        if SPLIT:
            scale = _mass_scale(mass)
            high, low = split(S * scale, tl.float16)
            store_tile(states + 2 * c * V * K, high, rows, columns, K, V, K)
            store_tile(states + (2 * c + 1) * V * K, low, rows, columns, K, V, K)
            tl.store(scales + c, scale)
        else:
            store_tile(states + c * V * K, S, rows, columns, K, V, K)
        S, mass, decay = _after_chunk(
            S, mass, c, values + first * V, keys + first * K, log_decay + first, beta + first, rows, columns, T, heads,
            V, K, C, WEIGHTED_PARTS, KEY_PARTS, LOW,
        )  # fmt: skip
    if segment == ends:
        store_tile(final + head * V * K, S, rows, columns, K, V, K)
