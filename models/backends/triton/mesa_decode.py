"""One token of the Mesa layer (MesaNet, arXiv 2506.05233, eq. 4-9) with the state updated in place, in Triton.

A program has one head of one sequence. It reads and writes H and G once: what a token costs is their bytes. H stays in
registers while conjugate gradients solve with it, in float32 throughout.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.backends.triton.launch import on_its_device
from models.backends.triton.mesa import refuse, refuse_dtypes

TALL, WIDE = tl.constexpr(8), tl.constexpr(16)
"""Rows and columns of the tile that a warp reads at once: 16 bytes a thread."""

ELEMENTS_PER_WARP = 2048
"""Numbers of H, or of G where that is larger: 64 registers a thread. With 128 in all, two programs share a multiprocessor."""


def mesa_decode_(
    *,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    regularizer: Tensor,
    G: Tensor,
    H: Tensor,
    tolerance: float,
    max_steps: int,
    initial: str,
) -> Tensor:
    """o [B, 1, H, V] in float32; the state after the token is written into G [B, H, V, K] and H [B, H, K, K].

    All as in `mesa.mesa_chunked`, with T = 1, but computed in float32, whatever the dtypes. G and H are float32 and contiguous.
    No gradient goes through it, and nothing waits for the device: it can be captured in a CUDA graph.
    Raises ValueError for what `refuse` and `refuse_dtypes` name, for more tokens than one, and for another G or H.
    """
    refuse_dtypes({"q": q, "k": k, "v": v, "log_decay": log_decay, "beta": beta, "regularizer": regularizer})
    refuse(k, v, regularizer, max_steps, initial)
    if k.shape[1] != 1:
        raise ValueError(f"{k.shape[1]} tokens are given, permitted is one")
    for name, S in (("G", G), ("H", H)):
        if S.dtype != torch.float32 or not S.is_contiguous():
            raise ValueError(f"{name} is {S.dtype} with strides {S.stride()}, permitted is a contiguous float32 state")
    return _decode(q, k, v, log_decay, beta, regularizer, G, H, tolerance, max_steps, initial)


@torch.library.custom_op("linear_rnn_suite::mesa_decode", mutates_args=("G", "H"))
@on_its_device
def _decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    regularizer: Tensor,
    G: Tensor,
    H: Tensor,
    tolerance: float,
    max_steps: int,
    initial: str,
) -> Tensor:
    batch_size, num_heads, value_dim, key_dim = G.shape
    rows, o = [_dense_token(x) for x in (q, k, v)], _empty_readout(G)
    block_k, block_v = (max(WIDE.value, triton.next_power_of_2(size)) for size in (key_dim, value_dim))
    decode_kernel[(batch_size * num_heads,)](
        *rows, log_decay.contiguous(), beta.contiguous(), regularizer.contiguous(), G, H, o, *(x.stride(0) for x in rows),
        num_heads, tolerance, max_steps, K=key_dim, V=value_dim, BLOCK_K=block_k, BLOCK_V=block_v, INITIAL=initial,
        num_warps=max(1, block_k * max(block_k, block_v) // ELEMENTS_PER_WARP), maxnreg=128,
    )  # fmt: skip
    return o


@_decode.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    regularizer: Tensor,
    G: Tensor,
    H: Tensor,
    tolerance: float,
    max_steps: int,
    initial: str,
) -> Tensor:
    return _empty_readout(G)


def _empty_readout(G: Tensor) -> Tensor:
    batch_size, num_heads, value_dim, _ = G.shape
    return G.new_empty(batch_size, 1, num_heads, value_dim)


def _dense_token(x: Tensor) -> Tensor:
    """x [B, 1, H, D] with a token's numbers side by side, whatever lies between two sequences."""
    return x if x.stride()[2:] == (x.shape[-1], 1) else x.contiguous()


