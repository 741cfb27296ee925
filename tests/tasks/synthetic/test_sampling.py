from __future__ import annotations

import numpy as np
import pytest

from tasks.synthetic.sampling import first_smallest, first_smallest_uniform

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
