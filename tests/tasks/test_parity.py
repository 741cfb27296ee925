from __future__ import annotations

import pytest
import torch

from tasks.parity import BEGIN, Parity
from tasks.synthetic.blocks import BLOCK
from tasks.task import Batch, Scored
from tests.tasks.composed import build

ARGUMENTS = {"seq_len": 12, "test_seq_len": 20, "num_validation": 90, "num_test": 120}


def task(**changes) -> Parity:
    return build("parity", **(ARGUMENTS | changes))


def scored(batch: Batch, prediction: torch.Tensor) -> list[Scored]:
    return [Scored(batch, torch.ones(batch.tokens.shape), prediction)]


def values(rows, metric, *names):
    return {
        tuple(row.slice[n] for n in names): row.value for row in rows if row.metric == metric and set(row.slice) == set(names)
    }


@pytest.mark.parametrize(("split", "length"), [("train", 12), ("validation", 12), ("test", 20)])
def test_a_target_counts_the_bits_up_to_it(split, length):
    made = task()
    batch = made.batch(split, range(40))
    assert batch.tokens.shape == batch.targets.shape == (40, length)
    assert (batch.tokens[:, 0] == BEGIN).all() and set(batch.tokens[:, 1:].unique().tolist()) == {0, 1}
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        assert targets == [sum(tokens[1 : t + 1]) % 2 for t in range(length)]
    assert batch.asked.all() and made.length(split) == length


def test_bits_are_even_and_another_seed_gives_others():
    first, second = (task(seed=seed).batch("train", range(2 * BLOCK)).tokens for seed in (0, 1))
    assert first.double().mean(0)[1:].tolist() == pytest.approx([0.5] * 11, abs=0.08)
    assert not (first == second).all()


def test_no_beginning_is_in_two_splits_under_any_seed():
    """So few beginnings are possible here, 2^5, that without the rule every split would hold all of them."""
    beginnings = {
        split: {
            tuple(tokens[:6].tolist())
            for seed in range(3)
            for tokens in task(seq_len=6, seed=seed).batch(split, range(90)).tokens
        }
        for split in Parity.splits
    }
    assert sum(map(len, beginnings.values())) == len(set.union(*beginnings.values())) == 32
    assert all(beginnings.values())


def test_scores_by_position_by_hand():
    made = task()
    batch = made.batch("test", [0, 1])
    prediction = batch.targets.clone()
    prediction[0, 3], prediction[1, 16:] = 1 - prediction[0, 3], 1 - prediction[1, 16:]
    rows = made.measure("test", scored(batch, prediction))
    assert values(rows, "accuracy")[()] == pytest.approx(35 / 40)
    by_position = values(rows, "accuracy", "position")
    assert by_position[(3,)] == by_position[(16,)] == 0.5 and by_position[(4,)] == 1.0
    bands = {row.slice["position_low"]: row for row in rows if row.metric == "accuracy" and "position_low" in row.slice}
    assert sorted(bands) == [0, 1, 2, 4, 8, 15, 16]
    assert bands[16].examples == (1.0, 0.0) and bands[2].examples == (0.5, 1.0) and bands[16].slice["position_high"] == 20


@pytest.mark.parametrize(("reach", "expected"), [(None, 1.0), (100, 1.0), (11, 0.825), (0, 0.55)])
def test_reachable_accuracy_ends_where_a_bit_is_out_of_sight(reach, expected):
    assert values(task().references("test", reach=reach), "reachable_accuracy")[()] == pytest.approx(expected)


def test_a_test_split_shorter_than_training_is_refused():
    with pytest.raises(ValueError, match="task.test_seq_len=11 .* whole numbers from seq_len, here 12"):
        task(test_seq_len=11)


def test_a_length_that_leaves_a_split_without_examples_is_refused():
    with pytest.raises(ValueError, match="task.seq_len=1 is too short"):
        task(seq_len=1).check()
