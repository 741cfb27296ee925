# ruff: noqa: SIM102 - Triton cannot join a condition on constants to one on tensors
"""The Mesa layer's gradients in Triton, from the solutions of both passes (MesaNet App. D).

Layouts and names are those of `mesa_tiles.py`. Time is cut into segments as in `mesa_states.py` and walked through from its
end: every segment but the first leaves its sum [rows, K] and its decay [places, segments - 1], those of segment 1 at number 0.
"""

import triton
import triton.language as tl

from models.backends.triton.mesa_tiles import (
    FORGETS,
    SIZES,
    decay_between,
    dot,
    load_gates,
    load_parts,
    load_tile,
    split,
    store_tile,
)


@triton.jit
def _gradient_tile(block, V: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, SYMMETRIC: tl.constexpr):
    """(rows, columns, above) of a tile; SYMMETRIC has those on the diagonal, one or two, and then the one that is above it."""
    blocks_k: tl.constexpr = (K + BLOCK - 1) // BLOCK
    row_block, column_block = block // blocks_k, block % blocks_k
    if SYMMETRIC:
        row_block = tl.where(block < blocks_k, block, 0)
        column_block = tl.where(block < blocks_k, block, 1)
    return row_block * BLOCK + tl.arange(0, BLOCK), column_block * BLOCK + tl.arange(0, BLOCK), block >= blocks_k


