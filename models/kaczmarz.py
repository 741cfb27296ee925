"""Kaczmarz linear attention (arXiv 2605.08587), on the shared backbone of MesaNet (arXiv 2506.05233).

Glossary, our name to the paper's letter: query q, key k, value v, log_decay log(gamma), beta eta (relaxation), state G.
"""

from __future__ import annotations

from torch import Tensor

from conf.settings import Positive
from models.deltanet import DeltaNet
from models.linear_rnn import Read
from models.mixer import State


class Kaczmarz(DeltaNet):
    """G_t = gamma_t G_{t-1} (I - s_t k_t k_t^T) + s_t v_t k_t^T,   o_t = G_t q_t,   s_t = eta_t / (|k_t|^2 + eps)

    The step of Kaczmarz' method towards G k = v: with eta = 1 and eps = 0 the state returns v for k, however long k is. With
    unit keys it is Gated DeltaNet, hence a feature map that leaves the length free ("silu"). The abstract gives the step; the
    gates, the convolution and the output gate are those of Gated DeltaNet, to which the authors compare.
    """

    name = "kaczmarz.Kaczmarz"

    class Settings(DeltaNet.Settings, kw_only=True):
        """step_eps: eps, which bounds the step of a short key."""

        step_eps: Positive

    settings: Settings

    def recurrence_inputs(self, x: Tensor, state: State, *, starts: Tensor | None) -> Read:
        read = super().recurrence_inputs(x, state, starts=starts)
        k, eta = read.inputs["k"], read.inputs["beta"]
        step = eta / (k.to(eta.dtype).square().sum(-1) + self.settings.step_eps)
        return read._replace(inputs=read.inputs | {"beta": step})
