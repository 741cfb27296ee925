"""The best expected accuracy in recall (tasks/mqar.py) of a model that sees a limited number of tokens before each query."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np

from tasks.task import IGNORE, Batch

Draws = tuple[np.ndarray, np.ndarray]
"""Every order in which slots may be drawn: which pair each slot asks, -1 for none [N, slots], and how likely it is [N]."""
MOST_DRAWS = 2**14
"""Above this number of orders the answer may use more than is in sight, see `_chance_of_last_in`."""
LAGUERRE = np.polynomial.laguerre.laggauss(64)


def reachable(batch: Batch, *, vocab_size: int, weights: np.ndarray, fill: float, reach: int) -> list[float]:
    """Per example the expected accuracy of the best answers that use only the `reach` tokens before each query.

    weights: of the first slots in the draw, as many as any example has. fill: how likely a place that asks nothing holds
    a given key. A query whose pair is in sight is answered with certainty. Otherwise all values out of sight are equally
    likely, except where the oldest token in sight is a value whose key is not: it is right if its pair is the one asked.
    """
    best = []
    for tokens, targets, pairs in zip(batch.tokens.numpy(), batch.targets.numpy(), batch.slices["num_pairs"], strict=True):
        queries = np.flatnonzero(targets != IGNORE)
        keys = np.argmax(tokens[queries][:, None] == tokens[None, :], axis=1)
        oldest = np.clip(queries - reach, 0, 2 * pairs)
        guess = 1 / (vocab_size // 2 - pairs + oldest // 2)
        right = np.where(keys >= oldest, 1.0, guess)
        slots = np.array([queries[keys == 2 * i][0] for i in range(pairs)]) // 2 - pairs
        drawn = weights[: len(tokens) // 2 - pairs]
        for i in np.flatnonzero((oldest % 2 == 1) & (keys < oldest)):
            slot, hidden = queries[i] // 2 - pairs, oldest[i] // 2 + 1
            if math.perm(len(drawn), pairs) <= MOST_DRAWS:
                seen = {"hidden": hidden, "num_keys": vocab_size // 2 - 1, "fill": fill}
                lone = _chance_of_last(tokens, slot, draws=_draws(tuple(drawn), pairs), **seen)
            else:
                lone = _chance_of_last_in(slots[:hidden], slot, drawn)
            right[i] = max(lone, (1 - lone) * guess[i])
        best.append(float(right.mean()))
    return best


def _chance_of_last(tokens: np.ndarray, slot: int, *, hidden: int, num_keys: int, draws: Draws, fill: float) -> float:
    """How likely `slot` asks the last of the first `hidden` pairs, whose keys are out of sight, given all tokens after them."""
    asks, chance, pairs = *draws, int(draws[0].max()) + 1
    asks, keys, shown = asks[:, : slot + 1], tokens[0 : 2 * pairs : 2], tokens[2 * pairs :: 2][: slot + 1]
    out_of_sight = (asks >= 0) & (asks < hidden)
    unknown = (shown > 0) & (shown <= num_keys) & ~np.isin(shown, keys[hidden:])
    nothing = np.full(len(shown), fill) if fill else shown == 0
    fits = np.where(asks < 0, nothing, np.where(out_of_sight, unknown, keys[asks] == shown)).prod(axis=1)
    for token in set(shown.tolist()):
        # Two places that show one key can't both ask it.
        fits = fits * (out_of_sight[:, shown == token].sum(axis=1) <= 1)
    # The keys out of sight are drawn of those that are not in sight.
    ways = np.array([math.perm(num_keys - pairs + hidden - 1, k) for k in range(hidden)])
    seen = chance * fits * out_of_sight[:, -1] / ways[out_of_sight.sum(axis=1) - 1]
    return float(seen[asks[:, -1] == hidden - 1].sum() / seen.sum())


@functools.cache
def _draws(weights: tuple[float, ...], pairs: int) -> Draws:
    orders = np.array(list(itertools.permutations(range(len(weights)), pairs)))
    drawn = np.array(weights)[orders]
    asks = np.full((len(orders), len(weights)), -1)
    np.put_along_axis(asks, orders, np.arange(pairs)[None], axis=1)
    return asks, (drawn / (sum(weights) - drawn.cumsum(axis=1) + drawn)).prod(axis=1)


def _chance_of_last_in(taken: Sequence[int], slot: int, weights: np.ndarray) -> float:
    """An upper bound of `_chance_of_last`, for one who knows which slots the hidden pairs take, but not in which order."""
    others = [i for i in taken if i != slot]
    return float(weights[slot] / (weights.sum() - weights[others].sum()) * _first(others, weights) / _first(taken, weights))


def _first(slots: Sequence[int], weights: np.ndarray) -> float:
    """How likely these slots are drawn before all others: exponential clocks of these rates ring before the first other."""
    rest = weights.sum() - weights[slots].sum()
    if len(slots) == len(weights):
        return 1.0
    nodes, masses = LAGUERRE
    return float(masses @ (1 - np.exp(-np.outer(nodes, weights[slots] / rest))).prod(axis=1))
