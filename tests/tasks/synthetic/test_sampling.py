from __future__ import annotations

import numpy as np
import pytest

from tasks.synthetic.sampling import SHORT, distinct, first_smallest, first_smallest_uniform

ROWS = 256


@pytest.mark.parametrize(("columns", "count"), [(4095, 64), (4096, 3), (15, 4), (16, 15)])
def test_the_smallest_of_uniform_numbers_are_found_without_making_them(columns, count):
    """And the generator is left where it would be; equal numbers among them are in the order that sorting leaves."""
    whole, quick = (np.random.Generator(np.random.Philox(key=[0, columns])) for _ in range(2))
    equal = 0
    for _ in range(3):
        draws = whole.random((ROWS, columns), dtype=np.float32)
        assert np.array_equal(first_smallest_uniform(quick, draws.shape, count), first_smallest(draws, count))
        equal += int((np.diff(np.sort(draws, axis=1)[:, :count]) == 0).sum())
        assert whole.exponential() == quick.exponential()
    assert equal > 0 or count < 64


@pytest.mark.parametrize("columns", [4095, 64])
def test_half_a_word_that_was_left_over_comes_first(columns):
    whole, quick = (np.random.Generator(np.random.Philox(key=[1, columns])) for _ in range(2))
    for rng in (whole, quick):
        rng.random(1, dtype=np.float32)
    assert quick.bit_generator.state["has_uint32"]
    draws = whole.random((ROWS, columns), dtype=np.float32)
    assert np.array_equal(first_smallest_uniform(quick, draws.shape, 4), first_smallest(draws, 4))
    assert whole.exponential() == quick.exponential()


@pytest.mark.parametrize("columns", [SHORT, SHORT + 1, 3000])
@pytest.mark.parametrize("count", [1, 40])
def test_equal_numbers_stand_in_the_order_of_their_columns(columns, count):
    """Whatever a processor's sorting algorithm makes of them."""
    draws = np.random.default_rng(columns).integers(50, size=(ROWS, columns)).astype(np.float32)
    expected = [sorted(range(columns), key=lambda i, row=row: (row[i], i))[:count] for row in draws[:20].tolist()]
    assert first_smallest(draws[:20], count).tolist() == expected


@pytest.mark.parametrize(("count", "size"), [(4, 4), (3, 300), (64, 4095), (5, 70_000)])
def test_distinct_numbers_are_distinct_and_below_their_bound(count, size):
    drawn = distinct(np.random.default_rng(size), (ROWS, count), size)
    assert all(len(set(row)) == count for row in drawn.tolist()) and drawn.max() < size


def test_all_ordered_choices_are_equally_likely():
    rng = np.random.default_rng(0)
    drawn = np.concatenate([distinct(rng, (ROWS, 3), 4) for _ in range(200)])
    kinds, counts = np.unique(drawn, axis=0, return_counts=True)
    expected = len(drawn) / 24
    assert len(kinds) == 24 and abs(counts - expected).max() < 4 * np.sqrt(expected)
