"""Rows of a study from values of every example, token and head."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from suite.evaluation.studies.layers import Observations
from suite.evaluation.studies.subject import Sample
from tasks.positions import position_bands
from tasks.task import Measurement, Scored, Task

Place = dict[str, int | float | str]


def places(length: int) -> Iterable[tuple[Place, slice]]:
    """The whole of a sequence, and its ranges of positions."""
    yield {}, slice(None)
    for low, high in position_bands(length):
        yield {"position_low": low, "position_high": high}, slice(low, high)


def mean_of_layers(layers: Observations, name: str) -> Tensor:
    """The mean over layers and heads of what was seen at every token, [N, T] in float64."""
    return torch.stack([seen[name].double().mean(-1) for seen in layers.values()]).mean(0)


def mean_row(metric: str, values: Tensor, split: str, place: Place) -> Measurement:
    """The mean of values [N, ...], and that of every example."""
    examples = values.double().flatten(1).mean(1)
    return Measurement(metric, examples.mean().item(), split, place, len(examples), tuple(examples.tolist()))


def nll_row(metric: str, losses: Tensor, asked: Tensor, split: str, place: Place) -> Measurement:
    """The mean over all positions that ask something, and that of every example, NaN where it asks nothing; both are [N, ...]."""
    counts, sums = asked.flatten(1).sum(1), torch.where(asked, losses.double(), 0.0).flatten(1).sum(1)
    # A range of few positions may hold BOS alone, which is never asked.
    examples = sums / counts
    return Measurement(metric, (sums.sum() / counts.sum()).item(), split, place, int(counts.sum()), tuple(examples.tolist()))


def row(metric: str, values: Tensor, reduce: Callable[[Tensor], Tensor], split: str, place: Place) -> Measurement:
    """One number of all the values."""
    return Measurement(metric, reduce(values.double().flatten()).item(), split, place, values.numel())


def placed(rows: Iterable[Measurement], place: Mapping[str, Any], task: Task) -> list[Measurement]:
    """The same rows, each in this place too, and their examples, which are those of the task, in its groups."""
    return [
        dataclasses.replace(each, slice={**each.slice, **place}, groups=each.examples and task.groups(each.split))
        for each in rows
    ]


def score_rows(sample: Sample, scored: Sequence[Scored]) -> list[Measurement]:
    """The task's scores, and where it has others by position, those by range of positions."""
    rows = sample.task.measure(sample.split, scored)
    if sample.task.measures_positions:
        rows += [each for each in sample.task.measure_positions(sample.split, scored) if "position_low" in each.slice]
    return rows
