"""The Mesa layer's states before every chunk of C tokens in Triton. Layouts and names are those of `mesa_tiles.py`.

A state follows from the one before, so a program walks along time with one tile of G or of H of one head. Where heads and tiles
are too few to fill a GPU, time is cut into segments of `span` chunks: `segment_states_kernel` sums each segment as if nothing
were before it, all at once, and then `states_kernel` walks through all segments at once, each from what those before it left.

Every segment but the last leaves three things [places, segments - 1]: its sum [rows, K], its decay (what is left at its end of
the state before it) and its mass. The mass is that of H, which has no entry above it times 31^2: beta summed with the decays
behind it, and the largest entry of H before the sequence.
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
    """A power of two that brings H of this mass into float16 where no entry of a key is above 31 in size, and wastes little."""
    return inverse_power_of_two(tl.maximum(mass, 1e-30)) * 32.0


@triton.jit
def _gates(to_end, strength, decays, c, C: tl.constexpr):
    """(zeta_cs beta_s, a_c) of chunk c."""
    t = tl.arange(0, C)
    return tl.load(to_end + c * C + t) * tl.load(strength + c * C + t), tl.load(decays + c)


@triton.jit
def _after_chunk(
    S, c, weight, decay, values, keys, rows, columns, T, heads,
    V: tl.constexpr, K: tl.constexpr, C: tl.constexpr, VALUE_PARTS: tl.constexpr, PARTS: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """A tile of a_c S + sum_s zeta_cs beta_s v_s k_s^T."""
    t = tl.arange(0, C)
    start, left = c * C * heads, T - c * C
    value = load_tile(values + start * V, t, rows, heads * V, left, V).to(tl.float32) * weight[:, None]
    key = load_tile(keys + start * K, t, columns, heads * K, left, K)
    return dot(tl.trans(value), key, S * decay, VALUE_PARTS, PARTS, LOW)


@triton.jit
def _tile_of(block, K: tl.constexpr, BLOCK: tl.constexpr):
    """(rows, columns) of a tile of a state, row after row of tiles."""
    blocks_k: tl.constexpr = (K + BLOCK - 1) // BLOCK
    return (block // blocks_k) * BLOCK + tl.arange(0, BLOCK), (block % blocks_k) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def _sum_segment(
    values, keys, to_end, strength, decays, sums, block, segment, at, first, T, heads, span,
    V: tl.constexpr, K: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
    VALUE_PARTS: tl.constexpr, PARTS: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """A tile of the state after a segment before which it was zero, written into number `at` of all sums."""
    rows, columns = _tile_of(block, K, BLOCK)
    S = tl.zeros([BLOCK, BLOCK], tl.float32)
    weight, decay = _gates(to_end, strength, decays, segment * span, C)
    for c in range(segment * span, (segment + 1) * span):
        # one chunk ahead: these are few numbers, for which the products would wait
        next_weight, next_decay = _gates(to_end, strength, decays, c + 1, C)
        S = _after_chunk(
            S, c, weight, decay, values + first * V, keys + first * K, rows, columns, T, heads,
            V, K, C, VALUE_PARTS, PARTS, LOW,
        )  # fmt: skip
        weight, decay = next_weight, next_decay
    store_tile(sums + at * V * K, S, rows, columns, K, V, K)


@triton.jit(do_not_specialize=SIZES)
def segment_states_kernel(
    v, k, to_end, strength, decays, masses, sums_G, sums_H, segment_decays, segment_masses, T, N, heads, skipped, span,
    V: tl.constexpr, K: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
    TILES_OF_G: tl.constexpr, PARTS: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """What a segment adds to G, and to H in the blocks behind those of G, its decay and mass: for all but the last one."""
    block, place, segment = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    head = skipped + place
    first = head // heads * T * heads + head % heads
    to_end += head * N * C
    strength += head * N * C
    decays += head * N
    masses += head * N
    at = place * tl.num_programs(2) + segment
    if block < TILES_OF_G:
        _sum_segment(
            v, k, to_end, strength, decays, sums_G, block, segment, at, first, T, heads, span,
            V, K, C, BLOCK, PARTS, PARTS, LOW,
        )  # fmt: skip
    else:
        _sum_segment(
            k, k, to_end, strength, decays, sums_H, block - TILES_OF_G, segment, at, first, T, heads, span,
            K, K, C, BLOCK, 2, PARTS, LOW,
        )  # fmt: skip
    if block == 0:
        mass, decay = 0.0, 1.0
        for c in range(segment * span, (segment + 1) * span):
            mass = mass * tl.load(decays + c) + tl.load(masses + c)
            decay *= tl.load(decays + c)
        tl.store(segment_decays + at, decay)
        tl.store(segment_masses + at, mass)


@triton.jit
def _through_segment(
    values, keys, to_end, strength, decays, masses, initial, initial_mass, sums, segment_decays, segment_masses,
    states, scales, lows, final, block, place, head, first, segment, others, T, N, heads, span, ends,
    V: tl.constexpr, K: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr, HAS_INITIAL: tl.constexpr,
    HALVES: tl.constexpr, VALUE_PARTS: tl.constexpr, PARTS: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """A tile of a state before every chunk of a segment, where HALVES in two float16 parts of it times a scale."""
    rows, columns = _tile_of(block, K, BLOCK)
    states += place * N * V * K * (2 if HALVES else 1)
    scales += place * N
    of_low: tl.constexpr = ((V + BLOCK - 1) // BLOCK) * ((K + BLOCK - 1) // BLOCK) * BLOCK
    lows += place * N * of_low + block * BLOCK + tl.arange(0, BLOCK)
    S = tl.zeros([BLOCK, BLOCK], tl.float32)
    mass = 0.0
    if HAS_INITIAL:
        S = load_tile(initial + head * V * K, rows, columns, K, V, K).to(tl.float32)
        if HALVES:
            mass = tl.load(initial_mass + head)
    for earlier in range(place * others, place * others + segment):
        decay = tl.load(segment_decays + earlier)
        S = S * decay + load_tile(sums + earlier * V * K, rows, columns, K, V, K)
        mass = mass * decay + tl.load(segment_masses + earlier)
    end = tl.minimum((segment + 1) * span, N)
    weight, decay = _gates(to_end, strength, decays, segment * span, C)
    added = tl.load(masses + segment * span)
    for c in range(segment * span, end):
        # one chunk ahead: these are few numbers, for which the products would wait
        ahead = tl.minimum(c + 1, end - 1)
        next_weight, next_decay = _gates(to_end, strength, decays, ahead, C)
        next_added = tl.load(masses + ahead)
        if HALVES:
            scale = _mass_scale(mass)
            high, low = split(S * scale, tl.float16)
            store_tile(states + 2 * c * V * K, high, rows, columns, K, V, K)
            store_tile(states + (2 * c + 1) * V * K, low, rows, columns, K, V, K)
            tl.store(scales + c, scale)
            tl.store(lows + c * of_low, tl.sum(low.to(tl.float32) * low.to(tl.float32), 1))
        else:
            store_tile(states + c * V * K, S, rows, columns, K, V, K)
        S = _after_chunk(
            S, c, weight, decay, values + first * V, keys + first * K, rows, columns, T, heads,
            V, K, C, VALUE_PARTS, PARTS, LOW,
        )  # fmt: skip
        mass = mass * decay + added
        weight, decay, added = next_weight, next_decay, next_added
    if segment == ends:
        store_tile(final + head * V * K, S, rows, columns, K, V, K)


@triton.jit(do_not_specialize=SIZES)
def states_kernel(
    v, k, to_end, strength, decays, masses, initial_G, initial_H, initial_mass,
    sums_G, sums_H, segment_decays, segment_masses,
    G_states, H_states, scales, lows, final_G, final_H, T, N, heads, skipped, span, ends,
    V: tl.constexpr, K: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr, TILES_OF_G: tl.constexpr,
    HAS_G: tl.constexpr, HAS_H: tl.constexpr, PARTS: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """G_c = a_c G_{c-1} + sum_s zeta_cs beta_s v_s k_s^T through a segment; H, with keys as values, in the blocks behind.

    Written are the states before every chunk, H in two float16 parts [N, 2, K, K] of H times a scale [N] that its mass gives,
    and as `final_G` and `final_H` those after segment `ends`, if there is one.
    """
    block, place, segment = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    head = skipped + place
    first = head // heads * T * heads + head % heads
    to_end += head * N * C
    strength += head * N * C
    decays += head * N
    masses += head * N
    others = tl.num_programs(2) - 1
    if block < TILES_OF_G:
        _through_segment(
            v, k, to_end, strength, decays, masses, initial_G, initial_mass, sums_G, segment_decays, segment_masses,
            G_states, scales, lows, final_G, block, place, head, first, segment, others, T, N, heads, span, ends,
            V, K, C, BLOCK, HAS_G, False, PARTS, PARTS, LOW,
        )  # fmt: skip
    else:
        _through_segment(
            k, k, to_end, strength, decays, masses, initial_H, initial_mass, sums_H, segment_decays, segment_masses,
            H_states, scales, lows, final_H, block - TILES_OF_G, place, head, first, segment, others, T, N, heads, span, ends,
            K, K, C, BLOCK, HAS_H, True, 2, PARTS, LOW,
        )  # fmt: skip
