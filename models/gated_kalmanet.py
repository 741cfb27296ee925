"""Gated KalmaNet (arXiv 2511.21016) on the shared backbone of MesaNet (arXiv 2506.05233).

Glossary, our name to the paper's letter: query q, key k, value v, log_decay log(gamma), beta beta (input gate, in the
paper's appendix), alpha alpha, states G (U there) and H, regularizer lambda, regularizer_ratio a, solution x.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor

from conf.settings import Neutral, Positive, Refusal
from models.components import ScalarGate
from models.linear_rnn import GateStart, LinearRNN
from models.mixer import State
from models.ops import decayed_linear_attention, mesa
from models.ops.solvers import SolverSettings, build_solver

SMALLEST_REGULARIZER = 1e-6
"""Added to lambda, so that the equations of a state in which nothing has been written have a solution."""


class GatedKalmaNet(LinearRNN):
    """Ridge regression over the past whose penalty follows the keys: Mesa with lambda_t for Lambda (section 4).

        lambda_t = a |H_t|_F,   (H_t + lambda_t I) x_t = q_t,   o_t = G_t ((1 - alpha_t) q_t + alpha_t x_t)

    The condition number is at most (a + 1) / a whatever the keys and gates are, so there is neither a cap of gamma nor a
    learned penalty. alpha_t = sigmoid(w e_t + b) mixes in the read-out of gated linear attention.
    The gradient goes through lambda_t into keys, gates and the state before. The solution is differentiated implicitly, by
    the iteration that solved, on the cotangent; the range of eigenvalues that the iteration is told counts as a constant.
    The authors' beta scales k and v (input_gate_scales: keys_and_values), so that it weighs k k^T and v k^T twice; here it
    weighs these products once if nothing else is said. conf/model/gated_kalmanet.yaml has gates and convolutions as in all arms,
    gated_kalmanet_original.yaml the authors': Mamba's decay, a convolution of v too and a gate of the output. They scale
    read-outs by key_dim^-1/2, which behind the norm of a head changes the weight of norm_eps alone, and is left out.
    """

    name = "gated_kalmanet.GatedKalmaNet"

    class Settings(LinearRNN.Settings, kw_only=True):
        """alpha_init: alpha at the start. regularizer_ratio: a. solver: it can't start at the previous token, nor be
            richardson, whose step size is learned.

        input_gate_scales: what beta multiplies, the "products" k k^T and v k^T, or "keys_and_values".
        """

        input_gate_scales: Annotated[Literal["products", "keys_and_values"], Neutral("products")]
        alpha_init: GateStart
        regularizer_ratio: Positive
        solver: SolverSettings

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.solver.initial == "previous_token":
                raise Refusal("solver.initial", self.solver.initial, "zero, diagonal, query with Gated KalmaNet")
            if self.solver.name == "richardson":
                raise Refusal("solver.name", "richardson", "cg, preconditioned_cg, chebyshev, cholesky with Gated KalmaNet")

    settings: Settings

    def __init__(self, settings: Settings, *, d_model: int, backend: str) -> None:
        super().__init__(settings, d_model=d_model, backend=backend)
        self.solver = build_solver(settings.solver)
        self.alpha_gate = ScalarGate(d_model=d_model, num_heads=self.num_heads, initial=settings.alpha_init)

    @property
    def capturable(self) -> bool:
        # The solvers look whether any token goes on.
        return False

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        """log_decay, what weighs the products as beta, and alpha in (0, 1)."""
        return {**super().gates(x), "alpha": torch.sigmoid(self.alpha_gate(x))}

    def beta(self, x: Tensor) -> Tensor:
        beta = super().beta(x)
        return beta.square() if self.settings.input_gate_scales == "keys_and_values" else beta

    def recurrence(
        self, *, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, alpha: Tensor, state: State
    ) -> tuple[Tensor, State]:
        inputs = {"q": q, "k": k, "v": v, "log_decay": log_decay, "beta": beta}
        regularizer = self.regularizer(k=k, log_decay=log_decay, beta=beta, H=state["H"]).unsqueeze(-1).expand(q.shape)
        solve = mesa.decode if q.shape[1] == 1 else partial(mesa.chunked, chunk_size=self.settings.chunk_size)
        before = mesa.MesaState(state["G"], state["H"])
        solved, after = solve(mesa.Inputs(**inputs, regularizer=regularizer), state=before, solver=self.solver)
        if q.shape[1] == 1:
            unsolved = torch.einsum("bhvk,bthk->bthv", after.G, q.to(after.G.dtype))
        else:
            unsolved, _ = decayed_linear_attention.chunked(**inputs, state=state["G"], chunk_size=self.settings.chunk_size)
        return torch.lerp(unsolved, solved, alpha.unsqueeze(-1).to(solved.dtype)), {"G": after.G, "H": after.H}

    def regularizer(self, *, k: Tensor, log_decay: Tensor, beta: Tensor, H: Tensor) -> Tensor:
        """lambda_t [B, T, H] from the keys and gates, and H before them."""
        if k.shape[1] == 1:
            decay_t, beta_t = (x[:, 0, :, None, None].to(H.dtype) for x in (log_decay.exp(), beta))
            k_t = k[:, 0].unsqueeze(-1).to(H.dtype)
            norm = torch.linalg.matrix_norm(decay_t * H + (beta_t * k_t) @ k_t.mT).unsqueeze(1)
        else:
            norm = mesa.frobenius_norm(k=k, log_decay=log_decay, beta=beta, sign=None, H=H, chunk_size=self.settings.chunk_size)
        return self.settings.regularizer_ratio * norm + SMALLEST_REGULARIZER

    def init_state(self, batch_size: int) -> State:
        H = self.zeros(batch_size, self.num_heads, self.key_dim, self.key_dim)
        return {**super().init_state(batch_size), "H": H}

    def recurrence_flops_per_token(self) -> float:
        """The outer products written into G and H, that of the norm, the solve at its maximal steps, and two read-outs."""
        writes_and_reads = 2.0 * self.key_dim * (2 * self.key_dim + 3 * self.value_dim)
        return self.num_heads * (writes_and_reads + self.solver.flops(self.key_dim))
