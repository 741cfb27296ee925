"""Attention over a cache is the weighted mean of the values in the slots up to the position, and of all of a full ring."""

from __future__ import annotations

import math

import pytest
import torch

from models.ops.cached_attention import attend
from tests.models.tolerances import assert_near

SLOTS = 6


@pytest.mark.parametrize(("position", "seen"), [(0, 1), (1, 2), (4, 5), (5, 6), (6, 6), (100, 6)])
def test_it_is_a_mean_of_the_values_up_to_the_position(position: int, seen: int) -> None:
    random = torch.Generator().manual_seed(0)
    q, *cache = (torch.randn(shape, generator=random, dtype=torch.float64) for shape in ((2, 3, 4), *2 * [(2, 3, SLOTS, 4)]))
    k, v = cache
    o = attend(q=q, k=k, v=v, position=torch.tensor([0, position]))
    assert_near(o[0], v[0, :, 0], "float64")
    for head in range(3):
        weights = [math.exp(q[1, head] @ k[1, head, s] / 2.0) for s in range(seen)]
        mean = sum(w * v[1, head, s] for s, w in enumerate(weights)) / sum(weights)
        assert_near(o[1, head], mean, "float64")
