"""Which training examples a step reads: a function of the seed and the step alone, in constant memory for any number of them."""

from __future__ import annotations

import functools

import numpy as np

MOST_SHUFFLED = 2**24  # a shuffled list of so many examples takes 128 MiB; longer ones are never written down
ROUNDS = 8
# The multipliers of SplitMix64 (Steele, Lea & Flood 2014), whose output passes the usual tests of randomness.
MIX = np.array([0xBF58476D1CE4E5B9, 0x94D049BB133111EB], dtype=np.uint64)


def example_indices(step: int, *, batch_size: int, num_examples: int | None, seed: int) -> np.ndarray:
    """The training examples of a step [batch_size] int64: a fresh permutation every epoch, a function of its arguments alone.

    All models of a seed see the same examples in the same order. A split without a bound is read in order.
    """
    first = step * batch_size
    if num_examples is None:
        return np.arange(first, first + batch_size)
    epochs, places = np.divmod(np.arange(first, first + batch_size), num_examples)
    if epochs[0] == epochs[-1]:
        return _examples(places, epochs[0], num_examples, seed)
    parts = [_examples(places[epochs == epoch], epoch, num_examples, seed) for epoch in range(epochs[0], epochs[-1] + 1)]
    return np.concatenate(parts)


def _examples(places: np.ndarray, epoch: int, num_examples: int, seed: int) -> np.ndarray:
    """The examples at these places of an epoch's order."""
    if num_examples > MOST_SHUFFLED:
        return permuted(places, num_examples, key=(seed, epoch))
    return _epoch_order(epoch, num_examples, seed)[places]


@functools.lru_cache(maxsize=2)
def _epoch_order(epoch: int, num_examples: int, seed: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(num_examples)


def permuted(places: np.ndarray, count: int, *, key: tuple[int, int]) -> np.ndarray:
    """Where a pseudo-random permutation of 0 to count - 1 takes these places [B], each from 0 to count - 1.

    A Feistel network permutes the numbers of 2h bits, the fewest that hold count - 1 (Luby & Rackoff 1988). Where it leads
    to count or above it is applied again until it doesn't, which permutes 0 to count - 1 (cycle walking; Black & Rogaway
    2002), in fewer than 4 applications on average. The keys of its rounds are drawn from Philox at `key`.
    """
    half = max(1, -(-(count - 1).bit_length() // 2))
    keys = np.random.Generator(np.random.Philox(key=key)).integers(2**64, size=ROUNDS, dtype=np.uint64)
    found = _network(places.astype(np.uint64), half, keys)
    while (outside := found >= count).any():
        found[outside] = _network(found[outside], half, keys)
    return found.astype(np.int64)


def _network(values: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    mask, shift = np.uint64(2**half - 1), np.uint64(half)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return left << shift | right


def _mixed(values: np.ndarray) -> np.ndarray:
    """64 bits that all depend on all bits of a value."""
    for multiplier, shift in zip(MIX, (30, 27), strict=True):
        values = (values ^ values >> np.uint64(shift)) * multiplier
    return values ^ values >> np.uint64(31)
