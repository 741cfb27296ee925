"""Recall over several lengths at once, and keys that are written again."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from conf.settings import RequestError
from tasks.mqar import FILLER
from tests.tasks.composed import build

SEGMENTS = {"seq_len": 32, "train_segments": [[16, 2, 30], [32, 4, 10]], "test_segments": [[16, 2, 5], [64, 8, 7]]}


def test_every_segment_has_its_examples_its_pairs_and_its_length():
    made = build("mqar_mixture", **SEGMENTS)
    assert {split: made.num_examples(split) for split in made.splits} == {"train": 40, "validation": 12, "test": 12}
    for split, length in (("train", 32), ("test", 64)):
        batch = made.batch(split, range(made.num_examples(split)))
        assert batch.tokens.shape[1] == length
        kinds = list(zip(batch.slices["seq_len"], batch.slices["num_pairs"], strict=True))
        assert Counter(kinds) == {(part[0], part[1]): part[2] for part in SEGMENTS[f"{split}_segments"]}
        assert batch.asked.sum(1).tolist() == batch.slices["num_pairs"]
        for tokens, (longest, _) in zip(batch.tokens, kinds, strict=True):
            assert (tokens[longest:] == FILLER).all()


def test_an_example_behind_the_last_is_refused():
    with pytest.raises(IndexError):
        build("mqar_mixture", **SEGMENTS).batch("train", [40])


def test_scores_are_told_by_the_number_of_pairs():
    made = build("mqar_mixture", **SEGMENTS)
    assert {row.slice.get("num_pairs") for row in made.references("test", reach=None)} == {2, 8}


@pytest.mark.parametrize(
    "wrong", [{"seq_len": 30}, {"train_segments": [[32, 9, 10]]}, {"test_segments": [[15, 2, 5]]}, {"vocab_size": 8}]
)
def test_segments_that_hold_no_example_are_refused(wrong):
    with pytest.raises(RequestError):
        build("mqar_mixture", **(SEGMENTS | wrong))


@pytest.mark.parametrize("draws", ["sorted", "distinct"])
def test_a_key_that_is_written_again_has_its_last_value(draws):
    made = build("mqar", vocab_size=64, seq_len=40, num_pairs=[6], rewrites=4, draws=draws)
    for index in range(50):
        tokens, targets = made.example("train", index)
        written = dict(zip(tokens[0:20:2].tolist(), tokens[1:20:2].tolist(), strict=True))
        assert len(written) == 6 and len(set(tokens[12:20:2].tolist())) == 4 and len(set(tokens[1:20:2].tolist())) == 10
        asked = np.flatnonzero(targets >= 0)
        assert {int(tokens[t]): int(targets[t]) for t in asked} == written


def test_a_vocabulary_of_few_lists_is_dealt_out_with_keys_written_again():
    made = build("mqar", vocab_size=8, seq_len=16, num_pairs=[2], rewrites=1)
    made.check()
    seen = [set(map(tuple, made.batch(split, range(3000)).tokens[:, :6].tolist())) for split in made.splits]
    # 3 * 2 keys, 4 * 3 * 2 values, 2 that are written again.
    assert len(set.union(*seen)) == sum(map(len, seen)) == 3 * 2 * 24 * 2


def test_both_ways_to_draw_have_one_distribution():
    tokens = [
        build("mqar", vocab_size=16, seq_len=16, num_pairs=[2], draws=draws).batch("train", range(4096)).tokens
        for draws in ("sorted", "distinct")
    ]
    for place in range(4):
        one, other = (torch.bincount(part[:, place], minlength=16).double() for part in tokens)
        assert ((one - other).abs() < 5 * (one + other).clamp(min=1).sqrt()).all()


@pytest.mark.parametrize("wrong", [{"rewrites": 5}, {"rewrites": 4, "seq_len": 22}])
def test_more_rewrites_than_fit_are_refused(wrong):
    with pytest.raises(RequestError):
        build("mqar", **({"vocab_size": 64, "seq_len": 40, "num_pairs": [4]} | wrong))
