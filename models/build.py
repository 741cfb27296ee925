"""From the settings of a model to the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta

import models
from conf.declared import declared
from conf.settings import Count, Line, Name, Refusal, RequestError, Settings, flat, unknown
from models.backbone.autoencoder import AutoEncoder
from models.backbone.blocks import Size
from models.backbone.language_model import LanguageModel
from models.backbone.regressor import Regressor
from models.backends import by_mixer, check
from models.hf.model import HFModel
from models.mixer import SequenceMixer

Kind = type[SequenceMixer] | type[HFModel]
"""What a `type` in a model's YAML names: a mixer, or a whole model in the place of all of them."""


class Labels(Settings, kw_only=True):
    """What a model's YAML holds beside its mixers and learning rates.

    version: raised when the model's numbers change. pattern: the keys of the mixers that consecutive blocks take, repeated
    to the depth; [mixer] is one mixer throughout, [hawk, mesa] alternates two.
    """

    name: Name
    label: Line
    version: Count
    paper: Line | None
    pattern: Annotated[tuple[Name, ...], Meta(min_length=1, description="lists of one mixer or more")]


NO_MIXERS = {"", "lr", "path", *Labels.__struct_fields__}
"""The keys of a model that name none of its mixers."""


@dataclass(frozen=True)
class Model:
    """A model's YAML, read and checked. mixers: the settings of the mixers that `pattern` names, in its order."""

    name: str
    label: str
    version: int
    pattern: tuple[str, ...]
    mixers: tuple[SequenceMixer.Settings, ...]

    def by_name(self) -> Iterator[tuple[str, SequenceMixer.Settings]]:
        return zip(self.pattern, self.mixers, strict=True)

    @property
    def kinds(self) -> dict[str, SequenceMixer.Settings]:
        """The settings of each different mixer of the pattern, in its order."""
        return dict(self.by_name())

    def first(self, kind: type) -> Any:
        """The settings of the first mixer of a kind, e.g. Mesa.Settings; None where the pattern has none."""
        return next((mixer for mixer in self.mixers if isinstance(mixer, kind)), None)


def read_model(values: Mapping[str, Any], key: str = "model") -> Model:
    """The model in a mapping from YAML, at the place `key` of the configuration. Raises RequestError.

    Its keys are those of `Labels`, of which `paper` may be missing; `lr`, a table of learning rates by task and size, which
    may be missing too; `path`, of which a whole model takes its own; and mixers, each a mapping with a `type`.
    """
    given = {name: value for name, value in values.items() if name in Labels.__struct_fields__}
    labels = Labels.read({"paper": None, **given}, key)
    _check_rates(values.get("lr", {}), f"{key}.lr")
    others = {name: value for name, value in values.items() if name not in (*given, "lr", "path")}
    mixers = {name: _read_mixer(value, f"{key}.{name}") for name, value in others.items()}
    for name in labels.pattern:
        if name not in mixers:
            raise RequestError(f"{key}.pattern=[{', '.join(labels.pattern)}] has {name!r}, permitted are {', '.join(mixers)}")
    chosen = tuple(mixers[name] for name in labels.pattern)
    return Model(labels.name, labels.label, labels.version, labels.pattern, chosen)


def _check_rates(rates: object, key: str) -> None:
    for place, rate in flat({key: rates}):
        if place.removeprefix(key).count(".") != 2:
            raise Refusal(place, rate, "mappings from tasks to mappings from sizes to learning rates")
        if type(rate) not in (int, float) or not 0 < rate < float("inf"):
            raise Refusal(place, rate, "numbers above 0")


def _read_mixer(values: object, key: str) -> SequenceMixer.Settings:
    if not isinstance(values, Mapping) or "type" not in values:
        raise Refusal(key, values, "mappings with a type")
    if not isinstance(values["type"], str):
        raise Refusal(f"{key}.type", values["type"], ", ".join(kinds()), fault="is not a word")
    try:
        mixer = mixer_class(values["type"])
    except RequestError as error:
        raise RequestError(f"{key}.type: {error}") from error
    return mixer.Settings.read(values, key)


