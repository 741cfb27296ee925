"""Finite groups as permutations of points, and their multiplication tables."""

from __future__ import annotations

import functools
import itertools
from typing import Literal

import numpy as np

Group = Literal["S3", "A5", "S5", "Z60", "A4xZ5"]

ORDERS: dict[str, int] = {"S3": 6, "A5": 60, "S5": 120, "Z60": 60, "A4xZ5": 60}
"""How many elements every group has."""


@functools.cache
def permutations_of(group: str) -> np.ndarray:
    """The elements [G, n]: i goes to row[i]. They stand in lexicographic order, so the identity is the first.

    S_n are all permutations of n points, A_n the even ones, Z_n the rotations; in a product the second group moves other
    points than the first.
    """
    if "x" in group:
        first, second = (permutations_of(factor) for factor in group.split("x"))
        moved = np.tile(first.shape[1] + second, (len(first), 1))
        return np.concatenate([np.repeat(first, len(second), axis=0), moved], axis=1)
    kind, points = group[0], int(group[1:])
    if kind == "Z":
        return (np.arange(points)[:, None] + np.arange(points)) % points
    every = np.array(list(itertools.permutations(range(points))))
    return every if kind == "S" else every[_inversions(every) % 2 == 0]


@functools.cache
def multiplication_table(group: str) -> np.ndarray:
    """The product a b of any two elements [G, G], by their numbers: a acts first, then b."""
    elements = permutations_of(group)
    numbers = {element.tobytes(): number for number, element in enumerate(elements)}
    products = elements[:, elements].swapaxes(0, 1)
    return np.array([[numbers[product.tobytes()] for product in row] for row in products])


def _inversions(permutations: np.ndarray) -> np.ndarray:
    """How many pairs of points every permutation [G, n] brings out of order [G]."""
    first, second = np.triu_indices(permutations.shape[1], k=1)
    return (permutations[:, first] > permutations[:, second]).sum(axis=1)
