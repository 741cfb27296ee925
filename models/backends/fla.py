"""Every adapter to flash-linear-attention 0.6 (MIT, github.com/fla-org/flash-linear-attention).

An adapter has the name of one of our ops (models/ops), takes and returns what its `chunked` form does without chunk_size,
and all but `mesa` compute a single token without a gradient by fla's recurrent kernel. q, k and v become what v is:
bfloat16 or float16, or float32, which fla multiplies in TF32; o is in that type or float32, gates and states are float32.

Sequences of `decayed_linear_attention`, and so of `mlstm`, and of `delta_rule` get heads of SMALLEST at least, by zeros, which
change nothing. On an H200 with Triton 3.7.1 the gradient of a layer of `mlstm` at K = 16, V = 32 was off by more than half
of its norm, and by another amount at the next call. All that was tried there with two warps in chunk_bwd_kernel_dqkwg of
fla 0.6.0 is right; fla tunes it to four, in which a process died. SMALLEST is the least at which four were found right.

Sums of log-decays are float32 here. A reset, or any decay beyond it, is cut to RESET: one in a chunk leaves later decays
with an error of 1e-5, one at every token with 1e-3, where bfloat16 has 4e-3.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor
from torch.nn import functional as F

from models.backends import fla_operators as operators
from models.backends import launches, version
from models.backends.differentiable import is_traced
from models.backends.fla_launches import pin
from models.ops.mesa import Inputs, MesaState
from models.ops.mlstm import MLSTMState, by_linear_attention
from models.ops.solvers import ConjugateGradients

RESET = -128.0
"""A log-decay whose exponential is 0 in float32, no lower than that takes."""
SMALLEST = 64
"""Key and value size of a head that these kernels compute at least, see above."""
ALIGNED = 16
"""Value sizes are padded to multiples of this, so that rows begin where a GPU loads whole words."""


def obstacle() -> str | None:
    """Why flash-linear-attention can't run on a CUDA device here, with the remedy; None where nothing is in its way.

    Raises RequestError for a table of launches that the environment names and that is none.
    """
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)
    reason = obstacle_of(fla=version("fla-core"), triton=version("triton"), capability=capability)
    if reason is None:
        launches.check()
    return reason


def obstacle_of(*, fla: str | None, triton: str | None, capability: tuple[int, int]) -> str | None:
    """Why these versions (None: not installed) can't run on a device of this compute capability, with the remedy."""
    if fla is None:
        return 'flash-linear-attention is not installed: pip install "flash-linear-attention>=0.6,<0.7"'
    # The operators call functions that are not its public interface.
    if _release(fla)[:2] != (0, 6):
        return f'flash-linear-attention is {fla}, permitted is 0.6: pip install "flash-linear-attention>=0.6,<0.7"'
    if triton is None:
        return 'Triton is not installed: pip install "triton>=3.7.1"'
    if capability[0] == 9 and (3, 4, 0) <= _release(triton) < (3, 7, 1):
        return (
            f"Triton is {triton}, and from 3.4.0 to 3.7.0 it gets gated gradients wrong on a Hopper GPU "
            '(fla issue 640): pip install "triton>=3.7.1"'
        )
    return None


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def decayed_linear_attention(
    *, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """By `simple_gla`, which has no beta: it is folded into the keys."""
    key_dim, value_dim = k.shape[-1], v.shape[-1]
    smallest = 1 if _is_decoding(q) else SMALLEST
    k, log_decay = _gated(k, beta, log_decay, v.dtype)
    q, k, v, state = _padded(q, k, v, state, smallest=smallest)
    q, k, v = _operands(q, k, v)
    if _is_decoding(q):
        o, after = operators.recurrent(q, k, v, log_decay, None, state.contiguous())
    else:
        o, after, _ = operators.simple_gla(q, k, v, log_decay, state.contiguous())
    return o[..., :value_dim], after[..., :value_dim, :key_dim].contiguous()


def mlstm(
    *, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, log_beta: Tensor, state: MLSTMState
) -> tuple[Tensor, MLSTMState]:
    """Exactly, by decayed linear attention over stabilised gates; only its sums are rounded as fla does."""
    inputs = {"q": q, "k": k, "v": v, "log_decay": log_decay, "log_beta": log_beta}
    return by_linear_attention(decayed_linear_attention, **inputs, state=state)


def gla(*, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """By `gla`; log_decay is [B, T, H, K]."""
    q, k, v = _operands(q, k, v)
    if _is_decoding(q):
        return operators.recurrent(q, k, v, None, _finite(log_decay), state.contiguous())
    o, after, _ = operators.gla(q, k, v, _finite(log_decay), state.contiguous())
    return o, after


def delta_rule(*, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """By `gated_delta_rule`, gated or not: fla's ungated kernels are no faster, and know no resets. K <= 256.

    With bfloat16 q, k and v results and gradients are rounded by 0.1 to 1 %, those into log_decay and beta most, without a
    bias. A gradient summed over many tokens, as a forget gate's bias, may cancel to far less than its terms and be less
    exact, in float32 too after resets (5e-4).
    """
    if _is_decoding(q):
        after = state.clone(memory_format=torch.contiguous_format)
        return delta_rule_(q=q, k=k, v=v, log_decay=log_decay, beta=beta, state=after), after
    key_dim, value_dim = k.shape[-1], v.shape[-1]
    q, k, v, state = _padded(q, k, v, state, smallest=SMALLEST)
    q, k, v = _operands(q, k, v)
    o, after, *_ = operators.gated_delta_rule(q, k, v, _finite(log_decay), beta.float().contiguous(), state.contiguous())
    return o[..., :value_dim], after[..., :value_dim, :key_dim].contiguous()


def delta_rule_(*, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor) -> Tensor:
    """As `delta_rule`, without a gradient, the new state written over the old one, which must be contiguous; returns o."""
    assert state.is_contiguous()
    q, k, v = _operands(q, k, v)
    return operators.delta_rule_(q, k, v, _finite(log_decay), beta.float().contiguous(), state)


def mesa(inputs: Inputs, *, state: MesaState, solver: ConjugateGradients) -> tuple[Tensor, MesaState]:
    """By `mesa_net`, which solves in solver.max_steps steps of conjugate gradients in float16, whatever the residual; K = V.

    Here for comparison. It breaks a compiled graph.
    """
    from fla.ops.mesa_net import chunk_mesa_net

    pin()
    q, k, v = _operands(*inputs[:3])
    assert v.shape[-1] == k.shape[-1]
    o, H, G = chunk_mesa_net(
        q,
        k,
        v,
        _finite(inputs.log_decay),
        inputs.beta.float().contiguous(),
        inputs.regularizer.float().contiguous(),
        h_kk_init=state.H.contiguous(),
        h_kv_init=state.G.mT.contiguous(),
        output_final_state=True,
        max_CG_iteration=solver.max_steps,
    )
    return o, MesaState(G.mT, H)


def _gated(k: Tensor, beta: Tensor, log_decay: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """beta k and finite log-decays, by a kernel where no compiler joins them to what stands beside them."""
    if is_traced() or not k.is_cuda:
        return k * beta.unsqueeze(-1), _finite(log_decay)
    from models.backends.triton.gated_inputs import gated_inputs

    return gated_inputs(k, beta, log_decay, dtype=dtype, lowest=RESET)


def _padded(q: Tensor, k: Tensor, v: Tensor, state: Tensor, *, smallest: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The tensors with zeros behind, K and V from `smallest` up and V aligned: a key of zeros reads and writes nothing."""
    more_keys = max(0, smallest - k.shape[-1])
    more_values = max(-v.shape[-1] % ALIGNED, smallest - v.shape[-1])
    if not more_keys and not more_values:
        return q, k, v, state
    q, k = (F.pad(x, (0, more_keys)) for x in (q, k))
    return q, k, F.pad(v, (0, more_values)), F.pad(state, (0, more_keys, 0, more_values))


def _operands(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All of the dtype of v, which the projections gave: norms and gates are wider under autocast."""
    if v.dtype == torch.float64:
        raise ValueError("backend='fla' can't compute in float64, permitted are float32 and bfloat16 (train.autocast=bfloat16)")
    return q.to(v.dtype).contiguous(), k.to(v.dtype).contiguous(), v.contiguous()


def _finite(log_decay: Tensor) -> Tensor:
    return log_decay.float().clamp(min=RESET).contiguous()


def _is_decoding(q: Tensor) -> bool:
    return q.shape[1] == 1 and not torch.is_grad_enabled()
