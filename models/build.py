"""From a model's configuration to the model."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any, get_type_hints

from models.backbone import LanguageModel
from models.mixer import SequenceMixer
from models.regressor import Regressor

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
    if not (isinstance(found, type) and issubclass(found, SequenceMixer)) or inspect.isabstract(found):
        raise ValueError(f"mixer type {type_name!r}: models/{module_name}.py has no SequenceMixer {class_name!r}")
    return found


def mixer_settings(type_name: str) -> dict[str, Any]:
    """The types of the settings of a mixer, as its constructor's annotations say. Raises ValueError as `mixer_class`."""
    hints = get_type_hints(mixer_class(type_name).__init__)
    return {key: hint for key, hint in hints.items() if key not in (*RESERVED, "return")}


def build_mixer(config: Mapping[str, Any], *, d_model: int, backend: str) -> SequenceMixer:
    """One mixer from its configuration: `type` names the class, the other keys are its constructor's arguments.

    Raises ValueError for a backend that does not compute a mixer of these settings.
    """
    permitted = _backends(config)
    if backend not in permitted:
        raise ValueError(
            f"backend={backend!r} does not compute {config['type']} with its settings: permitted are {', '.join(permitted)}"
        )
    return mixer_class(config["type"])(d_model=d_model, backend=backend, **_arguments(config))


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in RESERVED}


def _backends(config: Mapping[str, Any]) -> tuple[str, ...]:
    return mixer_class(config["type"]).backends(_arguments(config))


def computing_backends(model: Mapping[str, Any]) -> tuple[str, ...]:
    """The backends that compute every mixer of a resolved `model` configuration, in the first mixer's order of speed."""
    first, *others = [_backends(config) for config in _pattern(model)]
    return tuple(name for name in first if all(name in other for other in others))


def build_model(model: Mapping[str, Any], size: Mapping[str, Any], *, vocab_size: int, backend: str) -> LanguageModel:
    """The language model of a resolved `model` and `size` configuration.

    size: d_model, num_blocks, mlp_dim, norm_eps, logit_soft_cap. The rest is as in `build_mixers`.
    Parameters are not filled: call `reset_parameters(seed)`.
    """
    return LanguageModel(
        vocab_size=vocab_size,
        d_model=size["d_model"],
        mlp_dim=size["mlp_dim"],
        mixers=build_mixers(model, size, backend=backend),
        norm_eps=size["norm_eps"],
        logit_soft_cap=size["logit_soft_cap"],
    )


def build_regressor(
    model: Mapping[str, Any], size: Mapping[str, Any], *, input_dim: int, output_dim: int, backend: str
) -> Regressor:
    """The same for a task of vectors; size.logit_soft_cap has no meaning here."""
    return Regressor(
        input_dim=input_dim,
        output_dim=output_dim,
        d_model=size["d_model"],
        mlp_dim=size["mlp_dim"],
        mixers=build_mixers(model, size, backend=backend),
        norm_eps=size["norm_eps"],
    )


def build_mixers(model: Mapping[str, Any], size: Mapping[str, Any], *, backend: str) -> list[SequenceMixer]:
    """One mixer a block.

    model: `pattern` lists which keys of `model` hold the mixers of consecutive blocks, repeated to the depth;
    [mixer] is one mixer throughout, [hawk, mesa] alternates two. size: d_model, num_blocks.
    """
    pattern, mixers = _pattern(model), []
    for i in range(size["num_blocks"]):
        try:
            mixers.append(build_mixer(pattern[i % len(pattern)], d_model=size["d_model"], backend=backend))
        except ValueError as error:
            raise ValueError(f"model.{model['pattern'][i % len(pattern)]}: {error}") from error
    return mixers


def _pattern(model: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The configurations of the mixers that blocks take in turn."""
    for name in model["pattern"]:
        if name not in model or "type" not in model[name]:
            raise ValueError(f"model.pattern names {name!r}, but model.{name} is not a mixer with a type")
    return [model[name] for name in model["pattern"]]
