"""What a study of Mesa layers asks of a model's settings."""

from __future__ import annotations

from models.build import Model
from models.mesa.mixer import Mesa


def own_mesa(model: Model) -> Mesa.Settings | None:
    """The settings of the first Mesa mixer in a model's pattern; None for a model without."""
    return next((mixer for mixer in model.mixers if isinstance(mixer, Mesa.Settings)), None)