@triton.jit
def _before_chunk(
    D, c, y, x, from_start, decays, rows, columns, above, T, heads, part,
    V: tl.constexpr, K: tl.constexpr, C: tl.constexpr, SYMMETRIC: tl.constexpr, PARTS: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """(D, decay): a tile of the gradient of the state before chunk c, from that after it, and a_c.

    SYMMETRIC has -(y x^T + x y^T) in a tile `above` the diagonal, and -y x^T alone in one on it, which `_whole` completes.
    """
    t = tl.arange(0, C)
    start, left = c * C * heads, T - c * C
    weight = tl.load(from_start + c * C + t)
    decay = tl.load(decays + c)
    D *= decay
    x_columns = load_tile(x + start * K, t, columns, heads * K, left, K)
    x_columns_low = load_tile(x + part + start * K, t, columns, heads * K, left, K)
    if SYMMETRIC:
        weighted = load_parts(y + start * V, part, t, rows, heads * V, left, V) * -weight[:, None]
        weighted_high, weighted_low = split(tl.trans(weighted), LOW)
        D = tl.dot(weighted_high, x_columns, D)
        D = tl.dot(weighted_low, x_columns, D)
        D = tl.dot(weighted_high, x_columns_low, D)
        if above:
            y_columns = load_tile(y + start * K, t, columns, heads * K, left, K)
            y_columns_low = load_tile(y + part + start * K, t, columns, heads * K, left, K)
            weighted = load_parts(x + start * V, part, t, rows, heads * V, left, V) * -weight[:, None]
            weighted_high, weighted_low = split(tl.trans(weighted), LOW)
            D = tl.dot(weighted_high, y_columns, D)
            D = tl.dot(weighted_low, y_columns, D)
            D = tl.dot(weighted_high, y_columns_low, D)
    else:
        weighted = load_tile(y + start * V, t, rows, heads * V, left, V).to(tl.float32) * weight[:, None]
        weighted_high, weighted_low = split(tl.trans(weighted), LOW)
        D = tl.dot(weighted_high, x_columns, D)
        D = tl.dot(weighted_high, x_columns_low, D)
        if PARTS == 2:
            D = tl.dot(weighted_low, x_columns, D)
    return D, decay


@triton.jit
def _whole(D, above, SYMMETRIC: tl.constexpr):
    """The gradient in a tile: D + D^T where it lies on the diagonal and SYMMETRIC, else D itself."""
    whole = D
    if SYMMETRIC:
        if above == 0:
            whole += tl.trans(D)
    return whole


@triton.jit(do_not_specialize=SIZES)
def segment_gradients_kernel(
    y, x, from_start, decays, sums, segment_decays, T, N, heads, skipped, span, part,
    V: tl.constexpr, K: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
    SYMMETRIC: tl.constexpr, PARTS: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """What segment `number` + 1 adds to the gradient of the state before it, and its decay. The first segment has no number."""
    block, place, number = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    head = skipped + place
    batch, h = head // heads, head % heads
    rows, columns, above = _gradient_tile(block, V, K, BLOCK, SYMMETRIC)
    first = batch * T * heads + h
    from_start += head * N * C
    decays += head * N
    at = place * tl.num_programs(2) + number
    D = tl.zeros([BLOCK, BLOCK], tl.float32)
    decay = 1.0
    start = (number + 1) * span
    end = tl.minimum(start + span, N)
    for n in range(start, end):
        D, chunk_decay = _before_chunk(
            D, end - 1 - (n - start), y + first * V, x + first * K, from_start, decays, rows, columns, above,
            T, heads, part, V, K, C, SYMMETRIC, PARTS, LOW,
        )  # fmt: skip
        decay *= chunk_decay
    store_tile(sums + at * V * K, D, rows, columns, K, V, K)
    if block == 0:
        tl.store(segment_decays + at, decay)


@triton.jit
def _store_gradient(gradients, D, rows, columns, above, V: tl.constexpr, K: tl.constexpr, SYMMETRIC: tl.constexpr):
    """D in float32; where SYMMETRIC in two bfloat16 parts, and also its mirror image where it is `above` the diagonal."""
    if SYMMETRIC:
        high, low = split(D, tl.bfloat16)
        store_tile(gradients, high, rows, columns, K, V, K)
        store_tile(gradients + V * K, low, rows, columns, K, V, K)
        if above:
            store_tile(gradients, tl.trans(high), columns, rows, K, V, K)
            store_tile(gradients + V * K, tl.trans(low), columns, rows, K, V, K)
    else:
        store_tile(gradients, D, rows, columns, K, V, K)


@triton.jit(do_not_specialize=SIZES)
def state_gradients_kernel(
    y, x, from_start, decays, d_final, states, scales, final, sums, segment_decays, gradients, d_initial, crossing,
    T, N, heads, skipped, span, ends, part,
    V: tl.constexpr, K: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
    HAS_FINAL: tl.constexpr, SYMMETRIC: tl.constexpr, PARTS: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """D_c = sum over tokens t after chunk c of zeta_tc y_t x_t^T, and zeta_Tc times `d_final`, back through a segment.

    It is the gradient of G with y = do. SYMMETRIC has -(y x^T + x y^T) in the place of y x^T: twice the gradient of H with
    y = e, as `d_final` and `d_initial` are. Its tiles on and above the diagonal are computed, and mirrored.

    `gradients` are the states' own memory: D_c takes the place of S_{c+1}, the state that follows chunk c, once nobody reads
    that any more, and the last D that of S_0, which nobody reads. D of H is there in two bfloat16 parts. `crossing` is, tile by
    tile, <D_c, S_{c+1}>, and half of it for H: what all pairs of a token up to the end of chunk c and one after it contribute.
    `d_initial` is the gradient before segment `ends`, if there is one.
    """
    block, place, segment = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    head = skipped + place
    batch, h = head // heads, head % heads
    rows, columns, above = _gradient_tile(block, V, K, BLOCK, SYMMETRIC)
    # A tile on the diagonal begins with half of d_final, which `_whole` doubles. In crossing, twice the gradient of H counts
    # by half, and a tile above the diagonal for its mirror image, too.
    share = 1.0
    if SYMMETRIC:
        share = tl.where(above, 1.0, 0.5)
    first = batch * T * heads + h
    from_start += head * N * C
    decays += head * N
    states += place * N * V * K * (2 if SYMMETRIC else 1)
    gradients += place * N * V * K * (2 if SYMMETRIC else 1)
    scales += place * N
    crossing += (block * tl.num_programs(1) + place) * N
    if HAS_FINAL:
        D = load_tile(d_final + head * V * K, rows, columns, K, V, K).to(tl.float32) * share
    else:
        D = tl.zeros([BLOCK, BLOCK], tl.float32)
    others = tl.num_programs(2) - 1
    if segment == others:
        whole = _whole(D, above, SYMMETRIC)
        tl.store(crossing + N - 1, tl.sum(whole * load_tile(final + head * V * K, rows, columns, K, V, K)) * share)
        _store_gradient(gradients, whole, rows, columns, above, V, K, SYMMETRIC)
    for after in range(0, others - segment):
        later = place * others + others - 1 - after
        D = D * tl.load(segment_decays + later) + load_tile(sums + later * V * K, rows, columns, K, V, K)
    start = segment * span
    end = tl.minimum(start + span, N)
    for n in range(start, end):
        c = end - 1 - (n - start)
        D, decay = _before_chunk(
            D, c, y + first * V, x + first * K, from_start, decays, rows, columns, above,
            T, heads, part, V, K, C, SYMMETRIC, PARTS, LOW,
        )  # fmt: skip
        # D is now that of the chunk before, which ends where this one starts
        if c > 0:
            whole = _whole(D, above, SYMMETRIC)
            if SYMMETRIC:
                S = load_tile(states + 2 * c * V * K, rows, columns, K, V, K).to(tl.float32)
                S += load_tile(states + (2 * c + 1) * V * K, rows, columns, K, V, K).to(tl.float32)
                tl.store(crossing + c - 1, tl.sum(whole * S) * share / tl.load(scales + c))
                target = gradients + 2 * c * V * K
            else:
                S = load_tile(states + c * V * K, rows, columns, K, V, K)
                tl.store(crossing + c - 1, tl.sum(whole * S))
                target = gradients + c * V * K
            # all of S is read before any of it is gone
            tl.debug_barrier()
            _store_gradient(target, whole, rows, columns, above, V, K, SYMMETRIC)
    if segment == ends:
        store_tile(d_initial + head * V * K, _whole(D, above, SYMMETRIC), rows, columns, K, V, K)
        if SYMMETRIC:
            if above:
                store_tile(d_initial + head * V * K, tl.trans(D), columns, rows, K, V, K)


@triton.jit(do_not_specialize=SIZES)
def input_gradients_kernel(
    k, v, log_decay, log, resets, to_end, strength, x, e, d_o, growth, crossing, G_gradients, H_gradients,
    d_k, d_v, d_log_decay, d_beta, T, N, heads, skipped, part,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK: tl.constexpr,
    CROSSINGS: tl.constexpr, PARTS: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """dk, dv, dbeta and dlog_decay of one chunk (MesaNet App. D), BLOCK of K and V at a time.

    In tiles [C, C] rows are the tokens t that the gradients are for, columns the tokens s >= t that read them: `along` is
    k_t.x_s, `error` is v_t.do_s - k_t.e_s. What is read after the chunk comes by the states' gradients, which lie where
    `state_gradients_kernel` says.
    """
    c, place = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    head = skipped + place
    batch, h = head // heads, head % heads
    first = (batch * T + c * C) * heads + h
    t = tl.arange(0, C)
    # counted from this chunk's start, as t is; offsets within a chunk fit 32 bits
    T -= c.to(tl.int32) * C
    i = tl.arange(0, BLOCK_K)
    key, value, y = k + first * K, v + first * V, d_o + first * V
    solution, adjoint = x + first * K, e + first * K
    after = place * N + (c + 1) % N
    G_gradients += after * V * K
    H_gradients += after * 2 * K * K

    chunk = (head * N + c) * C
    # few numbers, for which what follows would else wait
    later = tl.load(to_end + chunk + t)
    beta = tl.load(strength + chunk + t)
    grown = load_gates(growth + first, t, T, heads)
    forgets = load_gates(log_decay + first, t, T, heads) < FORGETS
    crossed = 0.0
    for block in range(0, CROSSINGS):
        crossed += tl.load(crossing + (block * tl.num_programs(1) + place) * N + c)

    along = tl.zeros([C, C], tl.float32)
    error = tl.zeros([C, C], tl.float32)
    into_key = tl.zeros([C, BLOCK_K], tl.float32)
    for block in range(0, K, BLOCK):
        j = block + tl.arange(0, BLOCK)
        k_block = load_tile(key, t, j, heads * K, T, K)
        x_high = tl.trans(load_tile(solution, t, j, heads * K, T, K))
        x_low = tl.trans(load_tile(solution + part, t, j, heads * K, T, K))
        e_high = tl.trans(load_tile(adjoint, t, j, heads * K, T, K))
        e_low = tl.trans(load_tile(adjoint + part, t, j, heads * K, T, K))
        H_high = load_tile(H_gradients, j, i, K, K, K)
        H_low = load_tile(H_gradients + K * K, j, i, K, K, K)
        k_high = k_block.to(LOW)
        along = tl.dot(k_high, x_high, along)
        along = tl.dot(k_high, x_low, along)
        error = tl.dot(k_high, e_high, error)
        error = tl.dot(k_high, e_low, error)
        into_key = tl.dot(k_high, H_high, into_key)
        into_key = tl.dot(k_high, H_low, into_key)
        if PARTS == 2:
            k_low = (k_block - k_high.to(tl.float32)).to(LOW)
            along = tl.dot(k_low, x_high, along)
            error = tl.dot(k_low, e_high, error)
            into_key = tl.dot(k_low, H_high, into_key)

    s = tl.arange(0, C)
    decay = decay_between(
        tl.load(log + chunk + s)[None, :], tl.load(resets + chunk + s)[None, :],
        tl.load(log + chunk + t)[:, None], tl.load(resets + chunk + t)[:, None], s[None, :] >= t[:, None],
    )  # fmt: skip
    key_tile = load_tile(key, t, i, heads * K, T, K)
    # so far by twice the gradient of H, as both factors of k k^T ask for; beta asks for it once
    into_beta = 0.5 * tl.sum(into_key * key_tile.to(tl.float32), 1)
    along *= decay
    along_low = along.to(LOW) if PARTS == 1 else along
    error = -error
    for block in range(0, V, BLOCK):
        j = block + tl.arange(0, BLOCK)
        v_block = load_tile(value, t, j, heads * V, T, V)
        y_block = load_tile(y, t, j, heads * V, T, V)
        G_high, G_low = split(load_tile(G_gradients, j, i, K, V, K), LOW)
        error = dot(v_block, tl.trans(y_block), error, PARTS, PARTS, LOW)
        into_key = dot(v_block, G_high, into_key, PARTS, 1, LOW)
        into_value = tl.zeros([C, BLOCK], tl.float32)
        into_value = dot(key_tile, tl.trans(G_high), into_value, PARTS, 1, LOW)
        into_value = dot(key_tile, tl.trans(G_low), into_value, 1, 1, LOW)
        if PARTS == 2:
            into_key = dot(v_block, G_low, into_key, 1, 1, LOW)
        into_beta += tl.sum(into_value * v_block.to(tl.float32), 1)
        into_value = dot(along_low, y_block, into_value * later[:, None], PARTS, PARTS, LOW)
        store_tile(d_v + first * V, into_value * beta[:, None], t, j, heads * V, T, V)
    into_beta = into_beta * later + tl.sum(along * error, 1)
    error *= decay
    into_key *= later[:, None]
    x_high = load_tile(solution, t, i, heads * K, T, K)
    e_high = load_tile(adjoint, t, i, heads * K, T, K)
    into_key = dot(error, x_high, into_key, PARTS, 1, LOW)
    into_key = -dot(along_low, e_high, -into_key, PARTS, 1, LOW)
    if PARTS == 2:
        into_key = dot(error, load_tile(solution + part, t, i, heads * K, T, K), into_key, 1, 1, LOW)
        into_key = -dot(along_low, load_tile(adjoint + part, t, i, heads * K, T, K), -into_key, 1, 1, LOW)
    store_tile(d_k + first * K, into_key * beta[:, None], t, i, heads * K, T, K)
    tl.store(d_beta + first + t * heads, into_beta, mask=t < T)

    # A decay acts on all pairs of a token before it and one from it on. That is what tokens from it on read, less what is read
    # of these, within the chunk; and all pairs across its end.
    gain = grown - beta * into_beta
    gain = tl.sum(gain, 0) - tl.cumsum(gain, 0) + gain + crossed
    tl.store(d_log_decay + first + t * heads, tl.where(forgets, 0.0, gain), mask=t < T)
