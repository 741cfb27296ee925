"""The Mesa layers of a model, and other settings for them for a while: what a study of a trained model changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from models.backbone import Backbone
from models.mesa.mixer import Mesa


def mesa_layers(model: Backbone) -> list[tuple[int, Mesa]]:
    """The Mesa mixers of a model, each with the index of its block."""
    return [(i, block.mixer) for i, block in enumerate(model.blocks) if isinstance(block.mixer, Mesa)]


@contextmanager
def mesa_replaced(model: Backbone, changes: Mapping[str, Any]) -> Iterator[None]:
    """Within the block every Mesa layer has these settings laid over its own, e.g. {"solver": {"max_steps": 5}}.

    A state that such a layer goes on from has to be begun within the block. A layer's backend stays where it computes the
    layer with its new settings, and is torch elsewhere. Raises RequestError for a setting or value that is not permitted.
    """
    layers = [mixer for _, mixer in mesa_layers(model)]
    own = [(mixer.settings, mixer.solver, mixer.backend) for mixer in layers]
    solvers = [{**each.solver.plain(), **changes.get("solver", {})} for each, _, _ in own]
    settings = [each.replace({**changes, "solver": solver}) for (each, _, _), solver in zip(own, solvers, strict=True)]
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
