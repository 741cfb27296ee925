"""MesaNet (arXiv 2506.05233): a mixer that solves a regularised least-squares problem over the past at every token.

Glossary, our name to the paper's letter: query q, key k, value v, log_decay log(|gamma|) and sign that of gamma, beta beta
(input gate), states G and H, regularizer Lambda, forget_cap b_gamma. Beside the paper's: x the last solution, R the
inverse of H + Lambda.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conf.settings import LARGEST, Count, Neutral, Positive, Refusal, above, between, within, words
from models.attention import positions_in_document
from models.linear_rnn import GateStart, LinearRNN
from models.mixer import State
from models.ops import mesa
from models.ops.mesa import sherman_morrison
from models.ops.solvers import SMALLEST_RESIDUAL, SOLVERS, Solver, SolverSettings, build_solver
from models.ops.solvers.conjugate_gradients import ConjugateGradients
from models.ops.solvers.iteration import IterativeSolver
from models.ops.solvers.richardson import Richardson

SMALLEST_DECAY = 1e-6
"""The least |gamma| of a gate that may change its sign: nearer to 0 its logarithm's gradient is cut off, and would overflow."""

SIGNIFICANT_BITS = {"tf32": 11, "bfloat16": 8}

UNSOLVED = ConjugateGradients(max_steps=0, tolerance=0.0, stop="right_hand_side", initial="query", gradient="unrolled")
"""x = q, with the gradient of that: H and Lambda have no part in it."""