@triton.jit(do_not_specialize=("heads", "max_steps"))
def decode_kernel(
    q, k, v, log_decay, beta, regularizer, G, H, o, q_stride, k_stride, v_stride, heads, tolerance, max_steps,
    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, INITIAL: tl.constexpr,
):  # fmt: skip
    """G and H after the token, and o = G x with (H + Lambda) x = q.

    H counts as symmetric. A matrix is [rows / TALL, columns / WIDE, TALL, WIDE], which Triton lays out so that a warp has columns
    of its own and all rows of these: a product then sums over rows within a warp. Sums over warps go through shared memory in
    an order in which all threads of a warp meet in one bank, so only single numbers take that way. A vector is one over
    columns, [columns / WIDE, WIDE].
    """
    head = tl.program_id(0).to(tl.int64)
    batch, h = head // heads, head % heads
    i = tl.arange(0, BLOCK_K // TALL)[:, None] * TALL + tl.arange(0, TALL)[None, :]
    j = tl.arange(0, BLOCK_K // WIDE)[:, None] * WIDE + tl.arange(0, WIDE)[None, :]
    q += batch * q_stride + h * K
    k += batch * k_stride + h * K
    v += batch * v_stride + h * V
    H += head * K * K
    G += head * V * K
    decay = tl.exp(tl.load(log_decay + head).to(tl.float32))
    strength = tl.load(beta + head).to(tl.float32)
    key = tl.load(k + j, mask=j < K, other=0.0).to(tl.float32)
    row = tl.load(k + i, mask=i < K, other=0.0).to(tl.float32)
    square = _down(i < K) & _across(j < K)
    places = _down(i) * K + _across(j)
    memory = tl.load(H + places, mask=square, other=0.0) * decay + strength * (_down(row) * _across(key))
    tl.store(H + places, memory, mask=square)

    penalty = tl.load(regularizer + h * K + j, mask=j < K, other=1.0).to(tl.float32)
    b = tl.load(q + j, mask=j < K, other=0.0).to(tl.float32)
    largest = tl.max(tl.max(tl.abs(b), 1), 0)
    size = tl.where(largest > 0.0, largest, 1.0)
    b /= size
    if INITIAL == "zero":
        x = tl.zeros_like(b)
    elif INITIAL == "query":
        x = b
    else:
        x = b / (_over_rows(tl.where(_down(i) == _across(j), memory, 0.0)) + penalty)
    # Below 1e-7 of the right-hand side, float32 has nothing left to solve.
    goal = tl.maximum(tolerance * tolerance, 1e-14) * _dot(b, b)
    step = 0
    # Twice, as the residual of the recursion drifts from the true one, from which the second goes on.
    for _ in range(2):
        r = b - _product(memory, penalty, x)
        p = r
        rr = _dot(r, r)
        is_open = rr > goal
        while is_open & (step < max_steps):
            w = _product(memory, penalty, p)
            pw = _dot(p, w)
            is_open = pw > 0.0
            alpha = tl.where(is_open, rr / tl.where(is_open, pw, 1.0), 0.0)
            x += alpha * p
            r -= alpha * w
            rr_before = rr
            rr = _dot(r, r)
            p = r + (rr / rr_before) * p
            is_open = is_open & (rr > goal)
            step += 1
    x *= size

    # Only now, in the registers that H has left.
    i = tl.arange(0, BLOCK_V // TALL)[:, None] * TALL + tl.arange(0, TALL)[None, :]
    value = strength * tl.load(v + i, mask=i < V, other=0.0).to(tl.float32)
    inside = _down(i < V) & _across(j < K)
    places = _down(i) * K + _across(j)
    memory = tl.load(G + places, mask=inside, other=0.0) * decay + _down(value) * _across(key)
    tl.store(G + places, memory, mask=inside)
    tl.store(o + head * V + i, tl.sum(tl.sum(memory * _across(x), 3), 1), mask=i < V)


@triton.jit
def _down(x):
    """A vector over rows, for a matrix."""
    return x[:, None, :, None]


@triton.jit
def _across(x):
    """A vector over columns, for a matrix."""
    return x[None, :, None, :]


@triton.jit
def _over_rows(matrix):
    return tl.sum(tl.sum(matrix, 0), 1)


@triton.jit
def _dot(x, y):
    return tl.sum(tl.sum(x * y, 1), 0)


@triton.jit
def _product(memory, penalty, x):
    """(H + Lambda) x."""
    rows = tl.reshape(x, [memory.shape[0], memory.shape[2]])
    return _over_rows(memory * _down(rows)) + penalty * x
