"""The settings of a study: what is asked, laid over what the model itself has."""

from __future__ import annotations

from typing import Any

from conf.settings import Settings
from models.build import Model
from models.mesa.mixer import Mesa
from models.ops.solvers import SolverSettings


def own_mesa(model: Model) -> Mesa.Settings | None:
    """The settings of the first Mesa mixer in a model's pattern; None for a model without."""
    return next((mixer for mixer in model.mixers if isinstance(mixer, Mesa.Settings)), None)


def solver_of(own: SolverSettings, entry: Settings) -> dict[str, Any]:
    """The settings of a model's own solver with an entry of eval.solvers laid over them. Raises RequestError."""
    return own.replace(entry.plain()).plain()
