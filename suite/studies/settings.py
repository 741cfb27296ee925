"""The settings of a study: what is asked, laid over what the model itself has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.build import mixer_class
from models.mesanet import Mesa
from suite.ranges import is_whole
from suite.request import RequestError, unknown


def own_mesa(model: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The first Mesa mixer in the pattern of a model's configuration; None for a model without."""
    mixers = (model[name] for name in model["pattern"])
    return next((mixer for mixer in mixers if issubclass(mixer_class(mixer["type"]), Mesa)), None)


def merged(key: str, own: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of the list `key` laid over the settings of the model's own solver (and decoder).

    Raises RequestError for a setting that these do not have, and for a value of another kind.
    """
    for name in entry:
        if name not in own:
            raise unknown(f"setting in {key}", name, own)
    return {name: _of_its_kind(f"{key}: {name}", name, value) for name, value in {**own, **entry}.items()}


def _of_its_kind(what: str, name: str, value: object) -> Any:
    if name == "refresh" and value is None:
        return None
    if name in ("max_steps", "refresh"):
        permitted, is_permitted = "a whole number from 0", is_whole(value, 0)
    elif name == "tolerance":
        permitted, is_permitted = "a number", isinstance(value, int | float) and not isinstance(value, bool)
    else:
        permitted, is_permitted = "a name", isinstance(value, str)
    if not is_permitted:
        raise RequestError(f"{what} is {value!r}, permitted is {permitted}")
    # 0 and 0.0 are one number, and must give a stage one name.
    return float(value) if name == "tolerance" else value
