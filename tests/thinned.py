"""Parametrisations over a product of which the default suite runs a part; the others are marked slow.

A fault mostly shows at one value, or at two values that meet. So a part in which every two values meet finds what the whole
product does, but for what takes three: `-m slow` runs the rest.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pytest

Places = tuple[int, ...]


def pairwise(**axes: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrises by the product of the axes, whose default part has every two values of two axes together."""
    values = [list(axis) for axis in axes.values()]
    return _parametrized(axes, values, _covering([len(axis) for axis in values]))


def in_turn(**axes: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrises by the product of the axes, whose default part has every value of the first, the others taking turns."""
    values = [list(axis) for axis in axes.values()]
    most = max(map(len, values))
    return _parametrized(axes, values, {tuple(i % len(axis) for axis in values) for i in range(most)})


def _parametrized(names: Collection[str], values: Sequence[list[Any]], default: Collection[Places]) -> pytest.MarkDecorator:
    cases = []
    for places in itertools.product(*(range(len(axis)) for axis in values)):
        case = [axis[i] for axis, i in zip(values, places, strict=True)]
        cases.append(pytest.param(*case, marks=() if places in default else pytest.mark.slow))
    return pytest.mark.parametrize(tuple(names), cases, ids=lambda value: getattr(value, "__name__", None) or str(value))


def _covering(sizes: Sequence[int]) -> set[Places]:
    """Places in a product, as few as a greedy choice finds, in which any two values of two axes stand together somewhere."""

    def pairs(places: Places) -> set[tuple[tuple[int, int], ...]]:
        return set(itertools.combinations(enumerate(places), 2))

    every = list(itertools.product(*map(range, sizes)))
    left, chosen = set().union(*map(pairs, every)), set[Places]()
    while left:
        chosen.add(best := max(every, key=lambda places: len(pairs(places) & left)))
        left -= pairs(best)
    return chosen
