"""What fills the blank cells of a published table: the commands, and what they would cost."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pandas as pd
import yaml

from conf.groups import find
from reports.kit.commands import suite_command
from reports.kit.render import counted, scientific
from reports.kit.study import Study

FLOPS_PER_SECOND = 0.4 * 989e12
"""What one H100 SXM is assumed to reach: 40 % of what its data sheet gives for dense bfloat16."""
VOCABULARY = 50257
"""Tokens that GPT-2's tokenizer has."""
FLOPS_PER_WEIGHT = 6.0
"""FLOPs of a token in training: two for the forward pass, four for the backward pass."""
SECONDS_IN_HOUR = 3600.0
HOW = (
    "Costs are 6 FLOPs a weight and token of training, in hours of one H100 at 40 % of 989 TFLOP/s; the paper's whole evaluation "
    "of a model took it about 3 hours (App. G)."
)


class Fill(NamedTuple):
    """command: what is typed. told: with what it costs, in words. flops: of the trainings in it, and 0 of evaluations alone.

    cells: size, tokens and model of what it fills.
    """

    command: str
    told: str
    flops: float
    cells: frozenset[tuple[str, str, str]]


@functools.cache
def weights_of(size: str) -> int:
    """The weights of a model of conf/size, by its matrices: the embedding, a mixer's four, and three of an MLP.

    Mixers differ from that by less than a hundredth, but for those that have an expansion of their own.
    """
    written = yaml.safe_load(find("size", size).read_text(encoding="utf-8"))
    width, blocks = written["d_model"], written["num_blocks"]
    return int(VOCABULARY * width + blocks * (4 * width**2 + 3 * width * written["mlp_dim"]))


def training_flops(study: Study, size: str, tokens: str) -> float:
    """The FLOPs of one training, by size and tokens as the paper calls them."""
    return FLOPS_PER_WEIGHT * weights_of(study.sizes[size][0]) * study.tokens[tokens]


def hours_of(flops: float) -> float:
    """Hours of one H100, see HOW."""
    return flops / FLOPS_PER_SECOND / SECONDS_IN_HOUR


def fills(study: Study, blank: pd.DataFrame, evaluation: Sequence[str]) -> Iterator[Fill]:
    """What fills the blank cells: a command a size and number of tokens for models to be trained, and one for the others.

    blank: `size`, `train_tokens`, `model`, and `run_ids`, of the runs that are there, parted by spaces. evaluation: what is
    asked of `evaluate`.
    """
    untrained = blank[blank["run_ids"] == ""]
    for (size, tokens), own in untrained.groupby(["size", "train_tokens"], sort=False):
        models = list(dict.fromkeys(own["model"]))
        flops = len(models) * training_flops(study, size, tokens)
        asked = [f"recipe={study.recipes[tokens]}", f"size={study.sizes[size][0]}", f"model={','.join(models)}"]
        command = suite_command("run", ["task=language", *asked, *study.trained_on, *evaluation])
        cost = f"{counted(len(models), 'training')}, {scientific(flops)} FLOPs, {_hours(hours_of(flops))}"
        yield Fill(command, f"{size}, {tokens} tokens: {command} ({cost})", flops, _cells(own))
    there = blank[blank["run_ids"] != ""]
    trained = sorted({run_id for ids in there["run_ids"] for run_id in ids.split()})
    if trained:
        command = suite_command("evaluate", [f"run={','.join(trained)}", *evaluation])
        yield Fill(command, f"{counted(len(trained), 'trained run')}: {command} (nothing is trained)", 0.0, _cells(there))


def _cells(blank: pd.DataFrame) -> frozenset[tuple[str, str, str]]:
    return frozenset(blank[["size", "train_tokens", "model"]].itertuples(index=False, name=None))


def _hours(hours: float) -> str:
    return f"{hours:,.0f} hours" if hours >= 10 else f"{hours:.1f} hours"
