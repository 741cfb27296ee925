"""Momentum DeltaNet (arXiv 2605.05838) on the shared backbone of MesaNet (arXiv 2506.05233): a delta rule of two matrices.

Glossary, our name to the paper's letter: query q, key k, value v, log_decay log(alpha) and log(mu), beta beta and step size eta,
coupling c (the authors' factor), correction D, states G (S there, transposed) and M.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conf.settings import Positive, Refusal, within
from models.backends import resolve
from models.initialization import uniform_
from models.linear_rnn import DecayRates, LinearRNN
from models.mixer import State
from models.ops import momentum_delta_rule
from models.ops.momentum_delta_rule import MomentumState


class MomentumDeltaNet(LinearRNN):
    """M_t = mu_t M_{t-1} + eta_t (G_{t-1} p_t - v_t) k_t^T,   G_t = alpha_t G_{t-1} - beta_t M_t,   o_t = G_t (q_t - D k_t)

        p_t = alpha_t k_t,   eta_t = 1 + tanh(W x_t / tau),   log(mu_t) = -rate softplus(W x_t + b), momentum_floor at least
        alpha_t = decay_t / (1 + (c eta_t)^2),   beta_t = sigmoid(W x_t + b) (c eta_t)^2 / (1 + (c eta_t)^2)

    Gradient descent with momentum on |G p_t - v_t|^2, where Gated DeltaNet takes single steps and MesaNet the minimum; its two
    matrices are as large as MesaNet's where value_dim is key_dim. The learned coupling c of every head bounds alpha and beta
    together, by cos^2 and sin^2 of one angle, which keeps the oscillations of G and M stable (App. F). All gates, eta too, are
    numbers of a head and token. The correction is taken off the query before it is made a unit vector, as the authors have it.
    Their factor K^-1/2 of q is left out: behind the norm of a head it changes the weight of norm_eps alone. The biases of beta
    and of the output gate are the shared frame's.
    """

    name = "momentum_deltanet.MomentumDeltaNet"
    op = momentum_delta_rule

    class Settings(LinearRNN.Settings, kw_only=True):
        """momentum_rates: between which the rates of mu are uniform at the start. momentum_floor: the least log(mu), or None.

        tau_factor: tau is sqrt(d_model / tau_factor). coupling_max: up to which c is uniform at the start.
        read_decayed: p = alpha k, or with false p = k. output_correction: whether there is a D, uniform up to 1 at the start.
        """

        momentum_rates: DecayRates
        momentum_floor: Annotated[float, within(-1000, 0)] | None
        tau_factor: Positive
        coupling_max: Positive
        read_decayed: bool
        output_correction: bool

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.momentum_rates[0] > self.momentum_rates[1]:
                raise Refusal("momentum_rates", self.momentum_rates, "lists of 2 numbers, the lower first")

    settings: Settings

    def __init__(self, settings: Settings, *, d_model: int, backend: str) -> None:
        super().__init__(settings, d_model=d_model, backend=backend)
        self.momentum = self._decay(d_model, settings.momentum_rates)
        self.step_projection = nn.Linear(d_model, self.num_heads, bias=False)
        self.tau = math.sqrt(d_model / settings.tau_factor)
        self.log_coupling = nn.Parameter(torch.empty(self.num_heads))
        self.log_correction = nn.Parameter(torch.empty(self.num_heads)) if settings.output_correction else None

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        """log_decay and beta [B, T, H, 2], of both matrices: log(alpha) and beta of G, log(mu) and eta of M."""
        log_mu = self.momentum(x)
        if self.settings.momentum_floor is not None:
            log_mu = log_mu.clamp(min=self.settings.momentum_floor)
        eta = 1.0 + torch.tanh(self.step_projection(x).to(log_mu.dtype) / self.tau)
        coupled = (self.log_coupling.exp() * eta).square()
        log_alpha, beta = self.log_decay(x) - torch.log1p(coupled), self.beta(x) * (coupled / (1.0 + coupled))
        return {"log_decay": torch.stack([log_alpha, log_mu], dim=-1), "beta": torch.stack([beta, eta], dim=-1)}

    def _queries_and_keys(self, query_key: Tensor) -> tuple[Tensor, Tensor]:
        if self.log_correction is None:
            return super()._queries_and_keys(query_key)
        activated = query_key if self.settings.feature_map == "identity" else F.silu(query_key)
        q, k = activated.unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        both = torch.stack([q - (self.log_correction.exp().unsqueeze(-1) * k).to(q.dtype), k], dim=2)
        q, k = (F.normalize(both, dim=-1) if self.settings.feature_map == "silu_l2" else both).unbind(2)
        return q, k

    def recurrence(
        self, *, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: State
    ) -> tuple[Tensor, State]:
        (log_alpha, log_mu), (beta, eta) = log_decay.unbind(-1), beta.unbind(-1)
        p = log_alpha.exp().unsqueeze(-1) * k if self.settings.read_decayed else k
        inputs = {"q": q, "p": p, "k": eta.unsqueeze(-1) * k, "v": v}
        op = resolve(momentum_delta_rule, self.kernel, length=q.shape[1], chunk_size=self.settings.chunk_size)
        before = MomentumState(state["G"], state["M"])
        o, after = op(**inputs, log_decay=log_alpha, log_momentum=log_mu, beta=beta, state=before)
        return o, after._asdict()

    def recurrence_flops_per_token(self) -> float:
        """What G returns for the key, the outer product written into M and the read-out."""
        return 6.0 * self.num_heads * self.value_dim * self.key_dim

    def init_state(self, batch_size: int) -> State:
        state = super().init_state(batch_size)
        return {**state, "M": torch.zeros_like(state["G"])}

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator) -> None:
        super().reset_parameters(generator)
        # Downwards from the highest, which may be drawn: 0 would have no logarithm.
        uniform_(self.log_coupling, low=self.settings.coupling_max, high=0.0, generator=generator).log_()
        if self.log_correction is not None:
            uniform_(self.log_correction, low=1.0, high=0.0, generator=generator).log_()
