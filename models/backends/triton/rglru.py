"""The gated diagonal recurrence of models/ops/rglru.py on a GPU, in Triton.

A program scans a block of channels of one sequence, a tile of time after the other, and holds the state in registers: it reads
and writes every number once, 12 bytes a channel and token forward and 20 backward in float32, and does little besides.

    B batch, T time, W channels
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx

from models.backends.triton.launch import on_its_device

# One warp reads 128 channels in 16-byte words, all tokens of a channel in one thread: then a scan needs no word from another.
LAUNCH = {"BLOCK_T": 16, "BLOCK_W": 128, "STAGES": 3, "num_warps": 1}


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
    """h [BLOCK_T, BLOCK_W] of a tile behind a state [BLOCK_W], and its last row."""
    product, local = tl.associative_scan((decay, u), 0, _then)
    h = local + product * state[None, :]
    is_last = tl.arange(0, BLOCK_T)[:, None] == BLOCK_T - 1
    return h, tl.sum(tl.where(is_last, h, 0.0), axis=0)


@triton.jit
def _forward_kernel(
    log_decay_ptr, u_ptr, state_ptr, h_ptr, T, W,
    BLOCK_T: tl.constexpr, BLOCK_W: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    w = tl.program_id(0) * BLOCK_W + tl.arange(0, BLOCK_W)
    b = tl.program_id(1).to(tl.int64)
    state = tl.load(state_ptr + b * W + w, mask=w < W, other=0.0)
    for begin in tl.range(0, T, BLOCK_T, num_stages=STAGES):
        t = begin + tl.arange(0, BLOCK_T)
        inside = (t < T)[:, None] & (w < W)[None, :]
        at = (b * T + t)[:, None] * W + w[None, :]
        decay = tl.exp(tl.load(log_decay_ptr + at, mask=inside, other=0.0))
        u = tl.load(u_ptr + at, mask=inside, other=0.0)
        h, state = _scan_tile(decay, u, state, BLOCK_T)
        tl.store(h_ptr + at, h, mask=inside)


@triton.jit
def _backward_kernel(
    dh_ptr, log_decay_ptr, h_ptr, state_ptr, into_log_decay_ptr, into_u_ptr, into_state_ptr, T, W,
    BLOCK_T: tl.constexpr, BLOCK_W: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """g_t = dh_t + a_{t+1} g_{t+1}, the same scan from the last token to the first; du = g, dlog_decay_t = g_t a_t h_{t-1}."""
    w = tl.program_id(0) * BLOCK_W + tl.arange(0, BLOCK_W)
    b = tl.program_id(1).to(tl.int64)
    inside_w = (w < W)[None, :]
    state = tl.load(state_ptr + b * W + w, mask=w < W, other=0.0)
    g_next = tl.zeros_like(state)
    for begin in tl.range(0, T, BLOCK_T, num_stages=STAGES):
        # Row 0 of the tile is its latest token, so that time runs backwards in an ordinary scan.
        t = T - 1 - begin - tl.arange(0, BLOCK_T)
        inside = (t >= 0)[:, None] & inside_w
        at = (b * T + t)[:, None] * W + w[None, :]
        next_decay = tl.exp(tl.load(log_decay_ptr + at + W, mask=inside & (t < T - 1)[:, None], other=0.0))
        dh = tl.load(dh_ptr + at, mask=inside, other=0.0)
        g, g_next = _scan_tile(next_decay, dh, g_next, BLOCK_T)
        before = tl.load(h_ptr + at - W, mask=inside & (t > 0)[:, None], other=0.0)
        before = tl.where((t == 0)[:, None], state[None, :], before)
        decay = tl.exp(tl.load(log_decay_ptr + at, mask=inside, other=0.0))
        tl.store(into_u_ptr + at, g, mask=inside)
        tl.store(into_log_decay_ptr + at, g * decay * before, mask=inside)
    # Rows before the first token kept what they found, so that this is its g.
    first_decay = tl.exp(tl.load(log_decay_ptr + b * T * W + w, mask=w < W, other=0.0))
    tl.store(into_state_ptr + b * W + w, first_decay * g_next, mask=w < W)


def _grid(x: Tensor) -> tuple[int, int]:
    return triton.cdiv(x.shape[-1], LAUNCH["BLOCK_W"]), x.shape[0]


@torch.library.custom_op("linear_rnn_suite::rglru_scan", mutates_args=())
@on_its_device
def _scan(log_decay: Tensor, u: Tensor, state: Tensor) -> Tensor:
    h = torch.empty_like(u)
    _forward_kernel[_grid(u)](log_decay, u, state, h, *u.shape[1:], **LAUNCH)
    return h


@_scan.register_fake
def _(log_decay: Tensor, u: Tensor, state: Tensor) -> Tensor:
    return torch.empty_like(u)


@torch.library.custom_op("linear_rnn_suite::rglru_scan_backward", mutates_args=())
@on_its_device
def _scan_backward(dh: Tensor, log_decay: Tensor, h: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    into = tuple(torch.empty_like(x) for x in (log_decay, h, state))
    _backward_kernel[_grid(h)](dh, log_decay, h, state, *into, *h.shape[1:], **LAUNCH)
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
