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

    Its backend stays where it computes that, and is torch elsewhere.
    A solver that starts at the token before needs a state that was begun within the block.
    Raises ValueError for a setting or value that is not permitted.
    """
    for name in settings:
        if name not in SOLVER_SETTINGS:
            raise ValueError(f"solver.{name} is no setting, permitted are {', '.join(SOLVER_SETTINGS)}")
    layers = [(mixer, mixer.solver, mixer.backend) for _, mixer in mesa_layers(model)]
    merged = [{**mixer.solver_settings, **settings} for mixer, _, _ in layers]
    solvers = [build_solver(solver) for solver in merged]
    try:
        for (mixer, _, backend), settings_of_layer, solver in zip(layers, merged, solvers, strict=True):
            computing = Mesa.backends({**vars(mixer), "solver": settings_of_layer})
            mixer.solver, mixer.backend = solver, backend if backend in computing else "torch"
        yield
    finally:
        for mixer, own, backend in layers:
            mixer.solver, mixer.backend = own, backend


@contextmanager
def decoder_replaced(model: Backbone, *, decode: str, refresh: int | None) -> Iterator[None]:
    """Within the block every Mesa layer solves single tokens in this way; begin the state within the block.

    Its backend stays where single tokens are solved by the solver, and is torch elsewhere.
    Raises ValueError for values that are not permitted.
    """
    layers = [(mixer, {"decode": mixer.decode, "refresh": mixer.refresh}, mixer.backend) for _, mixer in mesa_layers(model)]
    try:
        for mixer, _, _ in layers:
            mixer.set_decoder(decode=decode, refresh=refresh)
            mixer.backend = mixer.backend if decode == "solver" else "torch"
        yield
    finally:
        for mixer, own, backend in layers:
            mixer.set_decoder(**own)
            mixer.backend = backend
