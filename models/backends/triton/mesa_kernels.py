# ruff: noqa: SIM102 - Triton cannot join a condition on constants to one on tensors
"""The Mesa layer's solves in Triton, a chunk of C tokens at a time; `mesa_launches.py` calls them.

Layouts are those of `mesa_states.py`.
"""

import triton
import triton.language as tl

from models.backends.triton.mesa_tiles import (
    SIZES,
    SMALLEST,
    decay_between,
    decays,
    dot,
    inverse_power_of_two,
    load_gates,
    load_parts,
    load_tile,
    split,
    store_tile,
)


@triton.jit
def _key_scale(key):
    """1 for normalised keys, less where they would leave the range of float16."""
    return tl.minimum(inverse_power_of_two(tl.max(tl.abs(key))), 1.0)


@triton.jit
def _penalty(regularizer, i, K: tl.constexpr, WIDE: tl.constexpr):
    """Lambda, as rounded as the solve has it."""
    penalty = tl.load(regularizer + i, mask=i < K, other=1.0).to(tl.float32)
    return penalty if WIDE else tl.minimum(penalty, 32768.0).to(tl.float16).to(tl.float32)


@triton.jit
def _row_sums(a, b, c, d, e):
    return tl.sum(a, 1), tl.sum(b, 1), tl.sum(c, 1), tl.sum(d, 1), tl.sum(e, 1)


