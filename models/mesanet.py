"""MesaNet (arXiv 2506.05233): a mixer that solves a regularised least-squares problem over the past at every token.

Glossary, our name to the paper's letter: query q, key k, value v, log_decay log(gamma), beta beta (input gate),
states G and H, regularizer Lambda, forget_cap b_gamma.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.linear_rnn import LinearRNN
from models.mixer import State
from models.ops import mesa
from models.ops.solvers import build_solver


class Mesa(LinearRNN):
    """o_t = G_t (H_t + Lambda)^-1 q_t with a learned diagonal Lambda per head (eq. 4-9 and App. E).

    forget_cap: b in gamma (1 - (1 - b) beta^2), in (0, 1], or None for no cap; it bounds H where one key repeats.
    regularizer_floor: the least a Lambda can become, >= 0; regularizer_init: every Lambda at the start, above the floor.
    solver: its `name` and settings, see models/ops/solvers.py.
    The other arguments are those of LinearRNN. Raises ValueError for values outside these ranges.
    """

    def __init__(
        self,
        *,
        d_model: int,
        backend: str,
        num_heads: int,
        key_dim: int,
        value_dim: int,
        conv_width: int,
        feature_map: str,
        forget_gate_init: float | None,
        input_gate_init: float | None,
        forget_cap: float | None,
        regularizer_floor: float,
        regularizer_init: float,
        solver: Mapping[str, Any],
        norm_eps: float,
        chunk_size: int,
    ) -> None:
        super().__init__(
            d_model=d_model,
            backend=backend,
            num_heads=num_heads,
            key_dim=key_dim,
            value_dim=value_dim,
            conv_width=conv_width,
            feature_map=feature_map,
            forget_gate_init=forget_gate_init,
            input_gate_init=input_gate_init,
            norm_eps=norm_eps,
            chunk_size=chunk_size,
        )
        if forget_cap is not None and not 0.0 < forget_cap <= 1.0:
            raise ValueError(f"forget_cap is {forget_cap}, permitted are null and numbers above 0, up to 1")
        if not 0.0 <= regularizer_floor < regularizer_init:
            raise ValueError(
                f"regularizer_floor is {regularizer_floor} and regularizer_init {regularizer_init}, "
                "permitted are a floor from 0 and an initial value above it"
            )
        self.forget_cap, self.solver = forget_cap, build_solver(solver)
        self.regularizer_floor, self.regularizer_init = regularizer_floor, regularizer_init
        self.regularizer_logit = nn.Parameter(torch.empty(num_heads, key_dim))

    @property
    def regularizer(self) -> Tensor:
        """The diagonal of Lambda, [H, K]: floor + softplus(logit)."""
        return self.regularizer_floor + F.softplus(self.regularizer_logit)

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_decay, beta = super().gates(x)
        if self.forget_cap is None:
            return log_decay, beta
        return log_decay + torch.log1p((self.forget_cap - 1.0) * beta.square()), beta

    def recurrence(
        self, *, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: State
    ) -> tuple[Tensor, State]:
        inputs = {"q": q, "k": k, "v": v, "log_decay": log_decay, "beta": beta, "regularizer": self.regularizer}
        before = mesa.MesaState(state["G"], state["H"])
        if q.shape[1] == 1:
            o, after = mesa.decode(**inputs, state=before, solver=self.solver)
        else:
            o, after = mesa.chunked(**inputs, state=before, solver=self.solver, chunk_size=self.chunk_size)
        return o, after._asdict()

    @torch.no_grad()
    def trace(self, x: Tensor, state: State | None = None, *, starts: Tensor | None = None) -> mesa.SolverTrace:
        """The steps and residuals of the solver when `forward` runs on the same arguments."""
        state = self.init_state(x.shape[0]) if state is None else state
        inputs, _ = self.recurrence_inputs(x, state, starts=starts)
        before = mesa.MesaState(state["G"], state["H"])
        with torch.autocast(x.device.type, enabled=False):
            return mesa.trace(
                **inputs, regularizer=self.regularizer, state=before, solver=self.solver, chunk_size=self.chunk_size
            )

    def init_recurrent_state(self, batch_size: int) -> State:
        H = self.zeros(batch_size, self.num_heads, self.key_dim, self.key_dim)
        return {**super().init_recurrent_state(batch_size), "H": H}

    def recurrence_state_elements(self) -> int:
        return super().recurrence_state_elements() + self.num_heads * self.key_dim**2

    def recurrence_flops_per_token(self) -> float:
        """The outer products written into G and H, the solve at its maximal steps, and the read-out."""
        writes_and_read = 2.0 * self.key_dim * (self.key_dim + 2 * self.value_dim)
        return self.num_heads * (writes_and_read + self.solver.flops(self.key_dim))

    def measured_flops_per_token(self, x: Tensor, *, starts: Tensor | None = None) -> float:
        mean_steps = self.trace(x, starts=starts).steps.double().mean().item()
        saved = self.solver.flops(self.key_dim) - self.solver.flops(self.key_dim, mean_steps)
        return self.forward_flops_per_token(x.shape[1]) - self.num_heads * saved

    def reset_parameters(self, generator: torch.Generator) -> None:
        super().reset_parameters(generator)
        # The inverse of the softplus.
        nn.init.constant_(self.regularizer_logit, math.log(math.expm1(self.regularizer_init - self.regularizer_floor)))
