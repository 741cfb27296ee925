"""Words of several tokens, of which every example has its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tasks.synthetic.sampling import first_smallest


@dataclass(frozen=True)
class Words:
    """All words of min_len ... max_len tokens from 1 ... alphabet; the last token has `alphabet` added, which marks the end.

    tokens: [W, max_len], 0 behind the end. rates: [W], how likely a word is that is drawn by itself: a uniform length, then
    uniform tokens.
    """

    tokens: np.ndarray
    rates: np.ndarray

    @classmethod
    def of(cls, alphabet: int, min_len: int, max_len: int) -> Words:
        parts, rates = [], []
        for length in range(min_len, max_len + 1):
            count = alphabet**length
            part = np.zeros((count, max_len), dtype=np.int64)
            part[:, :length] = 1 + np.stack(np.unravel_index(np.arange(count), (alphabet,) * length), axis=1)
            part[:, length - 1] += alphabet
            parts.append(part)
            rates.append(np.full(count, 1 / count))
        return cls(np.concatenate(parts), np.concatenate(rates) / len(parts))

    def draw(self, rng: np.random.Generator, count: int, different: int) -> np.ndarray:
        """The numbers of different words [count, different], as they come when words are drawn and repetitions thrown away.

        The order in which exponential clocks of these rates ring is that.
        """
        return first_smallest(rng.exponential(size=(count, len(self.rates))) / self.rates, different)


def how_many(alphabet: int, min_len: int, max_len: int) -> int:
    """The number of words."""
    return sum(alphabet**length for length in range(min_len, max_len + 1))
