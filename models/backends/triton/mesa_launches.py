"""Calls of the Mesa kernels: what they take, write and were measured to run best with.

Time is cut into N chunks of C tokens. What tokens of a chunk give to each other is computed from all their pairs, as in
attention, and what came before the chunk is read from G and H at its start. A training step launches, in this order:

    forward, of all heads
      gates             gates_kernel                 gates summed over each chunk
      states            states_kernel                G and H before every chunk, and after the last token
      solve             solve_kernel                 x_t = (H_t + Lambda)^-1 q_t by conjugate gradients
                        read_out_kernel              o_t = G_t x_t
    backward, gates once and then all others for one piece of the heads after another
      gates, states     as before                    made again: to keep them takes eight times the memory of k at K = V = 128
      solve_backward    right_side_kernel            G_t^T do_t
                        solve_kernel                 e_t = (H_t + Lambda)^-1 G_t^T do_t, which is dq; and dLambda by chunk
      state_gradients   state_gradients_kernel       dG after every chunk from do and x, in the place of G
                        state_gradients_kernel       dH after every chunk from e and x, in the place of H
      input_gradients   input_gradients_kernel       dk, dv, dbeta, dlog_decay

Pieces (`pieces`) are there so that the states of all heads never lie in memory together. Where heads are few, what walks along
time does so in segments of it at once, and segment_states_kernel and segment_gradients_kernel run before states_kernel and
state_gradients_kernel. All tensors are contiguous.

    B batch, T time, H heads, K key dim, V value dim, C chunk, N chunks, P heads of a piece
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.backends.triton import mesa_gradients as gradient_kernels
from models.backends.triton import mesa_kernels as kernels
from models.backends.triton import mesa_reads as read_kernels
from models.backends.triton import mesa_states as state_kernels
from models.backends.triton.launch import CALLED_SO, launch
from models.backends.triton.mesa_records import Ends, Gates, Segments, Sizes, Solver, States, Tokens
from models.backends.triton.mesa_tiles import gates_kernel

CHUNK_SIZE = 64
BLOCK = 64
LARGEST_DIM = 128
MULTIPROCESSORS = 132
"""Those of an H200. A constant, so that time is cut into the same segments on any GPU."""
FEWEST_SEGMENTS, MOST_SEGMENTS = 3, 32
"""Segments cost nearly twice the work, and a program reads the sums of all before its own."""
SHORTEST_SEGMENT = 4
"""Chunks."""
MOST_PIECES = 4
BYTES_OF_A_PIECE = 512 * 2**20
"""States of a piece from which on another pays: a small problem waits for Python, which launches every piece."""
TILES_OF_A_PIECE = 16
"""Tiles of G of all heads of a piece: fewer would walk through segments that are too many or too long."""
# Measured on an H200 with Triton 3.6 and 3.7.1, bfloat16, K = V = 128. `maxnreg` decides how many programs share a
# multiprocessor, which has 65,536 registers: where it is not given a thread may have 255, and two programs fit.
GATES = {"num_warps": 1}
STATES = {"num_warps": 4, "num_stages": 2, "maxnreg": 128}
SOLVE = {"num_warps": 4, "num_stages": 1}
HOPPER_SOLVE = {64: {"num_warps": 4, "maxnreg": 168}, 128: {"num_warps": 4}}
"""By key dim: three programs a multiprocessor, and two."""
READ_OUT = {"num_warps": 4, "num_stages": 1}
READ_OUT_NARROW = {"maxnreg": 128}
"""What bfloat16 inputs have besides: four programs share a multiprocessor."""
RIGHT_SIDE = {"num_warps": 4, "num_stages": 2, "maxnreg": 128}
G_GRADIENTS = {"num_warps": 4, "num_stages": 2, "maxnreg": 128}
H_GRADIENTS = {"num_warps": 4, "num_stages": 2, "maxnreg": 168}
INPUTS = {"BLOCK": 32, "num_warps": 4, "num_stages": 3}
# Heads up to 64, whose tiles are then whole, and two parts: by INPUTS, with Triton 3.6 and 3.7.1 on Hopper, dv of float16 and
# float32 was wrong, with NaN in some columns.
INPUTS_WHOLE = {"BLOCK": 64, "num_warps": 4, "num_stages": 1}
NONE = -1
"""A segment that there is not, after or before which nothing is to be written."""


def _in(length: int, step: int) -> int:
    """How many steps a length takes. `triton.cdiv` is slow on a CPU, and a pass asks 40 times."""
    return -(-length // step)


def sizes(k: Tensor) -> Sizes:
    batch_size, length, num_heads, key_dim = k.shape
    # Below 64, Triton 3.6 computes some of these kernels wrongly on Hopper.
    block_k = BLOCK if key_dim <= BLOCK else LARGEST_DIM
    parts = 1 + (k.dtype != torch.bfloat16)
    return Sizes(length, _in(length, CHUNK_SIZE), num_heads, batch_size * num_heads, block_k, parts)


def pieces(k: Tensor, v: Tensor) -> list[range]:
    """All heads of all sequences, those whose states are to lie in memory together."""
    size = sizes(k)
    key_dim, value_dim = k.shape[-1], v.shape[-1]
    tiles = size.all_heads * _in(value_dim, BLOCK) * _in(key_dim, BLOCK)
    num_bytes = 4 * size.num_chunks * size.all_heads * key_dim * (key_dim + value_dim)
    wanted = min(_in(num_bytes, BYTES_OF_A_PIECE), tiles // TILES_OF_A_PIECE, MOST_PIECES)
    step = _in(size.all_heads, max(wanted, 1))
    return [range(first, min(first + step, size.all_heads)) for first in range(0, size.all_heads, step)]


def empty_states(k: Tensor, v: Tensor, heads: range) -> States:
    key_dim, value_dim, new, places = k.shape[-1], v.shape[-1], k.new_empty, (len(heads), sizes(k).num_chunks)
    return States(
        G=new(*places, value_dim, key_dim, dtype=torch.float32),
        H=new(*places, 2, key_dim, key_dim, dtype=torch.float16),
        scale=new(places, dtype=torch.float32),
        low=new(*places, BLOCK * _in(key_dim, BLOCK) ** 2, dtype=torch.float32),
    )


def empty_ends(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """G [B, H, V, K] and H [B, H, K, K], float32."""
    batch_size, _, num_heads, key_dim = k.shape
    G, H = (k.new_empty(batch_size, num_heads, rows, key_dim, dtype=torch.float32) for rows in (v.shape[-1], key_dim))
    return G, H


def empty_solution(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """o [B, T, H, V], x [2, B, T, H, K] in bfloat16 parts, three for wider inputs, and the steps [B, T, H]."""
    x = k.new_empty(1 + sizes(k).parts, *k.shape, dtype=torch.bfloat16)
    return v.new_empty(v.shape), x, k.new_empty(k.shape[:-1], dtype=torch.int32)


def gates(tokens: Tokens) -> Gates:
    k, size = tokens.k, sizes(tokens.k)
    log, resets, *others = k.new_empty(5, size.all_heads, size.num_chunks * CHUNK_SIZE, dtype=torch.float32)
    # apart: where a pointer begins at no multiple of 16 bytes, Triton compiles anew
    by_chunk = (k.new_empty(size.all_heads, size.num_chunks, dtype=torch.float32) for _ in range(2))
    found = Gates(log, resets.view(torch.int32), *others, *by_chunk)
    arguments = (tokens.log_decay, tokens.beta, *found, size.length, size.num_heads)
    launch(gates_kernel, (size.num_chunks, size.all_heads, 1), arguments, {"C": CHUNK_SIZE} | GATES)
    return found


def _segments(state: Tensor, scale: Tensor, num_tiles: int, how: dict[str, int]) -> Segments:
    """Segments for a state [P, N, ..., rows, K] of so many tiles a head: as many as fill the registers of a GPU.

    scale is any float32 tensor, which stands for what one segment does not need.
    """
    num_chunks = state.shape[1]
    at_once = MULTIPROCESSORS * (65_536 // (32 * how["num_warps"] * how["maxnreg"]))
    wanted = min(at_once // (num_tiles * state.shape[0]), num_chunks // SHORTEST_SEGMENT, MOST_SEGMENTS)
    span = _in(num_chunks, wanted) if wanted >= FEWEST_SEGMENTS else num_chunks
    number = _in(num_chunks, span)
    if number == 1:
        # No kernel reads or writes them, and another type would be compiled anew.
        return Segments(scale, scale, scale, span, number)
    sums = state.new_empty(state.shape[0], number - 1, *state.shape[-2:], dtype=torch.float32)
    # apart: where a pointer begins at no multiple of 16 bytes, Triton compiles anew
    decays, masses = (sums.new_empty(sums.shape[:2]) for _ in range(2))
    return Segments(sums, decays, masses, span, number)


def states(tokens: Tokens, gates: Gates, start: Ends, heads: range, into: States, after: tuple[Tensor, Tensor] | None) -> None:
    """Writes `into` the states of these heads before every chunk, and `after` those after the last token where it is given."""
    k, v = tokens.k, tokens.v
    size, key_dim, value_dim = sizes(k), k.shape[-1], v.shape[-1]
    tiles_G, tiles_H = (_in(rows, BLOCK) * _in(key_dim, BLOCK) for rows in (value_dim, key_dim))
    cut = _segments(into.G, into.scale, tiles_G + tiles_H, STATES)
    sums_H = cut.sums if cut.number == 1 else cut.sums.new_empty(*cut.decays.shape, key_dim, key_dim)
    inputs = (v, k, gates.to_end, gates.strength, gates.decay, gates.mass)
    of_segments = (cut.sums, sums_H, cut.decays, cut.masses)
    ints = (size.length, size.num_chunks, size.num_heads, heads.start, cut.span)
    constants = {"V": value_dim, "K": key_dim, "C": CHUNK_SIZE, "BLOCK": BLOCK, "TILES_OF_G": tiles_G}
    constants |= {"PARTS": size.parts, "LOW": tl.bfloat16}
    if cut.number > 1:
        grid = (tiles_G + tiles_H, len(heads), cut.number - 1)
        launch(state_kernels.segment_states_kernel, grid, (*inputs, *of_segments, *ints), constants | STATES)
    # what a kernel neither reads nor writes is stood for by a tensor of the type that it would have
    mass = cut.masses if start.H is None else start.H.abs().amax((-2, -1)).float()
    initial = (cut.sums if S is None else S for S in start)
    written, ends = (cut.sums, cut.sums) if after is None else after, NONE if after is None else cut.number - 1
    arguments = (*inputs, *initial, mass, *of_segments, *into, *written, *ints, ends)
    constants |= {"HAS_G": start.G is not None, "HAS_H": start.H is not None}
    launch(state_kernels.states_kernel, (tiles_G + tiles_H, len(heads), cut.number), arguments, constants | STATES)


@cache
def _is_hopper(device: torch.device) -> bool:
    # Gluon, in which these GPUs have a kernel of their own, may differ in another version.
    return device.type == "cuda" and triton.__version__ in CALLED_SO and torch.cuda.get_device_capability(device)[0] == 9


def _solve(
    rhs: Tensor, tokens: Tokens, gates: Gates, before: States, heads: range, solver: Solver, x: Tensor, others: Sequence[Tensor],
    backward: bool,
) -> None:  # fmt: skip
    """others: steps, forward_x, d_regularizer and growth, see `mesa_kernels.solve_kernel`; one that is neither read nor written
    is stood for by any other."""
    k = tokens.k
    size, key_dim = sizes(k), k.shape[-1]
    arguments = (
        rhs, k, *gates.within(), tokens.regularizer, before.H, before.scale, x, *others,
        solver.tolerance, solver.max_steps, size.length, size.num_chunks, size.num_heads, heads.start, k.numel(),
    )  # fmt: skip
    constants: dict[str, Any] = {"K": key_dim, "C": CHUNK_SIZE, "INITIAL": solver.initial, "BACKWARD": backward}
    if k.dtype == torch.bfloat16 and key_dim in HOPPER_SOLVE and _is_hopper(k.device):
        from models.backends.triton import mesa_hopper

        kernel: Any = mesa_hopper.solve_kernel
        arguments = (before.low, *arguments)
        constants |= HOPPER_SOLVE[key_dim]
    else:
        kernel = kernels.solve_kernel
        constants |= {"BLOCK_K": size.block_k, "WIDE": size.parts > 1} | SOLVE
    launch(kernel, (size.num_chunks, len(heads), 1), arguments, constants)


def _read_constants(k: Tensor, v: Tensor) -> dict[str, int]:
    return {"K": k.shape[-1], "V": v.shape[-1], "C": CHUNK_SIZE, "BLOCK_V": BLOCK, "PARTS": sizes(k).parts}


def solve(
    q: Tensor, tokens: Tokens, gates: Gates, before: States, solver: Solver, o: Tensor, x: Tensor, steps: Tensor
) -> None:  # fmt: skip
    """Writes what `empty_solution` names, for all heads."""
    k, v = tokens.k, tokens.v
    size = sizes(k)
    _solve(q, tokens, gates, before, range(size.all_heads), solver, x, (steps, x, q, q), backward=False)
    arguments = (x, k, v, *gates.within(), before.G, o, size.length, size.num_chunks, size.num_heads, k.numel())
    grid = (size.num_chunks * _in(v.shape[-1], BLOCK), size.all_heads, 1)
    constants = _read_constants(k, v) | {"BLOCK_K": size.block_k} | READ_OUT | (READ_OUT_NARROW if size.parts == 1 else {})
    launch(read_kernels.read_out_kernel, grid, arguments, constants)


def solve_backward(
    d_o: Tensor, tokens: Tokens, gates: Gates, before: States, heads: range, x: Tensor, solver: Solver,
    e: Tensor, d_regularizer: Tensor, growth: Tensor,
) -> None:  # fmt: skip
    """Writes for these heads e, which is dq, in bfloat16 parts as x has them; dLambda by chunk [B, H, N, K]; and `growth`
    [B, T, H], see `solve_kernel`."""
    k, v = tokens.k, tokens.v
    size = sizes(k)
    rhs = k.new_empty(len(heads), size.num_chunks, CHUNK_SIZE, k.shape[-1], dtype=torch.float32)
    arguments = (d_o, k, v, *gates.within(), before.G, rhs, size.length, size.num_chunks, size.num_heads, heads.start)
    grid = (size.num_chunks * _in(k.shape[-1], BLOCK), len(heads), 1)
    launch(read_kernels.right_side_kernel, grid, arguments, _read_constants(k, v) | {"BLOCK_K": BLOCK} | RIGHT_SIDE)
    _solve(rhs, tokens, gates, before, heads, solver, e, (growth, x, d_regularizer, growth), backward=True)


def state_gradients(
    y: Tensor, x: Tensor, gates: Gates, d_final: Tensor | None, before: States, heads: range,
    final: Tensor, d_initial: Tensor | None, symmetric: bool,
) -> Tensor:  # fmt: skip
    """The gradients of G from y = do, or where `symmetric` twice those of H from y = e, for these heads.

    Puts those after every chunk in the states' place, as `state_gradients_kernel` says, writes `d_initial` where it is given,
    and returns what pairs across the chunks' ends contribute to decays [blocks, P, N]. final: the state after the last token;
    d_final: its gradient, None for zeros; both, and d_initial, [B, H, rows, K].
    """
    states = before.H if symmetric else before.G
    _, _, length, num_heads, key_dim = x.shape
    rows, num_chunks = final.shape[-2], before.scale.shape[-1]
    row_blocks, column_blocks = _in(rows, BLOCK), _in(key_dim, BLOCK)
    num_blocks = column_blocks * (column_blocks + 1) // 2 if symmetric else row_blocks * column_blocks
    crossing = final.new_empty(num_blocks, len(heads), num_chunks)
    how = H_GRADIENTS if symmetric else G_GRADIENTS
    cut = _segments(states, before.scale, num_blocks, how)
    constants = {"V": rows, "K": key_dim, "C": CHUNK_SIZE, "BLOCK": BLOCK, "SYMMETRIC": symmetric}
    constants |= {"PARTS": 1 + (y.dtype != torch.bfloat16), "LOW": tl.bfloat16}
    ints = (num_heads, heads.start, cut.span)
    if cut.number > 1:
        given = (y, x, gates.from_start, gates.decay, cut.sums, cut.decays, length, num_chunks, *ints, x[0].numel())
        launch(gradient_kernels.segment_gradients_kernel, (num_blocks, len(heads), cut.number - 1), given, constants | how)
    arguments = (
        y, x, gates.from_start, gates.decay, final if d_final is None else d_final, states, before.scale, final,
        cut.sums, cut.decays, states.view(torch.bfloat16) if symmetric else states,
        cut.sums if d_initial is None else d_initial, crossing,
        length, num_chunks, *ints, NONE if d_initial is None else 0, x[0].numel(),
    )  # fmt: skip
    constants["HAS_FINAL"] = d_final is not None
    launch(gradient_kernels.state_gradients_kernel, (num_blocks, len(heads), cut.number), arguments, constants | how)
    return crossing


def input_gradients(
    tokens: Tokens, gates: Gates, x: Tensor, e: Tensor, d_o: Tensor, growth: Tensor, crossing: Tensor, gradients: States,
    heads: range, d_k: Tensor, d_v: Tensor, d_log_decay: Tensor, d_beta: Tensor,
) -> None:  # fmt: skip
    """Writes dk, dv, dlog_decay and dbeta of these heads.

    gradients: what `state_gradients` made of the states; crossing: what it returned for G and for H, one behind the other.
    """
    k, v = tokens.k, tokens.v
    size, key_dim = sizes(k), k.shape[-1]
    whole = size.parts > 1 or max(key_dim, v.shape[-1]) <= BLOCK
    arguments = (
        k, v, tokens.log_decay, gates.log, gates.resets, gates.to_end, gates.strength, x, e, d_o, growth, crossing,
        gradients.G, gradients.H.view(torch.bfloat16),
        d_k, d_v, d_log_decay, d_beta, size.length, size.num_chunks, size.num_heads, heads.start, k.numel(),
    )  # fmt: skip
    constants = {"K": key_dim, "V": v.shape[-1], "C": CHUNK_SIZE, "BLOCK_K": size.block_k, "CROSSINGS": len(crossing)}
    constants |= {"PARTS": size.parts, "LOW": tl.bfloat16} | (INPUTS_WHOLE if whole else INPUTS)
    launch(gradient_kernels.input_gradients_kernel, (size.num_chunks, len(heads), 1), arguments, constants)
