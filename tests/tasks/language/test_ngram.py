from __future__ import annotations

import math

import numpy as np
import pytest

from tasks.language.ngram import trigram_bits, unigram_bits

VOCAB = 5
TRAIN = np.array([0, 1, 2, 0, 1, 3, 0, 1, 2, 4, 0, 0, 1])


def witten_bell(word: int, context: tuple[int, ...]) -> float:
    """The definition, one probability at a time."""
    n = len(context)
    followers = [int(TRAIN[i + n]) for i in range(len(TRAIN) - n) if tuple(TRAIN[i : i + n]) == context]
    shorter = witten_bell(word, context[1:]) if context else 1 / VOCAB
    if not followers:
        return shorter
    return (followers.count(word) + len(set(followers)) * shorter) / (len(followers) + len(set(followers)))


CONTEXTS = [(0, 1), (1, 2), (4, 0), (3, 3), (0, 4), (2, 0)]


@pytest.mark.parametrize("context", CONTEXTS)
def test_trigram_equals_its_definition_and_sums_to_one(context):
    words = np.arange(VOCAB)
    bits = trigram_bits(TRAIN, np.tile(context, (VOCAB, 1)), words, VOCAB)
    expected = [witten_bell(int(word), context) for word in words]
    assert 2.0**-bits == pytest.approx(expected, rel=1e-12)
    assert sum(2.0**-bits) == pytest.approx(1)


def test_unigram_equals_its_definition_and_sums_to_one():
    # An id that was not counted has one, too.
    words = np.arange(VOCAB + 1)
    expected = [(np.sum(word == TRAIN) + 5 / 6) / (len(TRAIN) + 5) for word in words]
    bits = unigram_bits(np.bincount(TRAIN, minlength=VOCAB + 1), words)
    assert 2.0**-bits == pytest.approx(expected) and sum(expected) == pytest.approx(1)


def test_unigram_is_the_cross_entropy_on_the_scored_text():
    train, scored = np.arange(8).repeat(1000), np.array([0, 0, 0, 1])
    assert unigram_bits(np.bincount(train), train).mean() == pytest.approx(math.log2(8))
    assert unigram_bits(np.array([3000, 1000]), scored).mean() == pytest.approx(0.811278, abs=1e-3)
    assert unigram_bits(np.array([1000, 3000]), scored).mean() == pytest.approx(1.603759, abs=1e-3)


def test_trigram_of_a_large_vocabulary_does_not_overflow():
    vocab_size = 2**20
    train = np.array([vocab_size - 1, vocab_size - 2, vocab_size - 3] * 50)
    bits = trigram_bits(train, train[None, :2], train[2:3], vocab_size)
    assert 0 < bits[0] < 0.2
