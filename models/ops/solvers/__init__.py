"""Solvers of A_t x_t = b_t for every token at once, with A_t = H_t + Lambda symmetric and, unless gates are negative, positive
definite.

A solver is a frozen set of settings with one method, `solve`. It sees the matrices through an `Operator` alone.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Literal

from conf.settings import Natural, Neutral, Refusal, Settings, below
from models.ops.solvers.chebyshev import Chebyshev
from models.ops.solvers.cholesky import Cholesky
from models.ops.solvers.conjugate_gradients import ConjugateGradients
from models.ops.solvers.preconditioned import PreconditionedConjugateGradients
from models.ops.solvers.richardson import Richardson

Solver = ConjugateGradients | PreconditionedConjugateGradients | Chebyshev | Richardson | Cholesky
SOLVERS: dict[str, type[Solver]] = {
    "cg": ConjugateGradients,
    "preconditioned_cg": PreconditionedConjugateGradients,
    "chebyshev": Chebyshev,
    "richardson": Richardson,
    "cholesky": Cholesky,
}
SMALLEST_RESIDUAL = 2e-7
"""The least tolerance that float32 can tell; for a smaller one solvers go on in more digits."""


class SolverSettings(Settings, kw_only=True):
    """The settings of a solver in a model's YAML: its name and what an `IterativeSolver` takes; Cholesky needs none of that."""

    name: Literal["cg", "preconditioned_cg", "chebyshev", "richardson", "cholesky"]
    max_steps: Natural
    tolerance: Annotated[float, below(0, 1)]
    stop: Literal["right_hand_side", "initial_residual"]
    initial: Annotated[Literal["zero", "diagonal", "query", "previous_token"], Neutral("diagonal")]
    gradient: Annotated[Literal["implicit", "unrolled"], Neutral("implicit")]

    def __post_init__(self) -> None:
        if self.name == "richardson" and self.gradient == "implicit":
            # A solution does not depend on the step size, which would learn nothing.
            raise Refusal("gradient", self.gradient, "unrolled with solver.name=richardson, whose step size is learned")

    @property
    def is_beyond_float32(self) -> bool:
        """Whether the tolerance is one that float32 can't tell. Without a tolerance (0) all steps are taken, in float32."""
        return 0.0 < self.tolerance < SMALLEST_RESIDUAL


def build_solver(settings: SolverSettings) -> Solver:
    """The solver that the settings name, with those of its own; what a layer learns, it gives itself."""
    solver, known = SOLVERS[settings.name], settings.plain()
    return solver(**{field.name: known[field.name] for field in fields(solver) if field.name in known})
