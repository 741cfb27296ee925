"""Where a task's interface meets the backbone: ids are a LanguageModel's or an AutoEncoder's, vectors a Regressor's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from models.backbone import Backbone
from models.build import Model, Size, build_autoencoder, build_model, build_regressor
from tasks.task import Encoded, Tokens, Vectors

Interface = Tokens | Vectors


class _Unfilled(TorchFunctionMode):
    """Leaves out what torch's layers fill themselves with; on the meta device that would import torch's compiler, for seconds."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        return given["tensor"] if getattr(func, "__module__", "") == nn.init.__name__ else func(*args, **given)


def build_backbone(interface: Interface, model: Model, size: Size, *, backend: str) -> Backbone:
    """The model of typed settings that fits a task's interface; parameters are not filled."""
    if isinstance(interface, Encoded):
        asked = {"vocab_size": interface.vocab_size, "decoder_layers": interface.decoder_layers}
        return build_autoencoder(model, size, **asked, backend=backend)
    if isinstance(interface, Tokens):
        return build_model(model, size, vocab_size=interface.vocab_size, backend=backend)
    return build_regressor(model, size, input_dim=interface.input_dim, output_dim=interface.output_dim, backend=backend)


def unfilled_backbone(interface: Interface, model: Model, size: Size, *, backend: str, device: torch.device) -> Backbone:
    """The same on a device, without values until `reset_parameters`; on the meta device it has shapes alone."""
    with device, _Unfilled():
        return build_backbone(interface, model, size, backend=backend)


def interface_of(facts: Mapping[str, Any]) -> Interface:
    """The interface from the facts of a saved run, among which its numbers stand. Raises KeyError where they do not."""
    kind = Encoded if "decoder_layers" in facts else Tokens if "vocab_size" in facts else Vectors
    return kind(*(facts[field.name] for field in dataclasses.fields(kind)))