class Mesa(LinearRNN):
    """o_t = G_t (H_t + Lambda)^-1 q_t with a learned diagonal Lambda per head (eq. 4-9 and App. E)."""

    name = "mesanet.Mesa"
    op = mesa

    class Settings(LinearRNN.Settings, kw_only=True):
        """forget_cap: b in |gamma| (1 - (1 - b) beta^2), None for no cap; it bounds H where one key repeats.

        regularizer_floor: the least a Lambda can become; regularizer_init: every Lambda at the start, above the floor.
        step_size_init: with solver.name=richardson the step size of every head at the start, which is learned as
            softplus(logit) and is safe below 2 / (the largest eigenvalue of H + Lambda). For keys of unit length, an input gate
            beta and a forget gate gamma that eigenvalue is at most Lambda + beta / (1 - gamma), where all keys are one.
        solve_precision: the digits of what products with H + Lambda take, in training as well; they sum in float32, and states,
            gates, the read-out from G and what a product of two parts passes on are as ever. "tf32" has those of float16, too,
            and "float32" rounds nothing.
        random_steps: k, by which the solver takes 0..k steps at most in training, drawn anew for every batch (one number for
            all layers), or None for the solver as it is. Evaluation has the solver as it is.
        solve_from: so many first steps of training have x = q, as though the layer were gated linear attention, and are computed
            by PyTorch on any backend; None: the solver is there from the first step on. Evaluation has the solver.
        signed_decay: gamma = tanh(logit) in place of sigmoid(logit), so that a state can turn its sign (App. I). Then
            forget_gate_init is gamma at the start, and H + Lambda may lose its definiteness: `observe` tells.
        decode: how a single token is solved, by the "solver" or by "sherman_morrison" (ops/mesa/sherman_morrison.py), which is
            another function where gates forget. refresh: n, by which that inverts anew at every n-th token of a document,
            or None.
        """

        forget_gate_init: Annotated[float, between(-1, 1)] | None
        forget_cap: Annotated[float, above(0, 1)] | None
        regularizer_floor: Annotated[float, within(0, LARGEST)]
        regularizer_init: Positive
        step_size_init: Annotated[Positive, Neutral(0.07)]
        solver: SolverSettings
        solve_precision: Annotated[Literal["float32", "tf32", "bfloat16"], Neutral("float32")]
        random_steps: Annotated[Count | None, Neutral(None)]
        solve_from: Annotated[Count | None, Neutral(None)]
        signed_decay: Annotated[bool, Neutral(False)]
        decode: Annotated[Literal["solver", "sherman_morrison"], Neutral("solver")]
        refresh: Annotated[Count | None, Neutral(None)]

        @property
        def drawn_by_step(self) -> tuple[str, ...]:
            return tuple(name for name in ("random_steps", "solve_from") if getattr(self, name) is not None)

        def __post_init__(self) -> None:
            super().__post_init__()
            start = self.forget_gate_init
            if start is not None and start <= 0.0 and not self.signed_decay:
                raise Refusal("forget_gate_init", start, f"without signed_decay {words(GateStart)}, null")
            if self.regularizer_floor >= self.regularizer_init:
                raise Refusal("regularizer_init", self.regularizer_init, f"numbers above the floor, {self.regularizer_floor}")
            if self.solve_precision != "float32" and self.solver.name == "cholesky":
                raise Refusal("solve_precision", self.solve_precision, "float32 with solver.name=cholesky, which has no products")
            if self.solve_precision != "float32" and self.solver.is_beyond_float32:
                raise Refusal("solve_precision", self.solve_precision, f"float32 with a tolerance below {SMALLEST_RESIDUAL:g}")
            if self.random_steps is not None and self.solver.name == "cholesky":
                raise Refusal("random_steps", self.random_steps, "null with solver.name=cholesky, which takes no steps")
            if self.decode == "solver" and self.refresh is not None:
                raise Refusal("refresh", self.refresh, "null with decode=solver")
            if self.decode == "sherman_morrison" and self.signed_decay:
                raise Refusal("decode", self.decode, "solver with signed_decay: Lambda would turn negative")
            if self.decode == "sherman_morrison" and self.solver.initial == "previous_token":
                raise Refusal("solver.initial", self.solver.initial, "zero, diagonal, query with decode=sherman_morrison")

    settings: Settings

    def __init__(self, settings: Settings, *, d_model: int, backend: str) -> None:
        super().__init__(settings, d_model=d_model, backend=backend)
        gamma = settings.forget_gate_init
        if settings.signed_decay and self.forget_gate is not None and gamma is not None:
            # sigmoid(b) of the bias b with tanh(b) = gamma, by which a gate is told where to start.
            self.forget_gate.initial = 1.0 / (1.0 + math.sqrt((1.0 - gamma) / (1.0 + gamma)))
        self.steps_of_batch: int | None = None
        self.waits = False
        self.regularizer_logit = nn.Parameter(torch.empty(self.num_heads, self.key_dim))
        self.step_size_logit: nn.Parameter | None = None
        if settings.solver.name == "richardson":
            self.step_size_logit = nn.Parameter(torch.empty(self.num_heads))
        self.solve_by(settings)

    def solve_by(self, settings: Settings) -> None:
        """From now on has the solver and the way of decoding of these settings; a state from before may lack what they need.

        Raises Refusal for richardson in a layer that was built for another solver, and so has no step size.
        """
        if settings.solver.name == "richardson" and self.step_size_logit is None:
            others = ", ".join(name for name in SOLVERS if name != "richardson")
            raise Refusal("solver.name", "richardson", f"{others} in a layer that was trained by another solver")
        self.settings, self.solver = settings, build_solver(settings.solver)

    @property
    def regularizer(self) -> Tensor:
        """The diagonal of Lambda, [H, K]: floor + softplus(logit)."""
        return self.settings.regularizer_floor + _softplus(self.regularizer_logit)

    def begin_step(self, *, seed: int, step: int) -> None:
        self.waits = self.settings.solve_from is not None and step < self.settings.solve_from
        if self.settings.random_steps is not None:
            generator = np.random.Generator(np.random.Philox(key=[seed, step]))
            self.steps_of_batch = int(generator.integers(self.settings.random_steps + 1))

    @property
    def capturable(self) -> bool:
        # The solvers in PyTorch look whether any token goes on; fla's call, which is not in place, is kept from torch.compile.
        return self.kernel is not None and self.kernel.in_place is not None

    def solver_in_use(self, batch_size: int) -> Solver:
        """The layer's solver with its precision and its heads' step sizes, in training with what `begin_step` decided."""
        if self.training and self.waits:
            return UNSOLVED
        solver = self.solver
        if self.settings.solve_precision != "float32" and isinstance(solver, IterativeSolver):
            solver = replace(solver, bits=SIGNIFICANT_BITS[self.settings.solve_precision])
        if self.training and self.steps_of_batch is not None and isinstance(solver, IterativeSolver):
            solver = replace(solver, max_steps=self.steps_of_batch)
        if isinstance(solver, Richardson) and self.step_size_logit is not None:
            solver = replace(solver, step_size=_softplus(self.step_size_logit).repeat(batch_size))
        return solver

    def gates(self, x: Tensor) -> dict[str, Tensor | None]:
        """The gates of the base class, and `sign` [B, T, H] of 1 and -1, None where gamma is positive anyway."""
        sign = None
        if self.settings.signed_decay and self.forget_gate is not None:
            gamma = torch.tanh(self.forget_gate(x))
            log_decay, sign = gamma.abs().clamp_min(SMALLEST_DECAY).log(), torch.where(gamma < 0.0, -1.0, 1.0).to(gamma.dtype)
        else:
            log_decay = self.log_decay(x)
        beta = self.beta(x)
        if self.settings.forget_cap is not None:
            log_decay = log_decay + torch.log1p((self.settings.forget_cap - 1.0) * beta.square())
        return {"log_decay": log_decay, "beta": beta, "sign": sign}

    def recurrence(
        self, *, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, sign: Tensor | None, state: State
    ) -> tuple[Tensor, State]:
        before, solver = mesa.MesaState(state["G"], state["H"], state.get("x")), self.solver_in_use(len(q))
        if solver is UNSOLVED:
            # So that every parameter has a gradient, for which several processes wait.
            q = q + 0.0 * sum(parameter.sum() for parameter in self.parameters(recurse=False))
        inputs = mesa.Inputs(q, k, v, log_decay, beta, self.regularizer, sign)
        if self.kernel is not None and solver is not UNSOLVED:
            # Kernels know positive gates alone, and are not chosen for others.
            o, after = self.kernel.computes(inputs, state=before, solver=solver)
            return o, {"G": after.G, "H": after.H}
        single, by_inverse = q.shape[1] == 1, self.settings.decode == "sherman_morrison"
        age = self._age(log_decay, state) if by_inverse else {}
        if single and by_inverse:
            inverse = sherman_morrison.InverseState(state["G"], state["H"], state["R"])
            due = age["age"] == 0 if age else torch.zeros(len(q), dtype=torch.bool, device=q.device)
            o, after = sherman_morrison.decode(inputs, state=inverse, due=due)
        else:
            op = mesa.decode if single else partial(mesa.chunked, chunk_size=self.settings.chunk_size)
            o, after = op(inputs, state=before, solver=solver)
        held = {name: x for name, x in after._asdict().items() if x is not None} | age
        if by_inverse and not single:
            held["R"] = sherman_morrison.invert(after.H, self.regularizer)
        return o, held

    def recurrence_(self, inputs: dict[str, Tensor | None], state: State) -> Tensor:
        if self.kernel is None or self.kernel.in_place is None:
            return super().recurrence_(inputs, state)
        read = mesa.Inputs(**inputs, regularizer=self.regularizer)
        solver = self.solver_in_use(len(read.q))
        return self.kernel.in_place(read, state=mesa.MesaState(state["G"], state["H"]), solver=solver)

    def _age(self, log_decay: Tensor, state: State) -> State:
        """`age` [B] int64: the tokens of the document so far, modulo refresh."""
        if self.settings.refresh is None:
            return {}
        position = positions_in_document(state["age"], (log_decay == float("-inf")).all(-1))
        return {"age": (position[:, -1] + 1) % self.settings.refresh}

    @torch.no_grad()
    def observe(
        self, x: Tensor, state: State | None = None, *, starts: Tensor | None = None, spectrum: bool
    ) -> dict[str, Tensor]:
        """What the layer does when `forward` runs on the same arguments, by PyTorch's solver, by name, all [B, T, H].

        beta; gamma, with its sign, 0 at a start; regularizer, the mean over K; and the fields of the solver's trace, of
        which smallest and largest, the extreme eigenvalues of H + Lambda, only with `spectrum`. smallest <= 0 says that
        H + Lambda is not positive definite, where a solver has no minimum to find.
        """
        state = self.init_state(x.shape[0]) if state is None else state
        inputs = self.recurrence_inputs(x, state, starts=starts).inputs
        before = mesa.MesaState(state["G"], state["H"], state.get("x"))
        read, solver = mesa.Inputs(**inputs, regularizer=self.regularizer), self.solver_in_use(len(x))
        with torch.autocast(x.device.type, enabled=False):
            trace = mesa.trace(read, state=before, solver=solver, chunk_size=self.settings.chunk_size, spectrum=spectrum)
        gamma = read.log_decay.exp() * (1.0 if read.sign is None else read.sign)
        named = {"beta": read.beta, "gamma": gamma, "regularizer": read.regularizer.mean(-1).expand_as(read.beta)}
        return named | {name: y for name, y in trace._asdict().items() if y is not None}

    def init_state(self, batch_size: int) -> State:
        H = self.zeros(batch_size, self.num_heads, self.key_dim, self.key_dim)
        state = {**super().init_state(batch_size), "H": H}
        if self.solver.initial == "previous_token":
            state["x"] = self.zeros(batch_size, self.num_heads, self.key_dim)
        if self.settings.decode == "sherman_morrison":
            state["R"] = sherman_morrison.invert(H, self.regularizer)
        if self.settings.refresh is not None:
            state["age"] = torch.zeros(batch_size, dtype=torch.int64, device=H.device)
        return state

    @property
    def steps_as_it_reads(self) -> bool:
        return self.settings.decode == "solver"

    def recurrence_flops_per_token(self) -> float:
        """The outer products written into G and H, the solve at its maximal steps, and the read-out.

        In place of the solve, Sherman-Morrison has R k, an outer product and R q, and an inversion (2 K^3) when one is due.
        """
        K = self.key_dim
        solve = self.solver.flops(K)
        if self.settings.decode == "sherman_morrison":
            solve = 6.0 * K**2 + (0.0 if self.settings.refresh is None else 2.0 * K**3 / self.settings.refresh)
        return self.num_heads * (2.0 * K * (K + 2 * self.value_dim) + solve)

    def measured_flops_per_token(self, x: Tensor, *, starts: Tensor | None = None) -> float:
        declared = self.forward_flops_per_token(x.shape[1])
        if self.settings.decode == "sherman_morrison":
            return declared
        steps = self.observe(x, starts=starts, spectrum=False)["steps"]
        taken, counts = (numbers.tolist() for numbers in steps.unique(return_counts=True))
        spent = sum(n * self.solver.flops(self.key_dim, used) for used, n in zip(taken, counts, strict=True)) / steps.numel()
        return declared - self.num_heads * (self.solver.flops(self.key_dim) - spent)

    def reset_parameters(self, generator: torch.Generator) -> None:
        super().reset_parameters(generator)
        start = self.settings.regularizer_init - self.settings.regularizer_floor
        nn.init.constant_(self.regularizer_logit, _inverse_softplus(start))
        if self.step_size_logit is not None:
            nn.init.constant_(self.step_size_logit, _inverse_softplus(self.settings.step_size_init))


def _softplus(logit: Tensor) -> Tensor:
    """In float32 or wider."""
    return F.softplus(logit.to(torch.promote_types(logit.dtype, torch.float32)))


def _inverse_softplus(y: float) -> float:
    """log(exp(y) - 1), in a form that does not overflow."""
    return y + math.log(-math.expm1(-y))
