from __future__ import annotations

import math

import pytest
import torch

from tasks.efficiency import Efficiency
from tasks.task import Scored
from tests.tasks.composed import build

ARGUMENTS = {"vocab_size": 11, "seq_len": 16}


def task(**changes) -> Efficiency:
    return build("efficiency", **(ARGUMENTS | changes))


def test_the_next_token_is_asked_at_every_token():
    for batch in (task().batch("train", range(5)), task().draw(5, 16)):
        assert batch.tokens.shape == batch.targets.shape == (5, 16) and batch.asked.all()
        assert (batch.tokens[:, 1:] == batch.targets[:, :-1]).all()
        assert batch.tokens.min() >= 0 and batch.targets.max() < 11


def test_splits_seeds_and_lengths_differ():
    drawn = [
        task(seq_len=60).batch("train", [0]),
        task(seq_len=60).batch("validation", [0]),
        task(seq_len=60, seed=1).batch("train", [0]),
        task().draw(1, 60),
        task(seed=1).draw(1, 60),
    ]
    assert len({tuple(batch.tokens[0].tolist()) for batch in drawn}) == len(drawn)
    assert torch.equal(task().draw(3, 60).tokens, task().draw(3, 60).tokens)


def test_ids_are_even_and_knowing_nothing_is_best():
    made = task(seq_len=4000)
    batch = made.batch("validation", [0])
    shares = torch.bincount(batch.targets.flatten(), minlength=11) / 4000
    assert shares.tolist() == pytest.approx([1 / 11] * 11, abs=0.02)
    nll = torch.full(batch.tokens.shape, made.guessing_loss)
    (row,) = made.measure("validation", [Scored(batch, nll, batch.targets)])
    assert row.value == pytest.approx(math.log(11)) and row.count == 4000
    assert made.references("validation", reach=None)[0].value == pytest.approx(1 / 11)
