"""Splits of example spaces so small that every example can be listed."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tasks.mqar import MQAR
from tasks.synthetic.splits import SPLIT_QUARTERS, TINY, belongs
from tests.tasks.composed import build

SHARES = {split: len(quarters) / 4 for split, quarters in SPLIT_QUARTERS.items()}


def recall(vocab_size: int, pairs: int, **changes) -> MQAR:
    counts = {"num_validation": 4000, "num_test": 4000} | changes
    return build("mqar", vocab_size=vocab_size, seq_len=4 * pairs + 4, num_pairs=[pairs], **counts)


def lists(vocab_size: int, pairs: int) -> np.ndarray:
    half = vocab_size // 2
    keys, values = (itertools.permutations(ids, pairs) for ids in (range(1, half), range(half, vocab_size)))
    return np.array([np.stack(both, axis=1).ravel() for both in itertools.product(keys, values)])


def members(vocab_size: int, pairs: int) -> dict[str, np.ndarray]:
    """Which of all lists a split has, found by its examples."""
    space = lists(vocab_size, pairs)
    places = {tuple(row): i for i, row in enumerate(space.tolist())}
    found = {}
    for split in SHARES:
        drawn = recall(vocab_size, pairs).batch(split, range(4000)).tokens[:, : 2 * pairs].tolist()
        found[split] = np.isin(np.arange(len(space)), [places[tuple(row)] for row in drawn])
    return found


@pytest.mark.parametrize(("vocab_size", "pairs"), [(8, 1), (8, 2), (16, 1), (32, 1)])
def test_every_split_of_few_lists_has_its_share_and_no_value_is_missing(vocab_size, pairs):
    space, found = lists(vocab_size, pairs), members(vocab_size, pairs)
    assert {split: found[split].mean() for split in SHARES} == SHARES
    for column in (*range(0, 2 * pairs, 2), *range(1, 2 * pairs, 2)):
        for number in np.unique(space[:, column]):
            of_number = space[:, column] == number
            for split, share in SHARES.items():
                # Four standard errors of lists that are dealt out at random.
                error = np.sqrt(share * (1 - share) / of_number.sum() * (1 - of_number.mean()))
                assert abs(found[split][of_number].mean() - share) < 4 * error, (split, column, number)


@pytest.mark.parametrize("seq_len", [4, 5, 7, 8, 10, 17])
def test_every_target_of_short_parity_is_as_often_0_as_1(seq_len):
    made = build("parity", seq_len=seq_len, test_seq_len=seq_len, num_validation=8000, num_test=8000)
    beginnings = set()
    for split, share in SHARES.items():
        batch = made.batch(split, range(8000))
        tokens, first = np.unique(batch.tokens.numpy(), axis=0, return_index=True)
        beginnings |= set(map(tuple, tokens.tolist()))
        if seq_len <= 10:
            assert len(tokens) == share * 2 ** (seq_len - 1)
            assert (batch.targets.numpy()[first][:, 1:].mean(axis=0) == 0.5).all()
        assert abs(batch.targets[:, 1:].double().mean(0) - 0.5).max() < 4 * 0.5 / np.sqrt(8000)
    assert seq_len > 10 or len(beginnings) == 2 ** (seq_len - 1)


@pytest.mark.parametrize(("vocab_size", "pairs", "version"), [(8, 2, 2), (32, 2, 2), (32, 4, 1), (64, 2, 1)])
def test_another_hash_has_another_version(vocab_size, pairs, version):
    assert recall(vocab_size, pairs, num_test=1, num_validation=1).version == version
    half = vocab_size // 2
    assert (math.perm(half - 1, pairs) * math.perm(half, pairs) <= TINY) == (version == 2)


def test_large_spaces_are_split_as_they_always_were():
    numbers = np.arange(48).reshape(6, 8) * 977 % 64
    assert belongs(numbers, "train").tolist() == [False, False, False, False, True, True]
    assert belongs(recall(64, 2).batch("test", range(100)).tokens[:, :4].numpy(), "test").all()
    assert [build("parity", seq_len=n, test_seq_len=n).version for n in (17, 18, 40)] == [2, 1, 1]
