"""Longhorn (arXiv 2407.14207) on the shared backbone of MesaNet (arXiv 2506.05233): online regression, solved implicitly.

Glossary, our name to the paper's letter: query q, key k, value v (x there), beta beta (how much the new pair weighs),
step size Delta (epsilon in the paper's closed form), state G (S there).
"""

from __future__ import annotations

from torch import Tensor

from models.deltanet import DeltaNet
from models.linear_rnn import Read
from models.mixer import State


class Longhorn(DeltaNet):
    """G_t = argmin_G |G - gamma_t G_{t-1}|^2 + beta_t |G k_t - v_t|^2, o_t = G_t q_t.

    The minimum in closed form is a delta rule whose step shrinks as the key grows, so that no key is too long:

        G_t = gamma_t G_{t-1} (I - Delta_t k_t k_t^T) + Delta_t v_t k_t^T,   Delta_t = beta_t / (1 + beta_t |k_t|^2)

    It is a DeltaNet of unit keys k / |k| and values v / |k| whose gate is beta |k|^2 / (1 + beta |k|^2): with keys of one
    length nothing but another gate, hence a feature map that leaves the length free ("silu").
    The authors keep only the diagonal of k k^T, which makes the recurrence elementwise, and have a beta for every
    channel of v and no forget gate (gamma = 1); this is the whole update, with one beta a head as in all arms here.
    """

    name = "longhorn.Longhorn"

    def recurrence_inputs(self, x: Tensor, state: State, *, starts: Tensor | None) -> Read:
        read = super().recurrence_inputs(x, state, starts=starts)
        return read._replace(inputs=read.inputs | {"beta": step_size(read.inputs["k"], read.inputs["beta"])})


def step_size(k: Tensor, beta: Tensor) -> Tensor:
    """Delta [B, T, H], in [0, 1 / |k|^2]."""
    return beta / (1.0 + beta * k.to(beta.dtype).square().sum(-1))
