"""The gated diagonal recurrence of models/ops/rglru.py on a GPU, in Triton.

A program scans a block of channels of one sequence, a tile of time after the other, and holds the state in registers: it reads
and writes every number once, 12 bytes a channel and token forward and 20 backward in float32, and does little besides.

Where sequences and channels make too few programs for a GPU, time is cut into segments of one length. What each makes of a state
is found for all at once, and then all are scanned at once, each from the state that those before it leave: 20 bytes forward and
28 backward. Where a sequence is cut depends on its sizes alone.

    B batch, T time, W channels, S segments
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx

from models.backends.triton.launch import on_its_device

# One warp reads 128 channels in 16-byte words, all tokens of a channel in one thread: then a scan needs no word from another.
LAUNCH = {"BLOCK_T": 16, "BLOCK_W": 128, "STAGES": 3, "num_warps": 1}
SHORTEST, MOST = 256, 32
"""Tokens of a segment at least, and segments of a sequence at most."""
WORTH = 3
"""Segments from which a cut pays for what it reads twice."""
ENOUGH_FORWARD, ENOUGH_BACKWARD = 256, 512
"""Programs that a pass has after a cut at most. By the times of a layer of 8 programs one alone moves some 30 GB a second forward
and 10 backward on an H200, which copies 4.2 TB a second: 140 and 420 would occupy it."""


def scan(*, log_decay: Tensor, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """As models.ops.rglru.chunked, differentiable: every h [B, T, W] and the last one [B, W], in the dtype of the state.

    log_decay <= 0, -inf for a reset, and u: [B, T, W]; state: [B, W]; all float32, or all float64.
    """
    h = _scan(log_decay.contiguous(), u.contiguous(), state.contiguous())
    return h, h[:, -1]


@triton.jit
def _then(decay_0, h_0, decay_1, h_1):
    """Two stretches of time, each from a state of zero and with the product of its decays, as one."""
    return decay_0 * decay_1, decay_1 * h_0 + h_1


@triton.jit
def _scan_tile(decay, u, state, BLOCK_T: tl.constexpr):
    """h [BLOCK_T, BLOCK_W] of a tile behind a state [BLOCK_W], its last row, and the product of the tile's decays."""
    product, local = tl.associative_scan((decay, u), 0, _then)
    h = local + product * state[None, :]
    is_last = tl.arange(0, BLOCK_T)[:, None] == BLOCK_T - 1
    return h, tl.sum(tl.where(is_last, h, 0.0), axis=0), tl.sum(tl.where(is_last, product, 0.0), axis=0)


@triton.jit
def _enter(state, products_ptr, ends_ptr, b, w, T, W, length, IS_CUT: tl.constexpr):
    """This program's segment: the state [BLOCK_W] that enters it, from that which enters the first, and its steps' bounds."""
    if not IS_CUT:
        # as if there were no segments: what is worked out for them takes registers
        return state, 0, T
    for s in range(0, tl.program_id(2)):
        at = (b * (tl.num_programs(2) - 1) + s) * W + w
        product = tl.load(products_ptr + at, mask=w < W, other=0.0)
        state = product * state + tl.load(ends_ptr + at, mask=w < W, other=0.0)
    first = tl.program_id(2) * length
    return state, first, min(T, first + length)


