"""The Mesa layer on a GPU (MesaNet, arXiv 2506.05233, eq. 4-9 and App. D), in Triton.

    G_t = exp(log_decay_t) G_{t-1} + beta_t v_t k_t^T
    H_t = exp(log_decay_t) H_{t-1} + beta_t k_t k_t^T
    o_t = G_t x_t   with   (H_t + Lambda) x_t = q_t

Under torch.compile forward and backward are operators of their own, so that it goes through them without a break; outside they
are a function of autograd, which costs less of Python's time. `mesa_launches.py` says which kernels a training step launches.

    B batch, T time, H heads, K key dim, V value dim, C chunk, N chunks
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import Function, FunctionCtx, once_differentiable

from models.backends.differentiable import is_traced
from models.backends.triton import mesa_launches as launches
from models.backends.triton.launch import on_its_device
from models.backends.triton.mesa_records import Ends, Solver, States, Tokens

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
INITIAL = ("zero", "diagonal", "query")
MOST_HEADS = 65_535
"""Heads of all sequences together: what the second axis of a CUDA grid holds."""


class MesaResult(NamedTuple):
    """o: [B, T, H, V] in the dtype of q, k and v. G: [B, H, V, K] and H: [B, H, K, K] after the last token, float32.

    steps: [B, T, H] int32, conjugate-gradient steps of the forward solve.
    """

    o: Tensor
    G: Tensor
    H: Tensor
    steps: Tensor


def mesa_chunked(
    *,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    regularizer: Tensor,
    G: Tensor | None,
    H: Tensor | None,
    tolerance: float,
    max_steps: int,
    initial: str,
) -> MesaResult:
    """o_t = G_t (H_t + Lambda)^-1 q_t, with gradients by implicit differentiation (App. D), H counting as symmetric.

    q, k [B, T, H, K] and v [B, T, H, V] of DTYPES, computed in the widest of theirs, K and V at most 128, entries of k up
    to 31 in size; log_decay <= 0 (one below -80 forgets all that came before, as -inf does, and has no gradient) and beta in
    [0, 1], [B, T, H]; regularizer, the diagonal of Lambda, [H, K], from 1e-4 to below 32,768, as bfloat16 inputs may have it
    rounded to float16; G and H, the state before, or None for zeros. A sequence that begins inside T is a log_decay of -inf.

    A token's solve begins at `initial`, "zero", "diagonal" (q / diag(H + Lambda)) or "query" (q), and ends at
    |q - (H + Lambda) x| <= tolerance |q| or after max_steps >= 0, where 0 leaves the beginning; so does that of its backward.
    A tolerance below 1e-7 counts as 1e-7, and a q with no entry above 1e-36 in size as 0. On a Hopper GPU bfloat16 inputs with a
    tolerance of 1e-4 or more have x to half a unit in the last place, which may leave more of q (`mesa_hopper.UNSEEN`). In
    bfloat16, 1e-4 brings all gradients to the rounding of their dtype; 1e-3 brings o there. Directions, and where a solve begins,
    are rounded to float16, so that before the end an x is that of exact conjugate gradients to about 1e-3 of what is left of q.
    "query" leaves a residual of |H + Lambda| |q|, whose rounding stays: in bfloat16 a token's o is off by up to
    2e-4 |H + Lambda|.
    Raises ValueError for what `refuse` and `refuse_dtypes` name, and for more than MOST_HEADS heads of all sequences together;
    the table in models/backends/__init__.py says for which sizes and settings these kernels are chosen.
    """
    refuse_dtypes({"q": q, "k": k, "v": v, "log_decay": log_decay, "beta": beta, "regularizer": regularizer, "G": G, "H": H})
    refuse(k, v, regularizer, max_steps, initial)
    batch_size, _, num_heads, _ = k.shape
    if batch_size * num_heads > MOST_HEADS:
        raise ValueError(
            f"{batch_size} sequences have {num_heads} heads each, permitted with backend=triton are {MOST_HEADS} in all"
        )
    dtype = reduce(torch.promote_types, (k.dtype, v.dtype), q.dtype)
    inputs = [x.to(dtype).contiguous() for x in (q, k, v)] + [x.contiguous() for x in (log_decay, beta, regularizer)]
    states = [None if S is None else S.contiguous() for S in (G, H)]
    form = _forward if is_traced() else _Mesa.apply
    return MesaResult(*form(*inputs, *states, tolerance, max_steps, initial)[:4])


def refuse_dtypes(inputs: dict[str, Tensor | None]) -> None:
    """ValueError for what these kernels would narrow."""
    for name, x in inputs.items():
        if x is not None and x.dtype not in DTYPES:
            raise ValueError(f"{name} is {x.dtype}, permitted with backend=triton are {', '.join(map(str, DTYPES))}")


def refuse(k: Tensor, v: Tensor, regularizer: Tensor, max_steps: int, initial: str) -> None:
    """ValueError for sizes and settings that these kernels would read past, or take for others."""
    if k.numel() == 0:
        raise ValueError(f"k is {[*k.shape]}, permitted with backend=triton are one token or more")
    if max(k.shape[-1], v.shape[-1]) > launches.LARGEST_DIM:
        dims = f"{k.shape[-1]} and {v.shape[-1]}"
        raise ValueError(f"key_dim and value_dim are {dims}, permitted with backend=triton are up to {launches.LARGEST_DIM}")
    if regularizer.shape != k.shape[2:]:
        raise ValueError(f"regularizer is {[*regularizer.shape]}, permitted with backend=triton is [H, K] = {[*k.shape[2:]]}")
    if initial not in INITIAL:
        raise ValueError(f"initial is {initial}, permitted with backend=triton are {', '.join(INITIAL)}")
    if max_steps < 0:
        raise ValueError(f"max_steps is {max_steps}, permitted are 0 and more")


@on_its_device
def _compute(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    regularizer: Tensor,
    G: Tensor | None,
    H: Tensor | None,
    tolerance: float,
    max_steps: int,
    initial: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """o, G and H after the last token, steps; and for the backward x, see `launches.empty_solution`."""
    tokens = Tokens(k, v, log_decay, beta, regularizer)
    assert q.is_contiguous() and all(x.is_contiguous() for x in tokens)
    after, (o, x, steps) = launches.empty_ends(k, v), launches.empty_solution(k, v)
    everything = range(launches.sizes(k).all_heads)
    before = launches.empty_states(k, v, everything)
    gates = launches.gates(tokens)
    launches.states(tokens, gates, Ends(G, H), everything, before, after)
    launches.solve(q, tokens, gates, before, Solver(tolerance, max_steps, initial), o, x, steps)
    return o, *after, steps, x


_forward = torch.library.custom_op("linear_rnn_suite::mesa", mutates_args=())(_compute)


@_forward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    regularizer: Tensor,
    G: Tensor | None,
    H: Tensor | None,
    tolerance: float,
    max_steps: int,
    initial: str,
) -> tuple[Tensor, ...]:
    o, x, steps = launches.empty_solution(k, v)
    return o, *launches.empty_ends(k, v), steps, x


@on_its_device
def _compute_backward(
    d_o: Tensor,
    d_G: Tensor | None,
    d_H: Tensor | None,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    regularizer: Tensor,
    x: Tensor,
    G: Tensor | None,
    H: Tensor | None,
    final_G: Tensor,
    final_H: Tensor,
    tolerance: float,
    max_steps: int,
    initial: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k, v, log_decay, beta, regularizer, G and H, from those of o and of final_G and final_H.

    x is what `_compute` returns; G and H are the state before. The gradient of a G or H that is None is empty.
    """
    tokens, solver = Tokens(k, v, log_decay, beta, regularizer), Solver(tolerance, max_steps, initial)
    start, d_o = Ends(G, H), d_o.to(v.dtype).contiguous()
    e, growth = torch.empty_like(x), torch.empty_like(log_decay, dtype=torch.float32)
    by_chunk = growth.new_empty(*final_H.shape[:2], launches.sizes(k).num_chunks, k.shape[-1])
    from_inputs: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
    d_G0, d_H0 = (None if S is None else torch.empty_like(final) for S, final in zip(start, (final_G, final_H), strict=True))
    d_G, twice_d_H = None if d_G is None else d_G.contiguous(), None if d_H is None else (d_H + d_H.mT).contiguous()
    pieces, gates = launches.pieces(k, v), launches.gates(tokens)
    memory = launches.empty_states(k, v, pieces[0])
    for heads in pieces:
        states = memory if len(heads) == len(pieces[0]) else States(*(S[: len(heads)] for S in memory))
        launches.states(tokens, gates, start, heads, states, None)
        launches.solve_backward(d_o, tokens, gates, states, heads, x, solver, e, by_chunk, growth)
        if from_inputs is None:
            # not before, so that they lie in the memory that the right-hand sides have left
            from_inputs = torch.empty_like(k), torch.empty_like(v), torch.empty_like(log_decay), torch.empty_like(beta)
        crossing_G = launches.state_gradients(d_o, x, gates, d_G, states, heads, final_G, d_G0, False)
        crossing_H = launches.state_gradients(e, x, gates, twice_d_H, states, heads, final_H, d_H0, True)
        crossing = torch.cat([crossing_G, crossing_H])
        launches.input_gradients(tokens, gates, x, e, d_o, growth, crossing, states, heads, *from_inputs)
    assert from_inputs is not None
    d_q = e[0] if k.dtype == torch.bfloat16 else e.float().sum(0).to(k.dtype)
    if d_H0 is not None:
        d_H0 /= 2
        if d_H is not None:
            # The cotangent itself is passed back as it came, not its symmetric part.
            d_H0 += log_decay.float().sum(1).exp()[..., None, None] * (d_H - d_H.mT) / 2
    d_G0, d_H0 = (final_G.new_empty(0) if S is None else S for S in (d_G0, d_H0))
    return d_q, *from_inputs, by_chunk.sum((0, 2)).to(regularizer.dtype), d_G0, d_H0


