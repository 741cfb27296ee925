"""What the Mesa layer's Triton kernels share: layouts, tiles of memory, products in 16-bit parts, decays of tokens.

A program has one chunk of C tokens of one head, or one tile of a state over chunks in a row; `mesa_launches.py` has the order
in which kernels run.

Layouts, all contiguous: tokens [B, T, heads, D]; gates as `mesa_records.Gates` has them; the state at an end of the sequence
[B, heads, rows, K], with V rows for G and K for H; x and e in bfloat16 parts that add up to them, `part` numbers apart.
`head` counts the heads of all sequences. A launch has a piece of them, those behind the first `skipped`, and what only the
piece has is laid out by places, the first of which is its first head's: states before every chunk [places, N, rows, K],
right-hand sides [places, N, C, K].

`first` is the row of D numbers, among B T heads of them, that is the first token of a program's chunk, or of its sequence where
it walks along time. `kept` is what is left at a token of the state before its chunk.

Matrix products run on 16-bit tensor cores with float32 sums. A float32 factor is split into a high and a low 16-bit
part wherever the exact product nearly vanishes (a key against the solution, which is large across the key and small
along it): there the rounding of one part alone would be the whole result.
"""

import triton
import triton.language as tl

# One compilation serves every length, batch and number of heads. `part` is none of these: where it is divisible by 16, parts
# are read 16 bytes at once.
SIZES = ("T", "N", "heads", "skipped", "span", "ends", "max_steps")

# exp(-80) is nothing beside anything; a sum of logarithms that held -inf or -1e30 would lose all the others
FORGETS = tl.constexpr(-80.0)

# a number above it has a reciprocal in float32
SMALLEST = tl.constexpr(1e-36)


@triton.jit
def dot(a, b, acc, A_PARTS: tl.constexpr, B_PARTS: tl.constexpr, LOW: tl.constexpr):
    """acc + a b, with a in one or two parts of type LOW and b in up to three."""
    a_high = a.to(LOW)
    b_high = b.to(LOW)
    acc = tl.dot(a_high, b_high, acc)
    if A_PARTS >= 2:
        acc = tl.dot((a.to(tl.float32) - a_high.to(tl.float32)).to(LOW), b_high, acc)
    if B_PARTS >= 2:
        b_rest = b.to(tl.float32) - b_high.to(tl.float32)
        b_middle = b_rest.to(LOW)
        acc = tl.dot(a_high, b_middle, acc)
        if A_PARTS >= 2 and B_PARTS >= 3:
            acc = tl.dot((a.to(tl.float32) - a_high.to(tl.float32)).to(LOW), b_middle, acc)
        if B_PARTS >= 3:
            acc = tl.dot(a_high, (b_rest - b_middle.to(tl.float32)).to(LOW), acc)
    return acc


@triton.jit
def inverse_power_of_two(x):
    """2^-floor(log2 x), which brings x to [1, 2) exactly: from 2^-123 to below 2^124, beyond which the factor stays."""
    exponent = (x.to(tl.int32, bitcast=True) >> 23) & 0xFF
    exponent = tl.minimum(tl.maximum(exponent, 4), 250)
    return ((254 - exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit
def load_tile(base, rows, columns, row_stride, num_rows, num_columns):
    """base[rows, columns], zero outside."""
    inside = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
    return tl.load(base + (rows[:, None] * row_stride + columns[None, :]), mask=inside, other=0.0)


@triton.jit
def store_tile(base, x, rows, columns, row_stride, num_rows, num_columns):
    inside = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
    offsets = rows[:, None] * row_stride + columns[None, :]
    tl.store(base + offsets, x.to(base.dtype.element_ty), mask=inside)


@triton.jit
def load_parts(base, part, rows, columns, row_stride, num_rows, num_columns):
    """A tile in two bfloat16 parts, `part` apart, in float32."""
    high = load_tile(base, rows, columns, row_stride, num_rows, num_columns).to(tl.float32)
    return high + load_tile(base + part, rows, columns, row_stride, num_rows, num_columns).to(tl.float32)


@triton.jit
def load_gates(base, t, T, heads):
    """A gate of each token of a chunk, zero after the last token."""
    return tl.load(base + t * heads, mask=t < T, other=0.0).to(tl.float32)


@triton.jit
def _summed(log):
    """(log, resets, total_log, total_resets): summed over the chunk up to each token, and over all of it."""
    forgets = log < FORGETS
    finite = tl.where(forgets, 0.0, log)
    resets = forgets.to(tl.int32)
    return tl.cumsum(finite, 0), tl.cumsum(resets, 0), tl.sum(finite, 0), tl.sum(resets, 0)


@triton.jit
def decay_between(later, later_resets, earlier, earlier_resets, also):
    """exp(later - earlier), zero across a reset and where not `also`."""
    joined = (later_resets == earlier_resets) & also
    return tl.exp(tl.where(joined, later - earlier, float("-inf")))


@triton.jit
def split(x, LOW: tl.constexpr):
    """x in two parts of type LOW, its rounding and what that leaves."""
    high = x.to(LOW)
    return high, (x - high.to(tl.float32)).to(LOW)


@triton.jit
def chunk_weights(log, resets, strength, C: tl.constexpr):
    """zeta_ts beta_s of a chunk, from the gates that `gates_kernel` leaves of it."""
    t, s = tl.arange(0, C), tl.arange(0, C)
    between = decay_between(
        tl.load(log + t)[:, None], tl.load(resets + t)[:, None], tl.load(log + s)[None, :], tl.load(resets + s)[None, :],
        t[:, None] >= s[None, :],
    )  # fmt: skip
    return between * tl.load(strength + s)[None, :]


@triton.jit(do_not_specialize=SIZES)
def gates_kernel(log_decay, beta, log, resets, from_start, to_end, strength, decay, mass, T, heads, C: tl.constexpr):
    """`mesa_records.Gates` of one chunk, which every other kernel would else have to sum."""
    c, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    first = (head // heads * T + c * C) * heads + head % heads
    t = tl.arange(0, C)
    left = T - c.to(tl.int32) * C
    logs, counts, total, total_count = _summed(load_gates(log_decay + first, t, left, heads))
    beta_s = load_gates(beta + first, t, left, heads)
    later = decay_between(total, total_count, logs, counts, t < left)
    chunk = head * tl.num_programs(0) + c
    tokens = chunk * C + t
    tl.store(log + tokens, logs)
    tl.store(resets + tokens, counts)
    tl.store(from_start + tokens, decay_between(logs, counts, 0.0, 0, t < left))
    tl.store(to_end + tokens, later)
    tl.store(strength + tokens, beta_s)
    tl.store(decay + chunk, decay_between(total, total_count, 0.0, 0, True))
    tl.store(mass + chunk, tl.sum(later * beta_s, 0))
