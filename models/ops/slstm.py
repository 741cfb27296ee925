"""The sLSTM cell of xLSTM (arXiv 2405.04517, section 2.2): an LSTM with exponential gates, whose heads are mixed within.

    (i~, f~, z~, o~)_t = g_t + R h_{t-1}
    c_t = f_t c_{t-1} + i_t tanh(z~_t),   n_t = f_t n_{t-1} + i_t,   h_t = sigmoid(o~_t) c_t / n_t
    f_t = sigmoid(f~_t),   i_t = exp(i~_t)

i is unbounded, so the state holds exp(-m) c and exp(-m) n with m_t = max(log f_t + m_{t-1}, i~_t), which no h depends on. Where
nothing has been written n is 0, and what m says of it is nothing: then m_t = i~_t. Else n is at least 1.

What the gates read of the token before makes it sequential: there is no chunked form.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class SLSTMState(NamedTuple):
    """h, c, n, m: [B, H, V] in float32 or wider, all 0 at first; c and n times exp(-m)."""

    h: Tensor
    c: Tensor
    n: Tensor
    m: Tensor


def recurrent(*, gates: Tensor, weight: Tensor, starts: Tensor | None, state: SLSTMState) -> tuple[Tensor, SLSTMState]:
    """The definition, a token at a time, in the dtype of the state.

    gates: g [B, T, H, 4 V], the logits of i, f, z and o in that order. weight: R [H, V, 4 V], whose rows read h. starts:
    [B, T] bool; what came before is forgotten there. Returns all h [B, T, H, V] and the state after the last token. m is a
    constant to the gradient.
    """
    # A head at a time, as the products with R need it: [H, B, V].
    h, c, n, m = (x.transpose(0, 1) for x in state)
    weight, outputs = weight.to(h.dtype), []
    fresh = [None] * gates.shape[1] if starts is None else starts.unsqueeze(-1).unbind(1)
    for gates_t, fresh_t in zip(gates.to(h.dtype).permute(1, 2, 0, 3).unbind(0), fresh, strict=True):
        if fresh_t is not None:
            h, c, n = (x.masked_fill(fresh_t, 0.0) for x in (h, c, n))
        log_i, f, z, o = torch.baddbmm(gates_t, h, weight).chunk(4, dim=-1)
        # Masked before the exponential, whose gradient would be NaN.
        log_f = (F.logsigmoid(f) + m).masked_fill(n == 0.0, float("-inf"))
        m = torch.maximum(log_f, log_i).detach()
        i, f = (log_i - m).exp(), (log_f - m).exp()
        c, n = f * c + i * torch.tanh(z), f * n + i
        h = torch.sigmoid(o) * c / n
        outputs.append(h)
    return torch.stack(outputs).permute(2, 0, 1, 3), SLSTMState(*(x.transpose(0, 1) for x in (h, c, n, m)))
