"""The Mesa layer's states before every chunk of C tokens in Triton; `mesa_launches.py` calls these kernels.

A state follows from the one before, so a program walks along time with one tile of G and of H of one head. Where heads and tiles
are too few to fill a GPU, time is cut into segments of `span` chunks: `segment_states_kernel` sums each segment as if nothing
were before it, all at once, and then `states_kernel` walks through all segments at once, each from what those before it left.

Layouts, all contiguous: tokens [B, T, heads, D]; gates as `mesa_launches.Gates` has them; the state at an end of the sequence
[B, heads, rows, K].
A call has some of the heads of all sequences, all in a row but the first `skipped`, and places for these alone: states before
every chunk [places, N, rows, K]; of segments, all but one [places, segments - 1]: their sums [rows, K], what they keep of a
state and the mass of their tokens.
"""

import triton
import triton.language as tl

from models.backends.triton.mesa_tiles import (
    SIZES,
    dot,
    inverse_power_of_two,
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
    G, H, mass, c, values, keys, to_end, strength, decays, masses, rows, columns, T, heads,
    V: tl.constexpr, K: tl.constexpr, C: tl.constexpr, PARTS: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """(G, H, mass, decay): tiles of a_c G + sum_s zeta_cs beta_s v_s k_s^T and the same of keys, what tokens weigh, and a_c."""
    t = tl.arange(0, C)
    start, left = c * C * heads, T - c * C
    weight = tl.load(to_end + c * C + t) * tl.load(strength + c * C + t)
    value = load_tile(values + start * V, t, rows, heads * V, left, V).to(tl.float32) * weight[:, None]
    key = load_tile(keys + start * K, t, rows, heads * K, left, K).to(tl.float32) * weight[:, None]
    k = load_tile(keys + start * K, t, columns, heads * K, left, K)
    decay = tl.load(decays + c)
    G *= decay
    H *= decay
    G = dot(tl.trans(value), k, G, PARTS, PARTS, LOW)
    H = dot(tl.trans(key), k, H, 2, PARTS, LOW)
    return G, H, mass * decay + tl.load(masses + c), decay


@triton.jit
def _tile_of(block, K: tl.constexpr, BLOCK: tl.constexpr):
    blocks_k: tl.constexpr = (K + BLOCK - 1) // BLOCK
    return (block // blocks_k) * BLOCK + tl.arange(0, BLOCK), (block % blocks_k) * BLOCK + tl.arange(0, BLOCK)


@triton.jit(do_not_specialize=SIZES)
def segment_states_kernel(
    values, keys, to_end, strength, decays, masses, sums_G, sums_H, kept, segment_masses, T, N, heads, skipped, span,
    V: tl.constexpr, K: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """What a segment adds to G and H: a full one, with more behind it."""
    block, place, segment = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    head = skipped + place
    batch, h = head // heads, head % heads
    rows, columns = _tile_of(block, K, BLOCK)
    first = batch * T * heads + h
    to_end += head * N * C
    strength += head * N * C
    decays += head * N
    masses += head * N
    here = place * tl.num_programs(2) + segment
    G = tl.zeros([BLOCK, BLOCK], tl.float32)
    H = tl.zeros([BLOCK, BLOCK], tl.float32)
    mass, decay = 0.0, 1.0
    for c in range(segment * span, (segment + 1) * span):
        G, H, mass, chunk_decay = _after_chunk(
            G, H, mass, c, values + first * V, keys + first * K, to_end, strength, decays, masses, rows, columns, T, heads,
            V, K, C, PARTS, LOW,
        )  # fmt: skip
        decay *= chunk_decay
    store_tile(sums_G + here * V * K, G, rows, columns, K, V, K)
    store_tile(sums_H + here * K * K, H, rows, columns, K, K, K)
    if block == 0:
        tl.store(kept + here, decay)
        tl.store(segment_masses + here, mass)


@triton.jit(do_not_specialize=SIZES)
def states_kernel(
    values, keys, to_end, strength, decays, masses, initial_G, initial_H, initial_mass, sums_G, sums_H, kept, segment_masses,
    G_states, H_states, scales, final_G, final_H, T, N, heads, skipped, span, ends,
    V: tl.constexpr, K: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
    HAS_G: tl.constexpr, HAS_H: tl.constexpr, PARTS: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """G_c = a_C G_{c-1} + sum_s zeta_Cs beta_s v_s k_s^T through a segment, and H with keys as values.

    H is stored as two float16 parts [N, 2, K, K] of H times a scale [N], from what the tokens weigh in all. `final_G` and
    `final_H` are those after segment `ends`, if there is one.
    """
    block, place, segment = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    head = skipped + place
    batch, h = head // heads, head % heads
    rows, columns = _tile_of(block, K, BLOCK)
    first = batch * T * heads + h
    to_end += head * N * C
    strength += head * N * C
    decays += head * N
    masses += head * N
    G_states += place * N * V * K
    H_states += place * N * 2 * K * K
    scales += place * N
    G = tl.zeros([BLOCK, BLOCK], tl.float32)
    H = tl.zeros([BLOCK, BLOCK], tl.float32)
    mass = 0.0
    if HAS_G:
        G = load_tile(initial_G + head * V * K, rows, columns, K, V, K).to(tl.float32)
    if HAS_H:
        H = load_tile(initial_H + head * K * K, rows, columns, K, K, K).to(tl.float32)
        mass = tl.load(initial_mass + head)
    before = place * (tl.num_programs(2) - 1)
    for here in range(before, before + segment):
        decay = tl.load(kept + here)
        G = G * decay + load_tile(sums_G + here * V * K, rows, columns, K, V, K)
        H = H * decay + load_tile(sums_H + here * K * K, rows, columns, K, K, K)
        mass = mass * decay + tl.load(segment_masses + here)
    for c in range(segment * span, tl.minimum((segment + 1) * span, N)):
        store_tile(G_states + c * V * K, G, rows, columns, K, V, K)
        scale = _mass_scale(mass)
        high, low = split(H * scale, tl.float16)
        store_tile(H_states + 2 * c * K * K, high, rows, columns, K, K, K)
        store_tile(H_states + (2 * c + 1) * K * K, low, rows, columns, K, K, K)
        tl.store(scales + c, scale)
        G, H, mass, decay = _after_chunk(
            G, H, mass, c, values + first * V, keys + first * K, to_end, strength, decays, masses, rows, columns, T, heads,
            V, K, C, PARTS, LOW,
        )  # fmt: skip
    if segment == ends:
        store_tile(final_G + head * V * K, G, rows, columns, K, V, K)
        store_tile(final_H + head * K * K, H, rows, columns, K, K, K)
