"""The Mesa layer's solves on a Hopper GPU, for chunks of 64 tokens and keys of 64 or 128 numbers in bfloat16.

They are `mesa_kernels.solve_kernel` in Gluon, Triton's language of layouts, for what Triton does not offer: x, to which every
step adds and which none reads, lies in shared memory, and directions are carried two to a register. Both solves of a training
step take half the time so: what Triton's kernel has no registers for goes to memory, and does not fit the first cache.

Arithmetic differs in three places. Lambda is read in float32 whenever it is asked for, where Triton's kernel keeps it in
float16, at most 32,768. A guess by the diagonal reads only the high part of that of H, which moves the guess by up to 5e-4.
And a chunk is solved without the low half of H where that is too small to be seen: a third of a step's products for keys of 128
numbers, a quarter for 64.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy, fence_async_shared, warpgroup_mma, warpgroup_mma_wait

from models.backends.triton.mesa_tiles import SIZES, SMALLEST

UNSEEN = gl.constexpr(2.0**-8)
"""Without its low half E, the states before a chunk leave a solution off by (H + Lambda)^-1 E x, at most |E| / min Lambda of |x|.
E is left out where that is below half a unit in the last place of bfloat16. |E| is the root of the sum of E's squares, which for
random numbers is several times what E does to a vector. A residual is then counted without E x."""
FINE = gl.constexpr(0.9e-4)
"""A tolerance below it asks for more than bfloat16 holds, and keeps E."""


@gluon.jit
def _inverse(x):
    """1 / x, off by a unit in the last place at most, for x from 1e-37 to 1e37."""
    return gl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def _pack(x):
    """[R, N] rounded to float16, two columns in one int32 [R, N / 2]: a loop carries a float16 in a register of its own."""
    even, odd = gl.split(gl.reshape(x, [x.shape[0], x.shape[1] // 2, 2]))
    return gl.inline_asm_elementwise("cvt.rn.f16x2.f32 $0, $2, $1;", "=r,f,f", [even, odd], dtype=gl.int32, is_pure=True, pack=1)


@gluon.jit
def _halves(packed, layout: gl.constexpr):
    """What `_pack` was given, in float16 [R, N]."""
    even, odd = gl.inline_asm_elementwise(
        "mov.b32 {$0, $1}, $2;", "=h,=h,r", [packed], dtype=(gl.float16, gl.float16), is_pure=True, pack=1
    )
    return gl.convert_layout(gl.reshape(gl.join(even, odd), [packed.shape[0], packed.shape[1] * 2]), layout, assert_trivial=True)


@gluon.jit
def _by_thread(x):
    """[64, N] of a product, so that rows of shared memory hold four neighbours of every thread, 16 bytes, thread by thread."""
    N: gl.constexpr = x.shape[1]
    tiles = gl.reshape(x, [4, 2, 8, N // 8, 4, 2])
    return gl.reshape(gl.permute(tiles, [3, 0, 2, 4, 1, 5]), [N // 8, 512])


@gluon.jit
def _by_row(x, layout: gl.constexpr):
    """What `_by_thread` was made of."""
    N: gl.constexpr = x.shape[0] * 8
    tiles = gl.permute(gl.reshape(x, [N // 8, 4, 8, 4, 2, 2]), [1, 4, 2, 0, 3, 5])
    return gl.convert_layout(gl.reshape(tiles, [64, N]), layout, assert_trivial=True)


@gluon.jit
def _weights(log, resets, strength, C: gl.constexpr, layout: gl.constexpr):
    """zeta_ts beta_s of a chunk, packed."""
    t, s = gl.arange(0, C, layout=gl.SliceLayout(1, layout)), gl.arange(0, C, layout=gl.SliceLayout(0, layout))
    joined = (gl.load(resets + t)[:, None] == gl.load(resets + s)[None, :]) & (t[:, None] >= s[None, :])
    between = gl.exp(gl.where(joined, gl.load(log + t)[:, None] - gl.load(log + s)[None, :], float("-inf")))
    return _pack(between * gl.load(strength + s)[None, :])


@gluon.jit
def _is_seen(squares, kept, penalties, COUNT: gl.constexpr):
    """Whether the low half of H, of which these are COUNT sums of squares, may move a solution by more than UNSEEN."""
    flat: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    size = gl.sqrt(gl.sum(gl.load(squares + gl.arange(0, COUNT, layout=flat)), 0))
    return size * gl.max(kept, 0) > UNSEEN * gl.min(gl.load(penalties), 0)


@gluon.jit(do_not_specialize=SIZES)
def solve_kernel(
    lows, rhs, k, log, resets, strength, from_start, regularizer, H_states, H_scales, x, steps, forward_x, d_regularizer, growth,
    tolerance, max_steps, T, N, heads, skipped, part,
    K: gl.constexpr, C: gl.constexpr, INITIAL: gl.constexpr, BACKWARD: gl.constexpr,
):  # fmt: skip
    """`mesa_kernels.solve_kernel` where it is not WIDE. lows: `mesa_records.States.low`."""
    along_rows: gl.constexpr = gl.BlockedLayout([1, 8], [256 // K, K // 8], [4, 1], [1, 0])
    wide: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, K, 16])
    narrow: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, C, 16])
    factor: gl.constexpr = gl.DotOperandLayout(0, wide, 2)
    narrow_factor: gl.constexpr = gl.DotOperandLayout(0, narrow, 2)
    of_rows: gl.constexpr = gl.SliceLayout(1, wide)
    of_columns: gl.constexpr = gl.SliceLayout(0, wide)
    halves: gl.constexpr = gl.NVMMASharedLayout(128, 16)
    c, place = gl.program_id(0).to(gl.int64), gl.program_id(1).to(gl.int64)
    head = skipped + place
    h = head % heads
    first = (head // heads * T + c * C) * heads + h
    # counted from this chunk's start, as t is; offsets within a chunk fit 32 bits
    T -= c.to(gl.int32) * C
    state = place * N + c
    H_parts = H_states + state * 2 * K * K

    t = gl.arange(0, C, layout=gl.SliceLayout(1, along_rows))
    i = gl.arange(0, K, layout=gl.SliceLayout(0, along_rows))
    at = t[:, None] * (heads * K) + i[None, :]
    inside = (t < T)[:, None]
    H = gl.allocate_shared_memory(gl.float16, [1, K, K], halves)
    H_low = gl.allocate_shared_memory(gl.float16, [1, K, K], halves)
    rows = gl.arange(0, K, layout=gl.SliceLayout(1, along_rows))
    H_at = rows[:, None] * K + i[None, :]
    async_copy.async_copy_global_to_shared(H.index(0), H_parts + H_at)
    key = gl.load(k + first * K + at, mask=inside, other=0.0).to(gl.float32)
    if BACKWARD:
        b = gl.load(rhs + state * C * K + t[:, None] * K + i[None, :], mask=inside, other=0.0)
        b = gl.convert_layout(b, wide)
    else:
        b = gl.convert_layout(gl.load(rhs + first * K + at, mask=inside, other=0.0), wide).to(gl.float32)
    keys = gl.allocate_shared_memory(gl.float16, [C, K], halves, key.to(gl.float16))
    chunk = (head * N + c) * C
    weights = _weights(log + chunk, resets + chunk, strength + chunk, C, narrow)
    tokens = gl.arange(0, C, layout=of_rows)
    # H is stored times a scale
    kept = gl.load(from_start + chunk + tokens) / gl.load(H_scales + state)
    columns = gl.arange(0, K, layout=of_columns)
    penalties = regularizer + h * K + columns
    has_low = _is_seen(lows + state * (K * K // 64), kept, penalties, K * K // 64) | (tolerance < FINE)
    # Else it is not read, either.
    if has_low:
        async_copy.async_copy_global_to_shared(H_low.index(0), H_parts + K * K + H_at)
    async_copy.commit_group()

    largest = gl.max(gl.abs(b), 1)
    # the reciprocal of a smaller number is no float32: what decayed so far is nothing
    r = b * gl.where(largest > SMALLEST, 1.0 / largest, 0.0)[:, None]
    norm = gl.sqrt(gl.sum(r * r, 1))
    size = largest * norm
    r *= gl.where(norm > 0, 1.0 / norm, 0.0)[:, None]
    # below 1e-7 of the right-hand side, float32 has nothing left to solve
    goal = gl.maximum(tolerance * tolerance, 1e-14)
    # the first guess is a step along itself of a given length, which is not counted
    length = gl.zeros([C], gl.float32, of_rows)
    guess = r
    if INITIAL != "zero":
        if INITIAL == "diagonal":
            squares = gl.allocate_shared_memory(gl.float16, [C, K], halves, (key * key).to(gl.float16))
            fence_async_shared()
            divisor = gl.zeros([C, K], gl.float32, wide)
            divisor = warpgroup_mma(_halves(weights, factor), squares, divisor, use_acc=False)
            diagonal = gl.load(H_parts + columns * (K + 1)).to(gl.float32)
            penalty = gl.load(penalties).to(gl.float32)
            divisor += kept[:, None] * diagonal[None, :] + penalty[None, :]
            guess = r * _inverse(divisor)
        length = gl.sqrt(gl.sum(guess * guess, 1))
        guess *= gl.where(length > 0, 1.0 / length, 0.0)[:, None]
    step = 0 if INITIAL == "zero" else -1
    p = _pack(guess)
    nothing = _by_thread(gl.zeros([C, K], gl.float32, wide))
    of_threads: gl.constexpr = nothing.type.layout
    solution = gl.allocate_shared_memory(gl.float32, [K // 8, 512], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]), nothing)
    rr = gl.sum(r * r, 1)
    used = gl.zeros([C], gl.int32, of_rows)
    async_copy.wait_group(0)
    fence_async_shared()
    gl.barrier()
    open_tokens = gl.sum((norm > 0).to(gl.int32), 0)
    while (step < max_steps) & (open_tokens > 0):
        only = 0
        if K == 128:
            # 0 here, too, which the compiler does not know. What it knows to be the same in every step, such as where H lies for
            # each of a product's parts, it works out before the steps, and for so many numbers there are no registers.
            only = (open_tokens > C).to(gl.int32)
        scores = gl.zeros([C, C], gl.float32, narrow)
        scores = warpgroup_mma(_halves(p, narrow_factor), keys.permute((1, 0)), scores, use_acc=False, is_async=True)
        w = gl.zeros([C, K], gl.float32, wide)
        w = warpgroup_mma(_halves(p, factor), H.index(only), w, use_acc=False, is_async=True)
        if has_low:
            w = warpgroup_mma(_halves(p, factor), H_low.index(only), w, is_async=True)
        scores = warpgroup_mma_wait(1, [scores])
        shares = gl.convert_layout((scores * _halves(weights, narrow).to(gl.float32)).to(gl.float16), factor)
        w = warpgroup_mma_wait(0, [w])
        w = warpgroup_mma(shares, keys, w * kept[:, None])
        penalty = gl.load(penalties).to(gl.float32)
        direction = _halves(p, wide).to(gl.float32)
        w += direction * penalty[None, :]
        rp, pw = gl.sum(r * direction, 1), gl.sum(direction * w, 1)
        is_open = (rr > goal) & (pw > 0)
        inverse_pw = gl.where(is_open, 1.0 / pw, 0.0)
        alpha = rp * inverse_pw
        if INITIAL != "zero":
            alpha = gl.where(step < 0, length, alpha)
        solution.store(solution.load(of_threads) + _by_thread(alpha[:, None] * direction))
        r -= alpha[:, None] * w
        next_rr, rw = gl.sum(r * r, 1), gl.sum(r * w, 1)
        # what is left after such a fall is rounding, unrelated to the directions so far: start again from it
        turn = gl.where((next_rr < 1e-4 * rr) | (step < 0), 0.0, -rw * inverse_pw)
        shrink = gl.rsqrt(gl.maximum(next_rr + turn * turn, 1e-30))
        p = _pack((r + turn[:, None] * direction) * shrink[:, None])
        rr = next_rr
        used += (is_open & (step >= 0)).to(gl.int32)
        open_tokens = gl.sum((is_open & (next_rr > goal)).to(gl.int32), 0)
        step += 1

    found = _by_row(solution.load(of_threads), wide)
    if BACKWARD:
        found_at = tokens[:, None] * (heads * K) + columns[None, :]
        within = (tokens < T)[:, None]
        forward_solution = gl.load(forward_x + first * K + found_at, mask=within, other=0.0).to(gl.float32)
        forward_solution += gl.load(forward_x + part + first * K + found_at, mask=within, other=0.0).to(gl.float32)
        forward_solution *= size[:, None]
        penalty = gl.load(penalties).to(gl.float32)
        grown = gl.sum(forward_solution * (penalty[None, :] * found + r), 1)
        gl.store(growth + first + tokens * heads, grown, mask=tokens < T)
        gl.store(d_regularizer + (head * N + c) * K + columns, -gl.sum(forward_solution * found, 0))
    else:
        gl.store(steps + first + tokens * heads, used, mask=tokens < T)
    found *= size[:, None]
    high = found.to(gl.bfloat16)
    low = (found - high.to(gl.float32)).to(gl.bfloat16)
    gl.store(x + first * K + at, gl.convert_layout(high, along_rows), mask=inside)
    gl.store(x + part + first * K + at, gl.convert_layout(low, along_rows), mask=inside)