@triton.jit
def _segments_kernel(
    log_decay_ptr, u_ptr, products_ptr, ends_ptr, T, W, length, REVERSE: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_W: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """What every segment but the last makes of a state: it multiplies it by a product and adds an end, both [B, S - 1, W].

    REVERSE: as in the backward pass u is dh, the first segment has the latest tokens, and a token's decay is the next one's.
    """
    w = tl.program_id(0) * BLOCK_W + tl.arange(0, BLOCK_W)
    b, s = tl.program_id(1).to(tl.int64), tl.program_id(2)
    end = tl.zeros([BLOCK_W], log_decay_ptr.dtype.element_ty)
    product = end + 1.0
    for begin in tl.range(0, length, BLOCK_T, num_stages=STAGES):
        step = s * length + begin + tl.arange(0, BLOCK_T)
        t = T - 1 - step if REVERSE else step
        # A segment but the last is whole tiles.
        inside = (w < W)[None, :]
        at = (b * T + t)[:, None] * W + w[None, :]
        if REVERSE:
            log_decay = tl.load(log_decay_ptr + at + W, mask=inside & (t < T - 1)[:, None], other=0.0)
        else:
            log_decay = tl.load(log_decay_ptr + at, mask=inside, other=0.0)
        _, end, in_tile = _scan_tile(tl.exp(log_decay), tl.load(u_ptr + at, mask=inside, other=0.0), end, BLOCK_T)
        product *= in_tile
    at = (b * tl.num_programs(2) + s) * W + w
    tl.store(products_ptr + at, product, mask=w < W)
    tl.store(ends_ptr + at, end, mask=w < W)


@triton.jit
def _forward_kernel(
    log_decay_ptr, u_ptr, state_ptr, products_ptr, ends_ptr, h_ptr, T, W, length,
    IS_CUT: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_W: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    w = tl.program_id(0) * BLOCK_W + tl.arange(0, BLOCK_W)
    b = tl.program_id(1).to(tl.int64)
    state = tl.load(state_ptr + b * W + w, mask=w < W, other=0.0)
    state, first, stop = _enter(state, products_ptr, ends_ptr, b, w, T, W, length, IS_CUT)
    for begin in tl.range(first, stop, BLOCK_T, num_stages=STAGES):
        t = begin + tl.arange(0, BLOCK_T)
        inside = (t < T)[:, None] & (w < W)[None, :]
        at = (b * T + t)[:, None] * W + w[None, :]
        decay = tl.exp(tl.load(log_decay_ptr + at, mask=inside, other=0.0))
        u = tl.load(u_ptr + at, mask=inside, other=0.0)
        h, state, _ = _scan_tile(decay, u, state, BLOCK_T)
        tl.store(h_ptr + at, h, mask=inside)


@triton.jit
def _backward_kernel(
    dh_ptr, log_decay_ptr, h_ptr, state_ptr, products_ptr, ends_ptr, into_log_decay_ptr, into_u_ptr, into_state_ptr, T, W, length,
    IS_CUT: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_W: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """g_t = dh_t + a_{t+1} g_{t+1}, the same scan from the last token to the first; du = g, dlog_decay_t = g_t a_t h_{t-1}."""
    w = tl.program_id(0) * BLOCK_W + tl.arange(0, BLOCK_W)
    b = tl.program_id(1).to(tl.int64)
    inside_w = (w < W)[None, :]
    state = tl.load(state_ptr + b * W + w, mask=w < W, other=0.0)
    g_next, first, stop = _enter(tl.zeros_like(state), products_ptr, ends_ptr, b, w, T, W, length, IS_CUT)
    for begin in tl.range(first, stop, BLOCK_T, num_stages=STAGES):
        # Row 0 of the tile is its latest token, so that time runs backwards in an ordinary scan.
        t = T - 1 - begin - tl.arange(0, BLOCK_T)
        inside = (t >= 0)[:, None] & inside_w
        at = (b * T + t)[:, None] * W + w[None, :]
        next_decay = tl.exp(tl.load(log_decay_ptr + at + W, mask=inside & (t < T - 1)[:, None], other=0.0))
        dh = tl.load(dh_ptr + at, mask=inside, other=0.0)
        g, g_next, _ = _scan_tile(next_decay, dh, g_next, BLOCK_T)
        before = tl.load(h_ptr + at - W, mask=inside & (t > 0)[:, None], other=0.0)
        before = tl.where((t == 0)[:, None], state[None, :], before)
        decay = tl.exp(tl.load(log_decay_ptr + at, mask=inside, other=0.0))
        tl.store(into_u_ptr + at, g, mask=inside)
        tl.store(into_log_decay_ptr + at, g * decay * before, mask=inside)
    if stop == T:
        # Rows before the first token kept what they found, so that this is its g.
        first_decay = tl.exp(tl.load(log_decay_ptr + b * T * W + w, mask=w < W, other=0.0))
        tl.store(into_state_ptr + b * W + w, first_decay * g_next, mask=w < W)


class Cut(NamedTuple):
    """Segments of a sequence, and tokens of each but the last, which may have fewer."""

    number: int
    length: int


def cut(batch_size: int, length: int, width: int, *, programs: int) -> Cut:
    """Where sequences are cut for a pass that needs so many programs; nowhere, if there are about as many without."""
    uncut = max(1, batch_size * triton.cdiv(width, LAUNCH["BLOCK_W"]))
    number = min(MOST, length // SHORTEST, programs // uncut)
    if number < WORTH:
        return Cut(1, length)
    tiles = triton.cdiv(triton.cdiv(length, LAUNCH["BLOCK_T"]), number)
    return Cut(triton.cdiv(length, tiles * LAUNCH["BLOCK_T"]), tiles * LAUNCH["BLOCK_T"])


def _grid(x: Tensor, segments: int) -> tuple[int, int, int]:
    return triton.cdiv(x.shape[-1], LAUNCH["BLOCK_W"]), x.shape[0], segments


def _effects(log_decay: Tensor, u: Tensor, pieces: Cut, *, reverse: bool) -> tuple[Tensor, Tensor]:
    """Products and ends of all segments but the last, [B, S - 1, W] each."""
    batch_size, length, width = u.shape
    products, ends = (u.new_empty(batch_size, pieces.number - 1, width) for _ in range(2))
    if pieces.number > 1:
        grid = _grid(u, pieces.number - 1)
        _segments_kernel[grid](log_decay, u, products, ends, length, width, pieces.length, REVERSE=reverse, **LAUNCH)
    return products, ends


@torch.library.custom_op("linear_rnn_suite::rglru_scan", mutates_args=())
@on_its_device
def _scan(log_decay: Tensor, u: Tensor, state: Tensor) -> Tensor:
    h, pieces = torch.empty_like(u), cut(*u.shape, programs=ENOUGH_FORWARD)
    effects = _effects(log_decay, u, pieces, reverse=False)
    _forward_kernel[_grid(u, pieces.number)](
        log_decay, u, state, *effects, h, *u.shape[1:], pieces.length, pieces.number > 1, **LAUNCH
    )
    return h


@_scan.register_fake
def _(log_decay: Tensor, u: Tensor, state: Tensor) -> Tensor:
    return torch.empty_like(u)


@torch.library.custom_op("linear_rnn_suite::rglru_scan_backward", mutates_args=())
@on_its_device
def _scan_backward(dh: Tensor, log_decay: Tensor, h: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    into, pieces = tuple(torch.empty_like(x) for x in (log_decay, h, state)), cut(*h.shape, programs=ENOUGH_BACKWARD)
    effects = _effects(log_decay, dh, pieces, reverse=True)
    inputs = (dh, log_decay, h, state, *effects)
    _backward_kernel[_grid(h, pieces.number)](*inputs, *into, *h.shape[1:], pieces.length, pieces.number > 1, **LAUNCH)
    return into


@_scan_backward.register_fake
def _(dh: Tensor, log_decay: Tensor, h: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.empty_like(x) for x in (log_decay, h, state))


def _save(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    log_decay, _, state = inputs
    ctx.save_for_backward(log_decay, output, state)


def _differentiate(ctx: FunctionCtx, dh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _scan_backward(dh.contiguous(), *ctx.saved_tensors)


_scan.register_autograd(_differentiate, setup_context=_save)
