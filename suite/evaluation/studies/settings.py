"""The settings of a study: what is asked, laid over what the model itself has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.build import mixer_class
from models.mesanet import Mesa
from suite.request.overrides import unknown


def own_mesa(model: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The first Mesa mixer in the pattern of a model's configuration; None for a model without."""
    mixers = (model[name] for name in model["pattern"])
    return next((mixer for mixer in mixers if issubclass(mixer_class(mixer["type"]), Mesa)), None)


def merged(key: str, own: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of the list `key` laid over the settings of the model's own solver (and decoder).

    Raises RequestError for a setting that these do not have; the values are of their types already.
    """
    for name in entry:
        if name not in own:
            raise unknown(f"setting in {key}", name, own)
    return {**own, **entry}
