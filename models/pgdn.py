"""Preconditioned Gated DeltaNet and KDA (PGDN, PKDA, arXiv 2604.21100), on the shared backbone of MesaNet (arXiv 2506.05233).

Glossary, our name to the paper's letter: query q, key k, value v, log_decay log(gamma), beta beta, state G (S, transposed);
second moment of the keys A with moment_log_decay log(gamma^A) and moment_beta beta^A, preconditioner M, center c.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from conf.settings import Refusal, above, within
from models.backends import load, resolve
from models.components import MambaDecay, ScalarGate
from models.kda import KDA
from models.linear_rnn import DecayRates, GateStart, NormEps
from models.mixer import State
from models.ops import rglru


class PreconditionedDeltaNet(KDA):
    """What is written goes along M k in place of k, where M shrinks the channels that past keys were large in:

        A_t = gamma^A_t A_{t-1} + beta^A_t k_t * k_t,   r_t = log(A_t + eps) - c,   M_t = x^(-r_t / (1 + |r_t|))
        G_t = G_{t-1} Diag(gamma_t) (I - beta_t k_t (M_t * k_t)^T) + beta_t v_t (M_t * k_t)^T,   o_t = G_t q_t

    A in R^K is a diagonal of Mesa's H and M, in [1/x, x], the part of an inverse. gamma is a number a head (PGDN) or a channel
    (PKDA). The factor K^-1/2 of the read-out is left out: behind the norm of a head it changes the weight of norm_eps alone.
    """

    name = "pgdn.PreconditionedDeltaNet"

    class Settings(KDA.Settings, kw_only=True):
        """decay_per: what has a gamma of its own; with "head" decay_rank and decay_bound are None.

        moment_decay_rates: of gamma^A, as decay_rates is of gamma. moment_gate_init: beta^A at the start. squash: x, up to
            which the rule is stable with unit keys and beta up to 1. squash_eps: eps. center_init: every c at the start; a head
            has one.
        """

        decay_per: Literal["head", "channel"]
        moment_decay_rates: DecayRates
        moment_gate_init: GateStart
        squash: Annotated[float, above(1, 2)]
        squash_eps: NormEps
        center_init: Annotated[float, within(-100, 100)]

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("decay_rank", "decay_bound"):
                if self.decay_per == "head" and getattr(self, name) is not None:
                    raise Refusal(name, getattr(self, name), "null with decay_per=head")
            if self.moment_decay_rates[0] > self.moment_decay_rates[1]:
                raise Refusal("moment_decay_rates", self.moment_decay_rates, "lists of 2 numbers, the lower first")

    settings: Settings

    def __init__(self, settings: Settings, *, d_model: int, backend: str) -> None:
        super().__init__(settings, d_model=d_model, backend=backend)
        self.moment_decay = self._scalar_decay(d_model, settings.moment_decay_rates)
        self.moment_gate = ScalarGate(d_model=d_model, num_heads=self.num_heads, initial=settings.moment_gate_init)
        self.center = nn.Parameter(torch.empty(self.num_heads))

    def compute_by(self, backend: str) -> None:
        """Beside a backend other than PyTorch, which has a kernel for G, A is computed by our own scan."""
        super().compute_by(backend)
        self.scan = None if backend == "torch" else load(rglru, "triton")

    def _decay(self, d_model: int, rates: DecayRates) -> MambaDecay:
        by_head = self.settings.decay_per == "head"
        return self._scalar_decay(d_model, rates) if by_head else super()._decay(d_model, rates)

    def _scalar_decay(self, d_model: int, rates: DecayRates) -> MambaDecay:
        return MambaDecay(d_model=d_model, num_heads=self.num_heads, channels=None, rank=None, bound=None, rates=rates)

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        """The gates of the base class, and those of A, [B, T, H]."""
        moment = {"moment_log_decay": self.moment_decay(x), "moment_beta": torch.sigmoid(self.moment_gate(x))}
        return {**super().gates(x), **moment}

    def mix(self, inputs: dict[str, Tensor], state: State) -> tuple[Tensor, State]:
        q, k, v, log_decay = (inputs[name] for name in ("q", "k", "v", "log_decay"))
        beta, k = inputs["beta"].unsqueeze(-1), k.to(state["A"].dtype)
        moments, A = self._moments(k, inputs["moment_log_decay"], inputs["moment_beta"], state["A"])
        keys = {"q": q, "e": k, "a": self.preconditioner(moments) * k, "u": v}
        o, after = self.by_op({**keys, "log_decay": log_decay, "erase": beta, "write": beta}, state)
        return o, {**after, "A": A}

    def _moments(self, k: Tensor, log_decay: Tensor, beta: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
        """A behind every token [B, T, H, K] and behind the last: K diagonal recurrences a head, which share their gates."""
        op = resolve(rglru, self.scan, length=k.shape[1], chunk_size=self.settings.chunk_size)
        log_decay = log_decay.to(A.dtype).unsqueeze(-1).expand_as(k)
        u = beta.unsqueeze(-1) * k.square()
        moments, last = op(log_decay=log_decay.flatten(2), u=u.flatten(2), state=A.flatten(1))
        return moments.view_as(k), last.view_as(A)

    def preconditioner(self, A: Tensor) -> Tensor:
        """M [B, T, H, K] of moments A."""
        r = torch.log(A + self.settings.squash_eps) - self.center.to(A.dtype).unsqueeze(-1)
        return torch.exp(-math.log(self.settings.squash) * r / (1.0 + r.abs()))

    def init_state(self, batch_size: int) -> State:
        return {**super().init_state(batch_size), "A": self.zeros(batch_size, self.num_heads, self.key_dim)}

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator) -> None:
        super().reset_parameters(generator)
        nn.init.constant_(self.center, self.settings.center_init)
