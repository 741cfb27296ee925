"""From a model's configuration to the model."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from models.backbone import LanguageModel
from models.mixer import SequenceMixer

RESERVED = ("d_model", "backend", "type")


def mixer_class(type_name: str) -> type[SequenceMixer]:
    """The class named "module.Class" in this package, e.g. "mesanet.Mesa".

    Raises ValueError for anything else: a configuration names a mixer, it can't name arbitrary code.
    """
    module_name, _, class_name = type_name.rpartition(".")
    if not module_name.isidentifier():
        raise ValueError(f"mixer type {type_name!r} is not of the form module.Class, e.g. mesanet.Mesa")
    try:
        module = importlib.import_module(f"models.{module_name}")
    except ModuleNotFoundError as error:
        raise ValueError(f"mixer type {type_name!r}: there is no module models/{module_name}.py") from error
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, SequenceMixer)):
        raise ValueError(f"mixer type {type_name!r}: models/{module_name}.py has no SequenceMixer {class_name!r}")
    return found


def build_mixer(config: Mapping[str, Any], *, d_model: int, backend: str) -> SequenceMixer:
    """One mixer from its configuration: `type` names the class, the other keys are its constructor's arguments."""
    arguments = {key: value for key, value in config.items() if key not in RESERVED}
    return mixer_class(config["type"])(d_model=d_model, backend=backend, **arguments)


def build_model(model: Mapping[str, Any], size: Mapping[str, Any], *, vocab_size: int, backend: str) -> LanguageModel:
    """The language model of a resolved `model` and `size` configuration.

    model: `pattern` lists which keys of `model` hold the mixers of consecutive blocks, repeated to the depth;
    [mixer] is one mixer throughout, [hawk, mesa] alternates two.
    size: d_model, num_blocks, mlp_dim, norm_eps, logit_soft_cap.
    Parameters are not filled: call `reset_parameters(seed)`.
    """
    pattern = list(model["pattern"])
    for name in pattern:
        if name not in model or "type" not in model[name]:
            raise ValueError(f"model.pattern names {name!r}, but model.{name} is not a mixer with a type")
    mixers = [
        build_mixer(model[pattern[i % len(pattern)]], d_model=size["d_model"], backend=backend) for i in range(size["num_blocks"])
    ]
    return LanguageModel(
        vocab_size=vocab_size,
        d_model=size["d_model"],
        mlp_dim=size["mlp_dim"],
        mixers=mixers,
        norm_eps=size["norm_eps"],
        logit_soft_cap=size["logit_soft_cap"],
    )
