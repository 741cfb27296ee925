"""What holds for the settings of every mixer, of a solver and of a size, and what a model's YAML may say."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections import Counter
from typing import Any, get_args, get_origin

import pytest
from msgspec import Meta, Struct

import models
from conf.settings import RequestError, Settings, fields
from models.build import Size, mixer_class, mixer_classes, read_model
from models.mixer import SequenceMixer
from models.ops.solvers import SolverSettings
from tests.models.test_laws import MODELS, config

DECLARED = {name: mixer.Settings for name, mixer in mixer_classes().items()} | {"solver": SolverSettings, "size": Size}
every_settings = pytest.mark.parametrize("settings", DECLARED.values(), ids=DECLARED)
NO_SETTING_S_NUMBER = (float("inf"), float("-inf"), float("nan"), -(2**40), 1e300, -1e300, True, "8", [8])


def values(name: str) -> dict[str, Any]:
    model = config(name)["model"]
    return next(value for value in model.values() if isinstance(value, dict) and "type" in value)


def numbers_within(kind: Any) -> list[tuple[type, list[Meta]]]:
    """int and float in a type, each with what bounds it."""
    if kind in (int, float):
        return [(kind, [])]
    if hasattr(kind, "__metadata__"):
        metas = [mark for mark in kind.__metadata__ if isinstance(mark, Meta)]
        return [(number, [*inner, *metas]) for number, inner in numbers_within(kind.__origin__)]
    return [found for part in get_args(kind) if get_origin(kind) is not None or part for found in numbers_within(part)]


@every_settings
def test_settings_are_frozen_hashable_by_keyword_and_without_defaults(settings: type[Settings]) -> None:
    assert issubclass(settings, Settings) and issubclass(settings, Struct)
    parameters = inspect.signature(settings).parameters.values()
    assert {parameter.kind for parameter in parameters} == {inspect.Parameter.KEYWORD_ONLY}
    assert all(parameter.default is inspect.Parameter.empty for parameter in parameters)
    assert settings.__struct_config__.frozen and settings.__hash__ is not None


@every_settings
def test_every_number_has_a_lower_and_an_upper_bound(settings: type[Settings]) -> None:
    for field, kind in fields(settings).items():
        for _, metas in numbers_within(kind):
            assert any((meta.ge, meta.gt) != (None, None) for meta in metas), field
            assert any((meta.le, meta.lt) != (None, None) for meta in metas), field


@pytest.mark.parametrize("name", MODELS)
def test_a_model_s_settings_are_read_as_written_and_equal_ones_are_one(name: str) -> None:
    whole = config(name)["model"]
    model = read_model(whole)
    assert model == read_model(whole) and hash(model) == hash(read_model(whole))
    assert [settings.plain() for settings in model.mixers] == [whole[key] for key in model.pattern]


@pytest.mark.parametrize("name", MODELS)
def test_what_is_no_number_of_its_range_is_refused_with_its_whole_key(name: str) -> None:
    mixer = values(name)
    for field, kind in fields(mixer_class(mixer["type"]).Settings).items():
        if numbers_within(kind):
            for wrong in NO_SETTING_S_NUMBER:
                with pytest.raises(RequestError, match=rf"^model\.mixer\.{field}=.*permitted are"):
                    read_model(model_of({**mixer, field: wrong}))


def test_every_name_is_declared_once_and_no_abstract_class_has_one() -> None:
    found = set()
    for module in pkgutil.walk_packages(models.__path__, "models."):
        if ".backends" not in module.name:
            found |= {value for value in vars(importlib.import_module(module.name)).values() if inspect.isclass(value)}
    mixers = [value for value in found if issubclass(value, SequenceMixer)]
    named = [mixer for mixer in mixers if "name" in vars(mixer)]
    assert max(Counter(mixer.name for mixer in named).values()) == 1
    assert set(named) == set(mixer_classes().values()) == {mixer for mixer in mixers if not inspect.isabstract(mixer)}


def model_of(mixer: object) -> dict[str, Any]:
    return {"name": "m", "label": "M", "version": 1, "pattern": ["mixer"], "mixer": mixer}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pattern": []}, r"model.pattern=\[\] is out of range, permitted are lists of one mixer or more"),
        ({"pattern": ["mixer", "mesa"]}, r"model.pattern=\[mixer, mesa\] has 'mesa', permitted are mixer"),
        ({"pattern": ["label"]}, r"model.pattern=\[label\] has 'label', permitted are mixer"),
        ({"mixer": 3}, "model.mixer=3 is out of range, permitted are mappings with a type"),
        ({"mixer": {"num_heads": 2}}, "permitted are mappings with a type"),
        ({"mixer": {"type": "attention.Atention"}}, "model.mixer.type: unknown mixer type .*did you mean attention.Attention"),
        ({"second": {"type": "attention.Attention"}}, "model.second.num_heads is needed"),
        ({"version": 0}, "model.version=0"),
        ({"label": "two\nlines"}, "model.label=.*one line of text"),
        ({"paper": 3}, "model.paper=3"),
        ({"lr": 1e-3}, "model.lr=0.001"),
        ({"lr": {"mqar": 1e-3}}, "model.lr.mqar=0.001"),
        ({"lr": {"mqar": {"tiny": 0.0}}}, "model.lr.mqar.tiny=0.0.*above 0"),
        ({"lr": {"mqar": {"tiny": float("nan")}}}, "model.lr.mqar.tiny=nan"),
    ],
)
def test_what_a_model_may_not_say_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        read_model(model_of(values("transformer")) | changes)
