"""The Mesa layers of a model, and other settings for them for a while: what a study of a trained model changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from models.backbone import Backbone
from models.mesanet import Mesa
from models.ops.solvers import build_solver

SOLVER_SETTINGS = ("name", "max_steps", "tolerance", "stop", "initial", "gradient")


def mesa_layers(model: Backbone) -> list[tuple[int, Mesa]]:
    """The Mesa mixers of a model, each with the index of its block."""
    return [(i, block.mixer) for i, block in enumerate(model.blocks) if isinstance(block.mixer, Mesa)]


@contextmanager
def solver_replaced(model: Backbone, settings: Mapping[str, Any]) -> Iterator[None]:
    """Within the block every Mesa layer solves with these settings laid over its own, e.g. {"max_steps": 5}.

    A solver that starts at the token before needs a state that was begun within the block.
    Raises ValueError for a setting or value that is not permitted.
    """
    for name in settings:
        if name not in SOLVER_SETTINGS:
            raise ValueError(f"solver.{name} is no setting, permitted are {', '.join(SOLVER_SETTINGS)}")
    layers = [(mixer, mixer.solver) for _, mixer in mesa_layers(model)]
    solvers = [build_solver({**mixer.solver_settings, **settings}) for mixer, _ in layers]
    try:
        for (mixer, _), solver in zip(layers, solvers, strict=True):
            mixer.solver = solver
        yield
    finally:
        for mixer, own in layers:
            mixer.solver = own


@contextmanager
def decoder_replaced(model: Backbone, *, decode: str, refresh: int | None) -> Iterator[None]:
    """Within the block every Mesa layer solves single tokens in this way; begin the state within the block.

    Raises ValueError for values that are not permitted.
    """
    layers = [(mixer, {"decode": mixer.decode, "refresh": mixer.refresh}) for _, mixer in mesa_layers(model)]
    try:
        for mixer, _ in layers:
            mixer.set_decoder(decode=decode, refresh=refresh)
        yield
    finally:
        for mixer, own in layers:
            mixer.set_decoder(**own)