_backward = torch.library.custom_op("linear_rnn_suite::mesa_backward", mutates_args=())(_compute_backward)


@_backward.register_fake
def _(
    d_o: Tensor,
    d_G: Tensor | None,
    d_H: Tensor | None,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    regularizer: Tensor,
    x: Tensor,
    G: Tensor | None,
    H: Tensor | None,
    final_G: Tensor,
    final_H: Tensor,
    tolerance: float,
    max_steps: int,
    initial: str,
) -> tuple[Tensor, ...]:
    of_inputs = (torch.empty_like(tensor) for tensor in (k, k, v, log_decay, beta, regularizer))
    return *of_inputs, *(final.new_empty(0 if S is None else final.shape) for S, final in ((G, final_G), (H, final_H)))


def _remember(ctx: FunctionCtx, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, *tokens, G, H, tolerance, max_steps, initial = inputs
    _, final_G, final_H, _, x = output
    ctx.save_for_backward(*tokens, x, G, H, final_G, final_H)
    ctx.settings = (tolerance, max_steps, initial)
    ctx.is_given = (G is not None, H is not None)
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: FunctionCtx, d_o: Tensor | None, d_G: Tensor | None, d_H: Tensor | None, *_: Any, form: Callable[..., Any] = _backward
) -> tuple[Any, ...]:
    # Asked for once: under a checkpoint they are computed anew, and no second time.
    saved = ctx.saved_tensors
    d_o = torch.zeros_like(saved[1]) if d_o is None else d_o
    *gradients, d_G0, d_H0 = form(d_o, d_G, d_H, *saved, *ctx.settings)
    of_state = (S if given else None for S, given in zip((d_G0, d_H0), ctx.is_given, strict=True))
    return *gradients, *of_state, None, None, None


_forward.register_autograd(_differentiate, setup_context=_remember)


class _Mesa(Function):
    """What `_forward` is, as a function of autograd: an operator takes longer in Python."""

    @staticmethod
    def forward(ctx: FunctionCtx, *inputs: Any) -> tuple[Tensor, ...]:
        output = _compute(*inputs)
        _remember(ctx, inputs, output)
        ctx.mark_non_differentiable(*output[3:])
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *cotangents: Any) -> tuple[Any, ...]:
        return _differentiate(ctx, *cotangents, form=_compute_backward)