@triton.jit
def _solve(
    rhs, divisor, k, k_low, H, H_low, from_start, weights, regularizer, tolerance, max_steps,
    STARTS_AT_ZERO: tl.constexpr, FINE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """(x, r, size, steps): (H_t + Lambda) x_t = rhs_t and what is left of rhs, both in units of size, for all tokens.

    Conjugate gradients whose directions are rounded to float16 *before* the product, so that the product of the very
    direction that is used is accurate, and with it the residual; beta comes from conjugacy to the rounded direction. A
    token stops at |r| <= tolerance |rhs|.

    The first guess, rhs / divisor unless STARTS_AT_ZERO, is a step along itself of a given length, which is not counted.

    Where the precision goes: H is used in two parts where FINE, as its rounding would be read across the keys. To
    round what single tokens weigh (`weights`, `scores`, `regularizer` in float16 unless WIDE) only moves eigenvalues by
    that little, which no condition number magnifies.
    """
    largest = tl.max(tl.abs(rhs), 1)
    # the reciprocal of a smaller number is no float32: what decayed so far is nothing
    r = rhs * tl.where(largest > SMALLEST, 1.0 / largest, 0.0)[:, None]
    norm = tl.sqrt(tl.sum(r * r, 1))
    size = largest * norm
    r *= tl.where(norm > 0, 1.0 / norm, 0.0)[:, None]
    # below 1e-7 of the right-hand side, float32 has nothing left to solve
    goal = tl.maximum(tolerance * tolerance, 1e-14)
    x = tl.zeros_like(r)
    bits = r.to(tl.float16).to(tl.int16, bitcast=True)
    steps = tl.zeros_like(norm).to(tl.int32)
    step = 0
    if not STARTS_AT_ZERO:
        guess = r / divisor
        length = tl.sqrt(tl.sum(guess * guess, 1))
        bits = (guess * tl.where(length > 0, 1.0 / length, 0.0)[:, None]).to(tl.float16).to(tl.int16, bitcast=True)
        step = -1
    open_tokens = tl.sum((norm > 0).to(tl.int32), 0)
    while (step < max_steps) & (open_tokens > 0):
        # A factor that a loop carries is put into shared memory, behind two barriers; one made of what it carries is not.
        p = bits.to(tl.float16, bitcast=True)
        scores = tl.dot(p, tl.trans(k))
        if WIDE:
            scores = tl.dot(p, tl.trans(k_low), scores)
        w = tl.dot(p, H)
        if FINE:
            w = tl.dot(p, H_low, w)
        w *= from_start[:, None]
        scores *= weights.to(tl.float32)
        scores_high = scores.to(tl.float16)
        w = tl.dot(scores_high, k, w)
        if WIDE:
            w = tl.dot((scores - scores_high.to(tl.float32)).to(tl.float16), k, w)
            w = tl.dot(scores_high, k_low, w)
        direction = p.to(tl.float32)
        w += direction * regularizer[None, :].to(tl.float32)
        rr, rp, pw, rw, ww = _row_sums(r * r, r * direction, direction * w, r * w, w * w)
        is_open = (rr > goal) & (pw > 0)
        inverse_pw = tl.where(is_open, 1.0 / pw, 0.0)
        alpha = rp * inverse_pw
        if not STARTS_AT_ZERO:
            alpha = tl.where(step < 0, length, alpha)
        x += alpha[:, None] * direction
        r -= alpha[:, None] * w
        next_rr = tl.maximum(rr - 2 * alpha * rw + alpha * alpha * ww, 1e-6 * rr)
        # what is left after such a fall is rounding, unrelated to the directions so far: start again from it
        beta = tl.where((next_rr < 1e-4 * rr) | (step < 0), 0.0, -(rw - alpha * ww) * inverse_pw)
        shrink = tl.rsqrt(tl.maximum(next_rr + beta * beta, 1e-30))
        bits = ((r + beta[:, None] * direction) * shrink[:, None]).to(tl.float16).to(tl.int16, bitcast=True)
        steps += (is_open & (step >= 0)).to(tl.int32)
        open_tokens = tl.sum((is_open & (next_rr > goal)).to(tl.int32), 0)
        step += 1
    return x, r, size, steps


@triton.jit
def _chunk_weights(log_decay, beta, t, T, heads, C: tl.constexpr):
    """zeta_ts beta_s and zeta_t0."""
    log, resets, total, total_resets, forgets = decays(load_gates(log_decay, t, T, heads))
    s = tl.arange(0, C)
    causal = s[:, None] >= s[None, :]
    within = decay_between(log[:, None], resets[:, None], log[None, :], resets[None, :], causal)
    within *= load_gates(beta, t, T, heads)[None, :]
    return within, decay_between(log, resets, 0.0, 0, True)


@triton.jit
def _rounding_shows(H, H_scale, regularizer, tolerance):
    """Whether to round H to float16 moves the residual by more than 1e-4 of the right-hand side, or than the tolerance.

    The rounding is about 0.06 of H's Frobenius norm in units of 2^-12; the solution is at most |rhs| / Lambda.
    """
    H = H.to(tl.float32)
    return tl.sqrt(tl.sum(H * H)) / H_scale * 1.5e-5 > tl.minimum(tolerance, 1e-4) * tl.min(regularizer)


@triton.jit
def _solve_chunk(
    rhs, key, weights, from_start, H_parts, H_scale, regularizer, tolerance, max_steps,
    K: tl.constexpr, BLOCK_K: tl.constexpr, INITIAL: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """_solve for keys in float32 and the scaled parts of H, still in memory; the guess is what INITIAL says."""
    i = tl.arange(0, BLOCK_K)
    H = load_tile(H_parts, i, i, K, K, K)
    key_scale = _key_scale(key)
    key_high, key_low = split(key * key_scale, tl.float16)
    # all of the system times `squared`, so that the products with scaled keys need no factor of their own
    squared = key_scale * key_scale
    penalty = regularizer * squared
    from_start *= squared / H_scale
    divisor = squared
    if INITIAL == "diagonal":
        H_diagonal = tl.load(H_parts + i * (K + 1), mask=i < K, other=0.0).to(tl.float32)
        H_diagonal += tl.load(H_parts + K * K + i * (K + 1), mask=i < K, other=0.0).to(tl.float32)
        scaled = key * key_scale
        divisor = dot(weights, scaled * scaled, tl.zeros_like(key), 1 + WIDE, 1 + WIDE, tl.float16)
        # the maximum changes nothing: it keeps Triton from adding inside the product, at 32 KB more of shared memory
        divisor = tl.maximum(divisor, 0.0) + from_start[:, None] * H_diagonal[None, :] + penalty[None, :]
    weights = weights if WIDE else weights.to(tl.float16)
    penalty = penalty if WIDE else penalty.to(tl.float16)
    if WIDE:
        H_low = load_tile(H_parts + K * K, i, i, K, K, K)
        x, r, size, steps = _solve(
            rhs, divisor, key_high, key_low, H, H_low, from_start, weights, penalty, tolerance, max_steps,
            INITIAL == "zero", True, True,
        )  # fmt: skip
    elif _rounding_shows(H, H_scale, regularizer, tolerance):
        H_low = load_tile(H_parts + K * K, i, i, K, K, K)
        x, r, size, steps = _solve(
            rhs, divisor, key_high, key_low, H, H_low, from_start, weights, penalty, tolerance, max_steps,
            INITIAL == "zero", True, False,
        )  # fmt: skip
    else:
        x, r, size, steps = _solve(
            rhs, divisor, key_high, key_low, H, H, from_start, weights, penalty, tolerance, max_steps,
            INITIAL == "zero", False, False,
        )  # fmt: skip
    return x * squared, r, size, steps


@triton.jit(do_not_specialize=SIZES)
def solve_kernel(
    q, k, v, log_decay, beta, regularizer, G_states, H_states, H_scales, x, o, steps, tolerance, max_steps,
    T, N, heads, skipped, part,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    INITIAL: tl.constexpr, PARTS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """x_t = (H_t + Lambda)^-1 q_t and o_t = G_t x_t for one chunk, BLOCK_V values of o at a time."""
    c, place = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    head = skipped + place
    batch, h = head // heads, head % heads
    first = (batch * T + c * C) * heads + h
    t = tl.arange(0, C)
    # of this chunk, as t is; offsets within it fit 32 bits
    T -= c.to(tl.int32) * C
    state = place * N + c
    i = tl.arange(0, BLOCK_K)
    penalty = _penalty(regularizer + h * K, i, K, WIDE)
    H_parts = H_states + state * 2 * K * K
    H_scale = tl.load(H_scales + state)
    key = load_tile(k + first * K, t, i, heads * K, T, K).to(tl.float32)
    weights, from_start = _chunk_weights(log_decay + first, beta + first, t, T, heads, C)
    rhs = load_tile(q + first * K, t, i, heads * K, T, K).to(tl.float32)
    solution, residual, size, used = _solve_chunk(
        rhs, key, weights, from_start, H_parts, H_scale, penalty, tolerance, max_steps,
        K, BLOCK_K, INITIAL, WIDE,
    )  # fmt: skip
    tl.store(steps + first + t * heads, used, mask=t < T)
    high, low = split(solution * size[:, None], tl.bfloat16)
    store_tile(x + first * K, high, t, i, heads * K, T, K)
    store_tile(x + part + first * K, low, t, i, heads * K, T, K)

    unit = inverse_power_of_two(tl.max(tl.abs(solution), 1))
    solution *= unit[:, None]
    key_scale = _key_scale(key)
    key *= key_scale
    scores = dot(solution, tl.trans(key), tl.zeros([C, C], tl.float32), 2, PARTS, tl.float16)
    scores *= weights / key_scale
    for block in tl.static_range(0, V, BLOCK_V):
        j = block + tl.arange(0, BLOCK_V)
        G = load_tile(G_states + state * V * K, j, i, K, V, K)
        G_scale = inverse_power_of_two(tl.max(tl.abs(G)))
        out = dot(solution, tl.trans(G * G_scale), tl.zeros([C, BLOCK_V], tl.float32), 2, 2, tl.float16)
        out *= (from_start / G_scale)[:, None]
        value = load_tile(v + first * V, t, j, heads * V, T, V)
        out = dot(scores, value, out, 2, PARTS, tl.bfloat16)
        store_tile(o + first * V, out * (size / unit)[:, None], t, j, heads * V, T, V)


@triton.jit(do_not_specialize=SIZES)
def solve_backward_kernel(
    d_o, k, v, log_decay, beta, regularizer, G_states, H_states, H_scales, x, e, d_regularizer, row, tolerance, max_steps,
    T, N, heads, skipped, part,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    INITIAL: tl.constexpr, PARTS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """e_t = (H_t + Lambda)^-1 G_t^T do_t, which is dq_t, for one chunk.

    Also sum_t e_t x_t for Lambda, and `row`, what o_t gains as all that t sees grows together: do.o - e.(H x), which is
    x.(Lambda e + r) with r what is left of the right-hand side, without a difference of large numbers.
    """
    c, place = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    head = skipped + place
    batch, h = head // heads, head % heads
    first = (batch * T + c * C) * heads + h
    t = tl.arange(0, C)
    # of this chunk, as t is; offsets within it fit 32 bits
    T -= c.to(tl.int32) * C
    state = place * N + c
    i = tl.arange(0, BLOCK_K)
    penalty = _penalty(regularizer + h * K, i, K, WIDE)
    H_parts = H_states + state * 2 * K * K
    H_scale = tl.load(H_scales + state)
    weights, from_start = _chunk_weights(log_decay + first, beta + first, t, T, heads, C)

    rhs = tl.zeros([C, BLOCK_K], tl.float32)
    scores = tl.zeros([C, C], tl.float32)
    for block in tl.static_range(0, V, BLOCK_V):
        j = block + tl.arange(0, BLOCK_V)
        y = load_tile(d_o + first * V, t, j, heads * V, T, V)
        G = load_tile(G_states + state * V * K, j, i, K, V, K)
        # three parts, 24 bits: an error across the key is kept by the solve where G^T do itself nearly vanishes
        rhs = dot(y, G, rhs, PARTS, 3, tl.bfloat16)
        value = load_tile(v + first * V, t, j, heads * V, T, V)
        scores = dot(y, tl.trans(value), scores, PARTS, PARTS, tl.bfloat16)
    key = load_tile(k + first * K, t, i, heads * K, T, K)
    rhs = dot(scores * weights, key, rhs * from_start[:, None], 2, PARTS, tl.bfloat16)

    solution, residual, size, used = _solve_chunk(
        rhs, key.to(tl.float32), weights, from_start, H_parts, H_scale, penalty, tolerance, max_steps,
        K, BLOCK_K, INITIAL, WIDE,
    )  # fmt: skip
    forward = load_parts(x + first * K, part, t, i, heads * K, T, K) * size[:, None]
    gain = tl.sum(forward * (penalty[None, :] * solution + residual), 1)
    tl.store(row + first + t * heads, gain, mask=t < T)
    tl.store(d_regularizer + (head * N + c) * K + i, -tl.sum(forward * solution, 0), mask=i < K)
    high, low = split(solution * size[:, None], tl.bfloat16)
    store_tile(e + first * K, high, t, i, heads * K, T, K)
    store_tile(e + part + first * K, low, t, i, heads * K, T, K)
