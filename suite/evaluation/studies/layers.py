"""What the Mesa layers of a model do while it runs, by the index of their block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from models.backbone import Backbone
from models.mesa.layers import mesa_layers
from models.mesa.mixer import Mesa
from models.mixer import State
from suite.compute.scoring import score
from suite.evaluation.studies.subject import Sample, Subject
from tasks.task import Scored

Observations = dict[int, dict[str, Tensor]]
"""Per layer what was seen of it, each [N, T, H, ...] on the CPU."""

Observer = Callable[[Mesa, Tensor, State | None, Tensor | None], dict[str, Tensor]]
"""From a layer, its input [B, T, d_model], the state before and `starts` to tensors [B, T, ...]."""


@contextmanager
def observed(model: Backbone, observer: Observer) -> Iterator[dict[int, list[dict[str, Tensor]]]]:
    """Within the block every call of a Mesa layer, a whole sequence or a step, leaves what `observer` says of it."""
    seen: dict[int, list[dict[str, Tensor]]] = {layer: [] for layer, _ in mesa_layers(model)}

    def note(layer: int, mixer: Mesa, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        x, state = arguments
        seen[layer].append(observer(mixer, x, state, named["starts"]))

    handles = [mixer.register_forward_pre_hook(partial(note, layer), with_kwargs=True) for layer, mixer in mesa_layers(model)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def traced(mixer: Mesa, x: Tensor, state: State | None, starts: Tensor | None) -> dict[str, Tensor]:
    """Gates, regulariser, steps, residual and cosine: everything of `Mesa.observe` but the eigenvalues."""
    return mixer.observe(x, state, starts=starts, spectrum=False)


def traced_with_spectrum(mixer: Mesa, x: Tensor, state: State | None, starts: Tensor | None) -> dict[str, Tensor]:
    """The same and `condition`, the largest eigenvalue of H + Lambda by the smallest: infinite where it is not definite.

    NaN where the input is not finite: such matrices have no eigenvalues.
    """
    if not x.isfinite().all():
        seen = traced(mixer, x, state, starts)
        return seen | {name: torch.full_like(seen["residual"], torch.nan) for name in ("smallest", "largest", "condition")}
    seen = mixer.observe(x, state, starts=starts, spectrum=True)
    condition = seen["largest"] / seen["smallest"]
    return {**seen, "condition": torch.where(seen["smallest"] > 0, condition, torch.inf)}


def joined(seen: dict[int, list[dict[str, Tensor]]], dim: int) -> Observations:
    """The calls of every layer behind one another, along the examples (0) or the tokens (1)."""
    return {
        layer: {name: torch.cat([call[name].cpu() for call in calls], dim=dim) for name in calls[0] if calls[0][name] is not None}
        for layer, calls in seen.items()
        if calls
    }


@torch.no_grad()
def score_and_observe(subject: Subject, sample: Sample, observer: Observer) -> tuple[list[Scored], Observations]:
    """The scores of every batch of a sample, and what the layers did meanwhile."""
    with observed(subject.model, observer) as seen:
        scored = [score(subject.model, batch, subject.device) for batch in sample.batches()]
    return scored, joined(seen, 0)
