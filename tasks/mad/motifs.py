"""Motifs of MAD's fuzzy recall: keys and values of several tokens, none of them twice in one motif."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import numpy as np

ABSENT = -1  # behind a motif's end


@dataclass(frozen=True)
class Pairs:
    """Rows of M pairs: tokens of keys [k, N, M] and of values [v, N, M], with ABSENT behind each end; their sizes [N, M]."""

    keys: np.ndarray
    key_sizes: np.ndarray
    values: np.ndarray
    value_sizes: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """The tokens of each pair [N, M]."""
        return self.key_sizes + self.value_sizes

    def with_one_value_a_key(self) -> tuple[Self, np.ndarray]:
        """The pairs with the value of a key's first pair at all pairs of that key, and the column of that pair [N, M]."""
        origin = first_columns(self.keys)
        values = np.take_along_axis(self.values, origin[None], axis=-1)
        return type(self)(self.keys, self.key_sizes, values, np.take_along_axis(self.value_sizes, origin, axis=-1)), origin

    def with_first_twice_at_end(self) -> Self:
        """The pairs of columns 1, 2 ... M - 1, 0, 0."""
        parts = (getattr(self, field.name) for field in fields(self))
        return type(self)(*(np.concatenate([part[..., 1:], part[..., :1], part[..., :1]], axis=-1) for part in parts))


def draw_motifs(rng: np.random.Generator, sizes: np.ndarray, *, num_tokens: int, most: int) -> np.ndarray:
    """Uniform ordered choices of sizes [N, M] different numbers below num_tokens, [most, N, M] of int32, then ABSENT.

    most: the largest size. To draw the tokens one after another takes no table of all motifs, of which 128 ids have 250,000.
    """
    drawn = np.empty((most, *sizes.shape), dtype=np.int32)
    taken: list[np.ndarray] = []  # smallest first
    for place in range(most):
        token = rng.integers(num_tokens - place, size=sizes.shape, dtype=np.int32)
        # The token-th of the numbers that are left.
        for each in taken:
            token += token >= each
        drawn[place] = np.where(place < sizes, token, ABSENT)
        for i, each in enumerate(taken):
            taken[i], token = np.minimum(each, token), np.maximum(each, token)
        taken.append(token)
    return drawn


def first_columns(motifs: np.ndarray) -> np.ndarray:
    """The column in which each of the motifs [k, N, M] comes first in its row [N, M]. Motifs have no more than 63 bits."""
    _, num_rows, num_columns = motifs.shape
    base = int(motifs.max()) + 2
    codes = np.repeat(np.arange(num_rows)[:, None], num_columns, axis=1)
    for tokens in motifs:
        codes = codes * base + (tokens + 1)
    _, first, place = np.unique(codes.ravel(), return_index=True, return_inverse=True)
    return (first[place.ravel()] % num_columns).reshape(num_rows, num_columns)
