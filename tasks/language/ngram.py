"""How well counting does: the floors below which a language model has learnt something."""

from __future__ import annotations

import numpy as np


def unigram_bits(counts: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Bits [M] that targets [M] cost by the counts of ids in training text [vocab_size]: `trigram_bits` without a context."""
    different = np.count_nonzero(counts)
    return -np.log2((counts[targets] + different / len(counts)) / (counts.sum() + different))


def trigram_bits(train: np.ndarray, contexts: np.ndarray, targets: np.ndarray, vocab_size: int) -> np.ndarray:
    """Bits [M] that targets [M] cost after the two ids before each, contexts [M, 2], by counts in train [N].

    Interpolated Witten-Bell smoothing (Witten & Bell 1991; Chen & Goodman 1998, section 2.5), u the context
    without its first id, N(u) how often u was followed by anything and T(u) by how many different ids:

        p(w | u) = (N(u w) + T(u) p(w | u')) / (N(u) + T(u)),    p(w) = 1 / vocab_size where nothing is left of u.
    """
    probability = np.full(len(targets), 1 / vocab_size)
    for order in (1, 2, 3):
        grams = np.zeros(len(train) - order + 1, dtype=np.int64)
        asked = np.zeros(len(targets), dtype=np.int64)
        # A gram of three ids below 2**21 is one number below 2**63.
        for i in range(order):
            grams = grams * vocab_size + train[i : len(train) - order + 1 + i]
        for column in contexts.T[3 - order :]:
            asked = asked * vocab_size + column
        grams, counts = np.unique(grams, return_counts=True)
        # Grams are sorted, so those of one context are neighbours.
        first, last = (np.searchsorted(grams, (asked + shift) * vocab_size) for shift in (0, 1))
        total = np.concatenate([[0], np.cumsum(counts)])
        followed, different = total[last] - total[first], last - first
        place = np.minimum(np.searchsorted(grams, asked * vocab_size + targets), len(grams) - 1)
        count = np.where(grams[place] == asked * vocab_size + targets, counts[place], 0)
        # Nothing is known after a context that was never seen: the shorter one decides alone.
        estimate = (count + different * probability) / np.maximum(followed + different, 1)
        probability = np.where(different > 0, estimate, probability)
    return -np.log2(probability)
