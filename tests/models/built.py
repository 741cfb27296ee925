"""Mixers, models and solvers from values as a model's YAML holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from conf.settings import with_neutral
from models.build import Model, Size, mixer_class, read_model
from models.mixer import SequenceMixer
from models.ops.solvers import Solver, SolverSettings, build_solver

Mixer = TypeVar("Mixer", bound=SequenceMixer)


def mixer(kind: type[Mixer], values: Mapping[str, Any]) -> Mixer:
    """values: the settings without their type and those at neutral values, and d_model and backend."""
    settings = {name: value for name, value in values.items() if name not in ("d_model", "backend")}
    read = kind.Settings.read(with_neutral(kind.Settings, {"type": kind.name, **settings}))
    return kind(read, d_model=values["d_model"], backend=values["backend"])


def solver(values: Mapping[str, Any]) -> Solver:
    return build_solver(SolverSettings.read(values, "solver"))


def size(**changes: Any) -> Size:
    """The size of a backbone whose mixers are given; heads need not be said, since a mixer has its own."""
    given = {"name": "size", "num_blocks": 1, "num_heads": 1, "head_dim": 1, "norm_eps": 1e-6, "logit_soft_cap": 30.0}
    return Size.read({**given, **changes}, "size")


def uniform(values: Mapping[str, Any], sizes: Mapping[str, Any]) -> tuple[Model, Size]:
    """A model with one mixer throughout, whose settings may lack those at neutral values, and its size."""
    whole = with_neutral(mixer_class(values["type"]).Settings, values)
    read = read_model({"name": "model", "label": "Model", "version": 1, "pattern": ["mixer"], "mixer": whole})
    return read, size(**sizes)
