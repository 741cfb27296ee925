"""The Mesa layer's solves in Triton, a chunk of C tokens at a time. Layouts and names are those of `mesa_tiles.py`.

`mesa_hopper.py` has the solve again for a Hopper GPU and says where it differs. What is changed in one is changed in both.
"""

import triton
import triton.language as tl

from models.backends.triton.mesa_tiles import SIZES, SMALLEST, chunk_weights, dot, load_parts, load_tile, split, store_tile


@triton.jit
def _penalty(regularizer, i, K: tl.constexpr, WIDE: tl.constexpr):
    """Lambda as the solve computes with it: rounded to float16 unless WIDE, at most 32,768."""
    penalty = tl.load(regularizer + i, mask=i < K, other=1.0).to(tl.float32)
    return penalty if WIDE else tl.minimum(penalty, 32768.0).to(tl.float16).to(tl.float32)


@triton.jit
def _solve(
    rhs, divisor, k, k_low, H, H_low, kept, weights, regularizer, tolerance, max_steps,
    STARTS_AT_ZERO: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """(x, r, size, steps) of all tokens: (H_t + Lambda) x_t = rhs_t, and r what x leaves of rhs, both in units of size.

    Conjugate gradients whose directions are rounded to float16 *before* the product, so that the product of the very
    direction that is used is accurate, and with it the residual; beta comes from conjugacy to the rounded direction. A
    token stops at |r| <= tolerance |rhs|, with 1e-7 for a smaller tolerance, and steps are those until then. The loop ends
    when all tokens of the chunk have stopped, or after max_steps.

    The first guess, rhs / divisor unless STARTS_AT_ZERO, is a step along itself of a given length, number -1, which is not
    counted, and is made even where max_steps is 0. An rhs without an entry above SMALLEST counts as zero, and so does its x.

    Where the precision goes: H is used in two parts, as its rounding would be read across the keys. To round what single
    tokens weigh (`weights`, `scores`, `regularizer` in float16 unless WIDE) only moves eigenvalues by that little, which no
    condition number magnifies.
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
    rr = tl.sum(r * r, 1)
    open_tokens = tl.sum((norm > 0).to(tl.int32), 0)
    while (step < max_steps) & (open_tokens > 0):
        # A factor that a loop carries is put into shared memory, behind two barriers; one made of what it carries is not.
        p = bits.to(tl.float16, bitcast=True)
        scores = tl.dot(p, tl.trans(k))
        if WIDE:
            scores = tl.dot(p, tl.trans(k_low), scores)
        w = tl.dot(p, H)
        w = tl.dot(p, H_low, w)
        w *= kept[:, None]
        scores *= weights.to(tl.float32)
        scores_high = scores.to(tl.float16)
        w = tl.dot(scores_high, k, w)
        if WIDE:
            w = tl.dot((scores - scores_high.to(tl.float32)).to(tl.float16), k, w)
            w = tl.dot(scores_high, k_low, w)
        direction = p.to(tl.float32)
        w += direction * regularizer[None, :].to(tl.float32)
        rp, pw = tl.sum(r * direction, 1), tl.sum(direction * w, 1)
        is_open = (rr > goal) & (pw > 0)
        inverse_pw = tl.where(is_open, 1.0 / pw, 0.0)
        alpha = rp * inverse_pw
        if not STARTS_AT_ZERO:
            alpha = tl.where(step < 0, length, alpha)
        x += alpha[:, None] * direction
        r -= alpha[:, None] * w
        next_rr, rw = tl.sum(r * r, 1), tl.sum(r * w, 1)
        # what is left after such a fall is rounding, unrelated to the directions so far: start again from it
        beta = tl.where((next_rr < 1e-4 * rr) | (step < 0), 0.0, -rw * inverse_pw)
        shrink = tl.rsqrt(tl.maximum(next_rr + beta * beta, 1e-30))
        bits = ((r + beta[:, None] * direction) * shrink[:, None]).to(tl.float16).to(tl.int16, bitcast=True)
        rr = next_rr
        steps += (is_open & (step >= 0)).to(tl.int32)
        open_tokens = tl.sum((is_open & (next_rr > goal)).to(tl.int32), 0)
        step += 1
    return x, r, size, steps


@triton.jit(do_not_specialize=SIZES)
def solve_kernel(
    rhs, k, log, resets, strength, from_start, regularizer, H_states, H_scales, x, steps, forward_x, d_regularizer, growth,
    tolerance, max_steps, T, N, heads, skipped, part,
    K: tl.constexpr, C: tl.constexpr, INITIAL: tl.constexpr, BACKWARD: tl.constexpr, BLOCK_K: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """x_t = (H_t + Lambda)^-1 rhs_t of one chunk, in bfloat16 parts: three where WIDE, else two.

    Forward, rhs is q, laid out as tokens are, and `steps` is written.
    BACKWARD, rhs is G_t^T do_t as `right_side_kernel` leaves it, and what x is called here is e_t. With x_t of the forward pass
    in `forward_x`, written are `d_regularizer`, -sum_t e_t x_t of the chunk, and `growth`, the derivative of do_t.o_t by the
    logarithm of a factor of all that t sees: do.o - e.(H x). That is x.(Lambda e + r), with r what e leaves of its right-hand
    side, and no difference of large numbers.
    """
    c, place = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    head = skipped + place
    batch, h = head // heads, head % heads
    first = (batch * T + c * C) * heads + h
    t = tl.arange(0, C)
    # counted from this chunk's start, as t is; offsets within a chunk fit 32 bits
    T -= c.to(tl.int32) * C
    state = place * N + c
    i = tl.arange(0, BLOCK_K)
    penalty = _penalty(regularizer + h * K, i, K, WIDE)
    H_scale = tl.load(H_scales + state)
    H_parts = H_states + state * 2 * K * K
    H = load_tile(H_parts, i, i, K, K, K)
    H_low = load_tile(H_parts + K * K, i, i, K, K, K)
    key = load_tile(k + first * K, t, i, heads * K, T, K)
    chunk = (head * N + c) * C
    weights = chunk_weights(log + chunk, resets + chunk, strength + chunk, C)
    # H is stored times a scale
    kept = tl.load(from_start + chunk + t) / H_scale
    if BACKWARD:
        b = load_tile(rhs + state * C * K, t, i, K, T, K)
    else:
        b = load_tile(rhs + first * K, t, i, heads * K, T, K).to(tl.float32)
    divisor = 1.0
    if INITIAL == "diagonal":
        H_diagonal = tl.load(H_parts + i * (K + 1), mask=i < K, other=0.0).to(tl.float32)
        H_diagonal += tl.load(H_parts + K * K + i * (K + 1), mask=i < K, other=0.0).to(tl.float32)
        squares = key.to(tl.float32) * key.to(tl.float32)
        divisor = dot(weights, squares, tl.zeros([C, BLOCK_K], tl.float32), 1 + WIDE, 1 + WIDE, tl.float16)
        # the maximum changes nothing: it keeps Triton from adding inside the product, at 32 KB more of shared memory
        divisor = tl.maximum(divisor, 0.0) + kept[:, None] * H_diagonal[None, :] + penalty[None, :]
    key_high, key_low = split(key, tl.float16)
    solution, residual, size, used = _solve(
        b, divisor, key_high, key_low, H, H_low, kept, weights if WIDE else weights.to(tl.float16),
        penalty if WIDE else penalty.to(tl.float16), tolerance, max_steps, INITIAL == "zero", WIDE,
    )  # fmt: skip
    if BACKWARD:
        forward_solution = load_parts(forward_x + first * K, part, t, i, heads * K, T, K) * size[:, None]
        grown = tl.sum(forward_solution * (penalty[None, :] * solution + residual), 1)
        tl.store(growth + first + t * heads, grown, mask=t < T)
        tl.store(d_regularizer + (head * N + c) * K + i, -tl.sum(forward_solution * solution, 0), mask=i < K)
    else:
        tl.store(steps + first + t * heads, used, mask=t < T)
    solution *= size[:, None]
    high, low = split(solution, tl.bfloat16)
    store_tile(x + first * K, high, t, i, heads * K, T, K)
    store_tile(x + part + first * K, low, t, i, heads * K, T, K)
    if WIDE:
        rest = solution - high.to(tl.float32) - low.to(tl.float32)
        store_tile(x + 2 * part + first * K, rest, t, i, heads * K, T, K)
