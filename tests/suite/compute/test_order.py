from __future__ import annotations

import numpy as np
import pytest

from suite.compute import order
from suite.compute.order import MOST_SHUFFLED, example_indices, permuted


@pytest.mark.parametrize("count", [1, 2, 3, 5, 17, 255, 256, 257, 1025, 4096, 100_003])
@pytest.mark.parametrize("key", [(0, 0), (0, 1), (2**31 - 1, 7)])
def test_a_permutation_takes_every_place_to_another(count, key):
    found = permuted(np.arange(count), count, key=key)
    assert np.array_equal(np.sort(found), np.arange(count))


def test_a_permutation_of_many_scatters_evenly_and_follows_its_key():
    count = 10**12 + 7
    places = np.arange(200_000)
    found = permuted(places, count, key=(0, 0))
    assert len(set(found.tolist())) == len(places) and found.min() >= 0 and found.max() < count
    tenths = np.bincount(found * 10 // count, minlength=10) / len(places)
    assert np.abs(tenths - 0.1).max() < 0.005
    # Neighbours land far from each other: a third of the whole apart on average.
    assert np.abs(np.diff(found)).mean() / count == pytest.approx(1 / 3, abs=0.01)
    for other in ((0, 1), (1, 0)):
        assert not np.array_equal(found, permuted(places, count, key=other))


def test_an_epoch_of_any_length_has_every_example_once_and_its_own_order(monkeypatch):
    monkeypatch.setattr(order, "MOST_SHUFFLED", 10)
    epochs = [[i for step in range(25 * e, 25 * e + 25) for i in indices(step, 100)] for e in range(3)]
    assert all(sorted(epoch) == list(range(100)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    # A batch that lies in two epochs has the end of one order and the beginning of the next.
    orders = {e: [i for step in range(10 * e, 10 * e + 10) for i in indices(step, 40)] for e in range(3)}
    odd = [i for step in range(3) for i in example_indices(step, batch_size=30, num_examples=40, seed=0)]
    assert odd == (orders[0] + orders[1] + orders[2])[:90]


def indices(step: int, count: int) -> list[int]:
    return example_indices(step, batch_size=4, num_examples=count, seed=0).tolist()


def test_the_order_of_few_examples_is_the_one_of_old_runs_and_that_of_many_is_pinned():
    """A run that is resumed after an upgrade goes on in its order."""
    assert example_indices(0, batch_size=6, num_examples=100, seed=0).tolist() == PINNED_FEW
    assert example_indices(0, batch_size=4, num_examples=MOST_SHUFFLED + 1, seed=0).tolist() == PINNED_MANY


PINNED_FEW = [97, 14, 7, 62, 90, 44]
PINNED_MANY = [11246713, 15801528, 14833625, 11205628]
