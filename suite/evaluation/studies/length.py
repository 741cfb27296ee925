"""How a model does on sequences longer than those of its training, on the very same text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from conf import settings
from models.mesa.mixer import Mesa
from models.mixer import State
from suite.compute.scoring import score
from suite.evaluation.settings import Asked
from suite.evaluation.studies.layers import Observations, joined, observed, traced, traced_with_spectrum
from suite.evaluation.studies.rows import Place, mean_of_layers, nll_row, placed, places, row
from suite.evaluation.studies.subject import Sample, Subject
from tasks.task import IGNORE, Batch, Measurement, Task, perplexity

# The eigenvalues take longer than all else: they are computed of one in so many sequences.
SPECTRUM_EVERY = 4


class Settings(settings.Settings, kw_only=True):
    """length_factors: sequences of so many times the training length, a stage a factor."""

    length_factors: tuple[settings.Count, ...]


def planned(asked: Asked) -> list[dict[str, Any]]:
    """One stage a factor of eval.length_factors, for a task of any length. Raises ValueError where the data has none so long."""
    factors, window = asked.own.length_factors, math.lcm(*asked.own.length_factors)
    if not factors or asked.task.resized(seq_len=window * asked.task.seq_len, examples=1) is None:
        return []
    return [{"length_factor": factor, "window": window} for factor in factors]


@torch.no_grad()
def measure(subject: Subject, wanted: Mapping[str, Any]) -> list[Measurement]:
    """Overall and by range of positions: nll, perplexity, and of a model with Mesa layers solver_steps and condition.

    The text is that of windows of `window` times the training length, cut into sequences of `length_factor` times; so it
    is the same for every factor, and the values of the examples, one a window, can be compared in pairs.
    condition: the median, of one sequence in SPECTRUM_EVERY.
    """
    factor, trained = wanted["length_factor"], subject.task.seq_len
    longest = wanted["window"] * trained
    windows = subject.task.resized(seq_len=longest, examples=max(1, wanted["tokens"] // longest))
    count = windows.num_examples("validation")
    with observed(subject.model, _observe) as seen:
        batches = (_cut(windows, whole, factor * trained) for whole in Sample(windows, "validation", count).batches())
        scored = [score(subject.model, batch, subject.device) for batch in batches]
    parts = ([each.loss for each in scored], [each.batch.asked for each in scored])
    nll, asked = (torch.cat(part).unflatten(0, (count, -1)) for part in parts)
    rows = [each for place, where in places(factor * trained) for each in _score_rows(nll[..., where], asked[..., where], place)]
    layers = joined(seen, 0)
    if layers:
        rows += [each for place, where in places(factor * trained) for each in _layer_rows(layers, where, place)]
    return placed(rows, {"length_factor": factor, "length": factor * trained}, windows)


def _observe(mixer: Mesa, x: Tensor, state: State | None, starts: Tensor | None) -> dict[str, Tensor]:
    some = slice(None, None, SPECTRUM_EVERY)
    with_spectrum = traced_with_spectrum(mixer, x[some], state, None if starts is None else starts[some])
    return {"steps": traced(mixer, x, state, starts)["steps"], "condition": with_spectrum["condition"]}


def _cut(task: Task, batch: Batch, length: int) -> Batch:
    """The text of a batch in sequences of `length` tokens, each an example of its own that begins with BOS."""
    # Every example begins with BOS.
    bos = int(batch.tokens[0, 0])
    text = torch.where(batch.asked, batch.targets, bos).view(-1, length)
    tokens = torch.cat([torch.full_like(text[:, :1], bos), text[:, :-1]], dim=1)
    starts = None if batch.starts is None else tokens == bos
    return Batch(tokens, text.masked_fill(text == bos, IGNORE), starts)


def _score_rows(nll: Tensor, asked: Tensor, place: Place) -> list[Measurement]:
    """From the nll of [window, sequence, position]."""
    mean = nll_row("nll", nll, asked, "validation", place)
    return [mean, Measurement("perplexity", perplexity(mean.value), "validation", place, mean.count)]


def _layer_rows(layers: Observations, where: slice, place: Place) -> list[Measurement]:
    steps = mean_of_layers(layers, "steps")[:, where]
    condition = torch.cat([seen["condition"][:, where].flatten() for seen in layers.values()])
    return [
        row("solver_steps", steps, torch.mean, "validation", place),
        row("condition", condition, torch.median, "validation", place),
    ]
