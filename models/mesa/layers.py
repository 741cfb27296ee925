"""The Mesa layers of a model, and other settings for them for a while: what a study of a trained model changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from models.backbone import Backbone
from models.mesa.mixer import Mesa


def mesa_layers(model: Backbone) -> list[tuple[int, Mesa]]:
    """The Mesa mixers of a model, each with the index of its block."""
    return [(i, block.mixer) for i, block in enumerate(model.blocks) if isinstance(block.mixer, Mesa)]


def solver_replaced(model: Backbone, settings: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Within the block every Mesa layer solves with these settings laid over its own, e.g. {"max_steps": 5}.

    A solver that starts at the token before needs a state that was begun within the block.
    Raises RequestError for a setting or value that is not permitted.
    """
    own = [mixer.settings for _, mixer in mesa_layers(model)]
    return _replaced(model, [each.replace({"solver": {**each.solver.plain(), **settings}}) for each in own])


def decoder_replaced(model: Backbone, *, decode: str, refresh: int | None) -> AbstractContextManager[None]:
    """Within the block every Mesa layer solves single tokens in this way; begin the state within the block.

    Raises RequestError for values that are not permitted.
    """
    own = [mixer.settings for _, mixer in mesa_layers(model)]
    return _replaced(model, [each.replace({"decode": decode, "refresh": refresh}) for each in own])


@contextmanager
def _replaced(model: Backbone, settings: Sequence[Mesa.Settings]) -> Iterator[None]:
    """A layer's backend stays where it computes the layer with its new settings, and is torch elsewhere."""
    layers = [mixer for _, mixer in mesa_layers(model)]
    own = [(mixer.settings, mixer.solver, mixer.backend) for mixer in layers]
    try:
        for mixer, new in zip(layers, settings, strict=True):
            mixer.solve_by(new)
            mixer.compute_by(mixer.backend if mixer.backend in Mesa.backends(new) else "torch")
        yield
    finally:
        for mixer, (before, solver, backend) in zip(layers, own, strict=True):
            mixer.solve_by(before)
            mixer.solver = solver
            mixer.compute_by(backend)
