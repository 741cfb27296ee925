"""Calls of the Mesa kernels: what they take, write and were measured to run best with.

Six calls: G and H before every chunk (`states`, once for each); one solve and read-out for each chunk (`solve`); and back,
one solve with G^T do on the right (`solve_backward`), the gradients of the states from the end (`state_gradients`, for G
and for H), and those of the inputs (`input_gradients`). What walks along time does so in segments of it at once, where heads
are few. All tensors are contiguous.

    B batch, T time, H heads, K key dim, V value dim, C chunk, N chunks
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.backends.triton import mesa_gradients as gradient_kernels
from models.backends.triton import mesa_kernels as kernels
from models.backends.triton import mesa_states as state_kernels

CHUNK_SIZE = 64
BLOCK = 64
LARGEST_DIM = 128
PROGRAMS = 528
"""Programs that walk along time: four on each of an H200's 132 multiprocessors. A constant, so that sums are the same anywhere."""
FEWEST_SEGMENTS, MOST_SEGMENTS = 3, 16
"""Segments cost nearly twice the work, and a program reads the sums of all before its own."""
SHORTEST_SEGMENT = 4
# Measured on an H200 with Triton 3.6, bfloat16, K = V = 128; two programs a multiprocessor, whence 255 registers.
STATES = {"num_warps": 4, "num_stages": 2, "maxnreg": 128}
SOLVE = {"num_warps": 4, "num_stages": 1}
G_GRADIENTS = {"num_warps": 4, "num_stages": 1, "maxnreg": 128}
H_GRADIENTS = {"num_warps": 4, "num_stages": 1, "maxnreg": 168}
INPUTS = {"BLOCK": 32, "num_warps": 4, "num_stages": 3}
# Triton 3.6 miscompiles INPUTS on Hopper for float16 or float32 with a dim below 64: dv was wrong.
INPUTS_NARROW_IN_PARTS = {"BLOCK": 64, "num_warps": 4, "num_stages": 1}


class Tiles(NamedTuple):
    """Sizes of one problem, as the kernels take them. parts: of 16 bits, that hold an input exactly enough."""

    num_chunks: int
    num_heads: int
    block_k: int
    parts: int


class States(NamedTuple):
    """G: [B, H, N, V, K] float32 before every chunk. H: [B, H, N, 2, K, K], the high and low float16 part of H times
    scale [B, H, N]. final_G [B, H, V, K] and final_H [B, H, K, K], float32, after the last."""

    G: Tensor
    H: Tensor
    scale: Tensor
    final_G: Tensor
    final_H: Tensor


class Solver(NamedTuple):
    """When and where conjugate gradients end and begin, see `mesa.mesa_chunked`."""

    tolerance: float
    max_steps: int
    initial: str


def _tiles(k: Tensor) -> Tiles:
    batch_size, length, num_heads, key_dim = k.shape
    # Below 64, Triton 3.6 computes some of these kernels wrongly on Hopper.
    block_k = BLOCK if key_dim <= BLOCK else LARGEST_DIM
    return Tiles(triton.cdiv(length, CHUNK_SIZE), batch_size * num_heads, block_k, 1 + (k.dtype != torch.bfloat16))


def empty_states(k: Tensor, v: Tensor) -> States:
    batch_size, _, num_heads, key_dim = k.shape
    value_dim, new = v.shape[-1], k.new_empty
    leading = (batch_size, num_heads, _tiles(k).num_chunks)
    return States(
        G=new(*leading, value_dim, key_dim, dtype=torch.float32),
        H=new(*leading, 2, key_dim, key_dim, dtype=torch.float16),
        scale=new(leading, dtype=torch.float32),
        final_G=new(*leading[:2], value_dim, key_dim, dtype=torch.float32),
        final_H=new(*leading[:2], key_dim, key_dim, dtype=torch.float32),
    )


class Segments(NamedTuple):
    """Time cut for one state. Of all segments but one, as the kernels leave them: sums [B, H, segments - 1, rows, K], what is
    kept of a state and the mass of tokens [B, H, segments - 1], in float32. span: chunks of a segment."""

    sums: Tensor
    kept: Tensor
    masses: Tensor
    span: int

    @property
    def all(self) -> int:
        return self.kept.shape[-1] + 1


