"""Solvers of A_t x_t = b_t for every token at once, with A_t = H_t + Lambda symmetric and, unless gates are negative, positive
definite.

A solver is a frozen set of settings with one method, `solve`. It sees the matrices through an `Operator` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypedDict

from models.ops.solvers.chebyshev import Chebyshev
from models.ops.solvers.cholesky import Cholesky
from models.ops.solvers.conjugate_gradients import ConjugateGradients
from models.ops.solvers.operator import Operator, Preconditioner, Solution
from models.ops.solvers.preconditioned import PreconditionedConjugateGradients

__all__ = [
    "SOLVERS",
    "Chebyshev",
    "Cholesky",
    "ConjugateGradients",
    "Operator",
    "PreconditionedConjugateGradients",
    "Preconditioner",
    "Solution",
    "Solver",
    "SolverSettings",
    "build_solver",
]

Solver = ConjugateGradients | PreconditionedConjugateGradients | Chebyshev | Cholesky
SOLVERS: dict[str, type[Solver]] = {
    "cg": ConjugateGradients,
    "preconditioned_cg": PreconditionedConjugateGradients,
    "chebyshev": Chebyshev,
    "cholesky": Cholesky,
}


class SolverSettings(TypedDict):
    """The settings of a solver in a model's YAML, those of `IterativeSolver` beside its name."""

    name: str
    max_steps: int
    tolerance: float
    stop: str
    initial: str
    gradient: str


def build_solver(config: Mapping[str, Any]) -> Solver:
    """The solver that `name` in a model's YAML stands for; the other keys are settings, of which it takes its own.

    Raises ValueError for a name or a setting's value that is not permitted, and for a setting that is missing.
    """
    name = config["name"]
    if name not in SOLVERS:
        raise ValueError(f"solver.name is {name!r}, permitted are {', '.join(SOLVERS)}")
    settings = [field.name for field in fields(SOLVERS[name])]
    missing = [key for key in settings if key not in config]
    if missing:
        raise ValueError(f"solver.{missing[0]} is missing, {name} needs {', '.join(settings)}")
    return SOLVERS[name](**{key: config[key] for key in settings})
