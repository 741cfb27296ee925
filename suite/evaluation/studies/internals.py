"""What every head of every Mesa layer does at which position (MesaNet, arXiv 2506.05233, Fig. 14)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from models.mesa.mixer import Mesa
from suite.evaluation.settings import Asked
from suite.evaluation.studies.layers import score_and_observe, traced_with_spectrum
from suite.evaluation.studies.rows import placed, places, row
from suite.evaluation.studies.subject import Subject
from tasks.task import Measurement

# Metric: its name in an observation.
MEANS = {
    "beta": "beta",
    "gamma": "gamma",
    "regularizer": "regularizer",
    "solver_steps": "steps",
    "readout_cosine": "cosine",
}


def planned(asked: Asked) -> list[dict[str, Any]]:
    """One stage, for a model with Mesa layers."""
    return [] if asked.config.model.first(Mesa.Settings) is None else [{}]


@torch.no_grad()
def measure(subject: Subject, settings: Mapping[str, Any]) -> list[Measurement]:
    """By layer and head, overall and by range of positions: the means MEANS over tokens, and of H + Lambda its median
    `condition` number, `smallest_eigenvalue` of all tokens and `indefinite`, the share at which it is not positive definite.
    """
    sample = subject.sample(settings["tokens"])
    _, layers = score_and_observe(subject, sample, traced_with_spectrum)
    rows = []
    for layer, seen in layers.items():
        for head in range(seen["beta"].shape[-1]):
            of_head = {name: values[..., head] for name, values in seen.items()}
            rows += placed(_head_rows(of_head, sample.split), {"layer": layer, "head": head}, sample.task)
    return rows


def _head_rows(seen: Mapping[str, Tensor], split: str) -> list[Measurement]:
    """From what was seen of one head, [N, T] each."""
    rows = []
    for place, where in places(seen["beta"].shape[1]):
        rows += [row(metric, seen[name][:, where], torch.mean, split, place) for metric, name in MEANS.items()]
        condition = seen["condition"][:, where]
        rows.append(row("condition", condition, torch.median, split, place))
        rows.append(row("indefinite", condition.isinf(), torch.mean, split, place))
        rows.append(row("smallest_eigenvalue", seen["smallest"][:, where], torch.min, split, place))
    return rows
