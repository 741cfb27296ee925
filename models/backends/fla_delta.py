"""The delta rules that came after the gated one, by flash-linear-attention 0.6: what holds in fla.py holds here too.

Heads get SMALLEST key and value dimensions at least, by zeros. A single token without a gradient is left to PyTorch.
"""

from __future__ import annotations

from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor
from torch.nn import functional as F

from models.backends import fla_delta_operators as operators
from models.backends.fla import ALIGNED, SMALLEST, _finite, _operands
from models.backends.fla_operators import gated_delta_rule
from models.ops.generalized_delta_rule import by_micro_step, gated


class _Steps(NamedTuple):
    """q [B, T, H, K], e, a [B, n T, H, K] and u [B, n T, H, V] of one dtype, gates in float32, padded; a is e where it was.

    beta: [B, n T, H], which e and u are still to be multiplied by.
    """

    q: Tensor
    e: Tensor
    a: Tensor
    u: Tensor
    log_decay: Tensor
    beta: Tensor
    state: Tensor


def generalized_delta_rule(
    *,
    q: Tensor,
    e: Tensor,
    a: Tensor,
    u: Tensor,
    log_decay: Tensor,
    erase: Tensor | None,
    write: Tensor | None,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """With one key and one gate by `kda`, `gated_delta_product` or `gated_delta_rule`, with gates of channels by `gdn2`.

    With two keys it is the preconditioned delta rules of fla, from which their preconditioner is left out. K <= 256.
    """
    key_dim, value_dim = e.shape[-1], u.shape[-1]
    one_step, by_channel = e.shape[1] == q.shape[1], log_decay.ndim == 4
    one_gate = write is erase and (erase is None or erase.shape[-1] == 1)
    if a is e and one_step and by_channel and _has_channels(erase, e) and _has_channels(write, u):
        steps = _prepared(q=q, e=e, a=a, u=u, log_decay=log_decay, beta=None, state=state)
        o, after = _of_gates(steps, erase, write)
    elif a is e and one_gate:
        o, after = _of_one_key(_prepared(q=q, e=e, a=a, u=u, log_decay=log_decay, beta=erase, state=state))
    else:
        if not one_gate:
            e, u, erase = gated(e, erase), gated(u, write), None
        o, after = _of_two_keys(_prepared(q=q, e=e, a=a, u=u, log_decay=log_decay, beta=erase, state=state))
    return o[..., :value_dim], after[..., :value_dim, :key_dim].contiguous()


def _has_channels(gate: Tensor | None, x: Tensor) -> TypeGuard[Tensor]:
    return gate is not None and gate.shape == x.shape


def _of_gates(steps: _Steps, erase: Tensor, write: Tensor) -> tuple[Tensor, Tensor]:
    q, k, _, v, log_decay, _, state = steps
    erase, write = (_padded(x, like.shape[-1]).to(v.dtype).contiguous() for x, like in ((erase, k), (write, v)))
    o, after, *_ = operators.gdn2(q, k, v, log_decay, erase, write, state)
    return o, after


def _of_one_key(steps: _Steps) -> tuple[Tensor, Tensor]:
    q, k, _, v, log_decay, beta, state = steps
    if log_decay.shape[1] != k.shape[1] and log_decay.ndim == 3:
        o, after, _ = operators.delta_product(q, k, v, log_decay, beta, state)
    elif q.shape[1] != k.shape[1]:
        return _of_two_keys(steps)
    elif log_decay.ndim == 3:
        o, after, *_ = gated_delta_rule(q, k, v, log_decay, beta, state)
    else:
        o, after, *_ = operators.kda(q, k, v, log_decay, beta, state)
    return o, after


def _of_two_keys(steps: _Steps) -> tuple[Tensor, Tensor]:
    """Micro-steps are tokens, of which only the last one of each has a query."""
    q, e, a, v, log_decay, beta, state = steps
    micro_steps = e.shape[1] // q.shape[1]
    if micro_steps > 1:
        q = F.pad(q.unsqueeze(2), (0, 0, 0, 0, micro_steps - 1, 0)).flatten(1, 2)
        log_decay = by_micro_step(log_decay, e.shape[1])
    if log_decay.ndim == 3:
        o, after, *_ = operators.apart(q, e, v, a, log_decay, beta, state)
    else:
        o, after, *_ = operators.apart_by_channel(q, e, v, a, log_decay, beta, state)
    return o[:, micro_steps - 1 :: micro_steps], after


def _prepared(*, q: Tensor, e: Tensor, a: Tensor, u: Tensor, log_decay: Tensor, beta: Tensor | None, state: Tensor) -> _Steps:
    """What a kernel takes, from what the op does; beta [B, n T, H, 1] or None, which is 1."""
    keys, values = max(SMALLEST, e.shape[-1]), max(SMALLEST, u.shape[-1] + -u.shape[-1] % ALIGNED)
    shared = a is e
    q, e, u = _operands(_padded(q, keys), _padded(e, keys), _padded(u, values))
    a = e if shared else _padded(a, keys).to(u.dtype).contiguous()
    state = F.pad(state, (0, keys - state.shape[-1], 0, values - state.shape[-2])).contiguous()
    log_decay = _finite(_padded(log_decay, keys) if log_decay.ndim == 4 else log_decay)
    ones = torch.ones(e.shape[:3], dtype=torch.float32, device=e.device)
    return _Steps(q, e, a, u, log_decay, ones if beta is None else beta.squeeze(-1).float().contiguous(), state)


def _padded(x: Tensor, size: int) -> Tensor:
    """Zeros behind the last dimension up to `size`, which neither read nor write, and as log-decays keep."""
    return F.pad(x, (0, size - x.shape[-1])) if x.shape[-1] < size else x
