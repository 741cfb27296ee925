"""Random finite-state grammars, and strings of them (as in SymSeqBench, arXiv 2512.24977)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tasks.synthetic.sampling import first_smallest

LEAST_FOLLOWERS = 2  # symbols behind every state, so that strings are many


@dataclass(frozen=True)
class Grammar:
    """States numbered s * depth + i: the i-th of those that show symbol s.

    follows: which state a symbol leads to [states, symbols], -1 where it may not follow. followers: the same states in a row
    [states, symbols], the first counts[state] of them. starts: the states in which a string may begin, of different symbols.
    """

    follows: np.ndarray
    followers: np.ndarray
    counts: np.ndarray
    starts: np.ndarray

    def strings(self, rng: np.random.Generator, count: int, length: int) -> np.ndarray:
        """The states of random strings [count, length]: a uniform start, then each of the followers with the same chance."""
        states = np.empty((count, length), dtype=np.int64)
        states[:, 0] = self.starts[rng.integers(len(self.starts), size=count)]
        shares = rng.random((length, count))
        for t in range(1, length):
            before = states[:, t - 1]
            states[:, t] = self.followers[before, (shares[t] * self.counts[before]).astype(np.int64)]
        return states


def random_grammar(rng: np.random.Generator, *, num_symbols: int, depth: int, density: float, num_starts: int) -> Grammar:
    """A grammar in which every symbol may follow a state with the chance `density`, and leads to one of its `depth` states.

    The state is known from the string: the first symbol tells where it starts, and every symbol leads to one state. Where
    fewer than LEAST_FOLLOWERS symbols may follow a state, those that came nearest do.
    """
    states = num_symbols * depth
    draws = rng.random((states, num_symbols))
    allowed = draws < density
    np.put_along_axis(allowed, first_smallest(draws, LEAST_FOLLOWERS), True, axis=1)
    leads_to = depth * np.arange(num_symbols) + rng.integers(depth, size=(states, num_symbols))
    order = np.argsort(~allowed, axis=1, kind="stable")
    first = first_smallest(rng.random((1, num_symbols)), num_starts)[0]
    return Grammar(
        follows=np.where(allowed, leads_to, -1),
        followers=np.take_along_axis(leads_to, order, axis=1),
        counts=allowed.sum(axis=1),
        starts=depth * first + rng.integers(depth, size=num_starts),
    )