def _segments(num_chunks: int, num_tiles: int, final: Tensor) -> Segments:
    """For a state like `final` in so many tiles."""
    batch_size, num_heads = final.shape[:2]
    wanted = min(PROGRAMS // (num_tiles * batch_size * num_heads), num_chunks // SHORTEST_SEGMENT, MOST_SEGMENTS)
    span = triton.cdiv(num_chunks, wanted) if wanted >= FEWEST_SEGMENTS else num_chunks
    others = (batch_size, num_heads, triton.cdiv(num_chunks, span) - 1)
    kept, masses = final.new_empty(2, *others)
    return Segments(final.new_empty(*others, *final.shape[2:]), kept, masses, span)


def empty_solution(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """o [B, T, H, V], x [2, B, T, H, K] in two bfloat16 parts and the steps [B, T, H]."""
    return v.new_empty(v.shape), k.new_empty(2, *k.shape, dtype=torch.bfloat16), k.new_empty(k.shape[:-1], dtype=torch.int32)


def states(k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, G: Tensor | None, H: Tensor | None) -> States:
    _, length, num_heads, key_dim = k.shape
    tiles, states = _tiles(k), empty_states(k, v)
    for values, initial, split, parts, before, final in (
        (v, G, False, tiles.parts, states.G, states.final_G),
        (k, H, True, 2, states.H, states.final_H),
    ):
        rows = values.shape[-1]
        mass = initial.abs().amax((-2, -1)).float() if split and initial is not None else states.scale
        num_blocks = triton.cdiv(rows, BLOCK) * triton.cdiv(key_dim, BLOCK)
        cut = _segments(tiles.num_chunks, num_blocks, final)
        inputs, of_segments = (values, k, log_decay, beta), (cut.sums, cut.kept, cut.masses)
        sizes = {"V": rows, "K": key_dim, "C": CHUNK_SIZE, "BLOCK": BLOCK}
        precision = {"WEIGHTED_PARTS": parts, "KEY_PARTS": tiles.parts, "LOW": tl.bfloat16}
        if cut.all > 1:
            state_kernels.segment_states_kernel[(num_blocks, tiles.num_heads, cut.all - 1)](
                *inputs, *of_segments, length, num_heads, cut.span, **sizes, **precision, **STATES
            )
        state_kernels.states_kernel[(num_blocks, tiles.num_heads, cut.all)](
            *inputs, final if initial is None else initial, mass, *of_segments, before, states.scale, final,
            length, tiles.num_chunks, num_heads, cut.span,
            HAS_INITIAL=initial is not None, SPLIT=split, **sizes, **precision, **STATES,
        )  # fmt: skip
    return states


def solve(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, regularizer: Tensor, states: States, solver: Solver,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """What `empty_solution` names."""
    _, length, num_heads, key_dim = k.shape
    tiles = _tiles(k)
    o, x, steps = empty_solution(k, v)
    is_fine = torch.empty_like(states.scale, dtype=torch.int32)
    for fine in (True,) if tiles.parts > 1 else (False, True):
        kernels.solve_kernel[(tiles.num_chunks, tiles.num_heads)](
            q, k, v, log_decay, beta, regularizer, states.G, states.H, states.scale, x, o, steps,
            solver.tolerance, solver.max_steps, length, tiles.num_chunks, num_heads, k.numel(), is_fine,
            K=key_dim, V=v.shape[-1], C=CHUNK_SIZE, BLOCK_K=tiles.block_k, BLOCK_V=BLOCK,
            INITIAL=solver.initial, PARTS=tiles.parts, FINE=fine, WIDE=tiles.parts > 1, **SOLVE,
        )  # fmt: skip
    return o, x, steps


def solve_backward(
    d_o: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, regularizer: Tensor, states: States,
    x: Tensor, solver: Solver,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """e [2, B, T, H, K], dq in two bfloat16 parts; dLambda [H, K] and `row` [B, T, H] of `solve_backward_kernel`."""
    batch_size, length, num_heads, key_dim = k.shape
    tiles, e = _tiles(k), torch.empty_like(x)
    row = torch.empty_like(log_decay, dtype=torch.float32)
    d_regularizer = row.new_empty(batch_size, num_heads, tiles.num_chunks, key_dim)
    is_fine = torch.empty_like(states.scale, dtype=torch.int32)
    for fine in (True,) if tiles.parts > 1 else (False, True):
        kernels.solve_backward_kernel[(tiles.num_chunks, tiles.num_heads)](
            d_o, k, v, log_decay, beta, regularizer, states.G, states.H, states.scale, x, e, d_regularizer, row,
            solver.tolerance, solver.max_steps, length, tiles.num_chunks, num_heads, k.numel(), is_fine,
            K=key_dim, V=v.shape[-1], C=CHUNK_SIZE, BLOCK_K=tiles.block_k, BLOCK_V=BLOCK,
            INITIAL=solver.initial, PARTS=tiles.parts, FINE=fine, WIDE=tiles.parts > 1, **SOLVE,
        )  # fmt: skip
    return e, d_regularizer.sum((0, 2)), row


def state_gradients(
    y: Tensor, x: Tensor, log_decay: Tensor, cotangent: Tensor | None, states: States, symmetric: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """For G, or where `symmetric` twice for H: the gradients after every chunk [B, H, N, 2, V, K] in two bfloat16 parts,
    that of the first state [B, H, V, K] and the pairs across [blocks, B, H, N]."""
    before, final = (states.H, states.final_H) if symmetric else (states.G, states.final_G)
    _, batch_size, length, num_heads, key_dim = x.shape
    rows, num_chunks = final.shape[-2], states.scale.shape[-1]
    gradients = x.new_empty(batch_size, num_heads, num_chunks, 2, rows, key_dim)
    row_blocks, column_blocks = triton.cdiv(rows, BLOCK), triton.cdiv(key_dim, BLOCK)
    num_blocks = column_blocks * (column_blocks + 1) // 2 if symmetric else row_blocks * column_blocks
    initial, crossing = torch.empty_like(final), final.new_empty(num_blocks, batch_size, num_heads, num_chunks)
    cut = _segments(num_chunks, num_blocks, final)
    sizes = {"V": rows, "K": key_dim, "C": CHUNK_SIZE, "BLOCK": BLOCK, "SYMMETRIC": symmetric}
    precision = {"PARTS": 1 + (y.dtype != torch.bfloat16), "LOW": tl.bfloat16}
    launch = H_GRADIENTS if symmetric else G_GRADIENTS
    if cut.all > 1:
        gradient_kernels.segment_gradients_kernel[(num_blocks, batch_size * num_heads, cut.all - 1)](
            y, x, log_decay, cut.sums, cut.kept, length, num_chunks, num_heads, cut.span, x[0].numel(),
            **sizes, **precision, **launch,
        )  # fmt: skip
    gradient_kernels.state_gradients_kernel[(num_blocks, batch_size * num_heads, cut.all)](
        y, x, log_decay, final if cotangent is None else cotangent.contiguous(), before, states.scale, final,
        cut.sums, cut.kept, gradients, initial, crossing, length, num_chunks, num_heads, cut.span, x[0].numel(),
        HAS_FINAL=cotangent is not None, **sizes, **precision, **launch,
    )  # fmt: skip
    return gradients, initial, crossing


def input_gradients(
    k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, x: Tensor, e: Tensor, d_o: Tensor, row: Tensor,
    crossing: Tensor, D_G: Tensor, D_H: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dk, dv, dlog_decay, dbeta."""
    _, length, num_heads, key_dim = k.shape
    tiles = _tiles(k)
    narrow_in_parts = tiles.parts > 1 and min(key_dim, v.shape[-1]) < BLOCK
    d_k, d_v, d_log_decay, d_beta = (torch.empty_like(tensor) for tensor in (k, v, log_decay, beta))
    gradient_kernels.input_gradients_kernel[(tiles.num_chunks, tiles.num_heads)](
        k, v, log_decay, beta, x, e, d_o, row, crossing, D_G, D_H, d_k, d_v, d_log_decay, d_beta,
        length, tiles.num_chunks, num_heads, k.numel(), K=key_dim, V=v.shape[-1], C=CHUNK_SIZE,
        BLOCK_K=tiles.block_k, CROSSINGS=len(crossing), PARTS=tiles.parts, LOW=tl.bfloat16,
        **(INPUTS_NARROW_IN_PARTS if narrow_in_parts else INPUTS),
    )  # fmt: skip
    return d_k, d_v, d_log_decay, d_beta