def mixer_classes() -> dict[str, type[SequenceMixer]]:
    """Every mixer by the name that its class declares, from all modules of this package and of the user's own folders."""
    return declared(models, SequenceMixer, "name", without=("models.ops", "models.backends"))


def kinds() -> dict[str, Kind]:
    """What a `type` in a model's YAML may be: every mixer, and a whole model that is read from a folder."""
    return {**mixer_classes(), HFModel.name: HFModel}


def mixer_class(name: str) -> Kind:
    """The class that declares the name, which a model's YAML holds as `type`. Raises RequestError where none does."""
    known = kinds()
    if name not in known:
        raise unknown("mixer type", name, known)
    return known[name]


def build_mixer(settings: SequenceMixer.Settings, *, d_model: int, backend: str) -> SequenceMixer:
    """One mixer. Raises RequestError for a backend that does not compute a mixer of these settings."""
    mixer = mixer_class(settings.type)
    assert issubclass(mixer, SequenceMixer), f"{settings.type} is a whole model"
    check(backend, mixer.backends(settings))
    return mixer(settings, d_model=d_model, backend=backend)


def computing_backends(model: Model) -> list[tuple[str, ...]]:
    """The backends that compute each of a model's `kinds` with its settings, in the order in which "auto" tries them."""
    return [mixer_class(settings.type).backends(settings) for settings in model.kinds.values()]


def pretrained(model: Model) -> HFModel.Settings | None:
    """The settings of the whole model that is read from a folder, in the place of mixers; None for a model of mixers."""
    found: HFModel.Settings | None = model.first(HFModel.Settings)
    return found


def build_model(model: Model, size: Size, *, vocab_size: int, backend: str) -> LanguageModel:
    """The language model. Parameters are not filled: call `reset_parameters(seed)`. Raises RequestError as `build_mixers`.

    A model that is read from a folder has a size and ids of its own.
    """
    if (settings := pretrained(model)) is not None:
        return HFModel(settings)
    return LanguageModel(size, build_mixers(model, size, backend=backend), vocab_size=vocab_size)


def build_autoencoder(model: Model, size: Size, *, vocab_size: int, decoder_layers: int, backend: str) -> AutoEncoder:
    """The model for a task that asks a sequence again from its last features; otherwise as `build_model`."""
    mixers = build_mixers(model, size, backend=backend)
    return AutoEncoder(size, mixers, vocab_size=vocab_size, decoder_layers=decoder_layers)


def build_regressor(model: Model, size: Size, *, input_dim: int, output_dim: int, backend: str) -> Regressor:
    """The model for a task of vectors, where size.logit_soft_cap has no meaning; otherwise as `build_model`."""
    return Regressor(size, build_mixers(model, size, backend=backend), input_dim=input_dim, output_dim=output_dim)


def build_mixers(model: Model, size: Size, *, backend: str) -> list[SequenceMixer]:
    """One mixer a block, by the backend of the run or of its kind, see `settle`.

    Raises RequestError for settings that do not go with size.d_model, or with the backend, and for so few blocks that a kind of
    mixer has none.
    """
    names = [model.pattern[i % len(model.pattern)] for i in range(size.num_blocks)]
    if left_out := [name for name in model.kinds if name not in names]:
        least = 1 + max(map(model.pattern.index, left_out))
        raise Refusal(
            "size.num_blocks", size.num_blocks, f"numbers from {least}, by which every mixer of {model.name} has a block"
        )
    backends = dict(zip(model.kinds, by_mixer(backend, len(model.kinds)), strict=True))
    return [_build(model, name, size, backends[name]) for name in names]


def _build(model: Model, name: str, size: Size, backend: str) -> SequenceMixer:
    try:
        return build_mixer(model.kinds[name], d_model=size.d_model, backend=backend)
    except Refusal as refusal:
        raise refusal.under(f"model.{name}") from refusal
