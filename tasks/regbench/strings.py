"""Strings of regular languages, one problem a row: what a walk through an automaton writes, again and again."""

from __future__ import annotations

import numpy as np

from tasks.regbench.automata import Automata

PAD = 0


def draw_strings(
    rng: np.random.Generator,
    automata: Automata,
    *,
    num_strings: tuple[int, int],
    max_len: int,
    separator: int,
    length: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [N, length] of strings with a separator between two, PAD behind the last; and the states before them [N, length].

    How many strings there are is uniform from num_strings[0] to num_strings[1], the length of each from 1 to max_len; every
    letter is uniform among those of the present state's edges. What is longer than `length` is cut there. Both are uint8;
    the state before a separator or PAD is 0.
    """
    (count, most, edges), (low, high) = automata.letters.shape, num_strings
    held = np.arange(high) < rng.integers(low, high + 1, size=(count, 1))
    lengths = np.where(held, rng.integers(1, max_len + 1, size=(count, high)), 0)
    width = max(length, longest(high, max_len))
    starts = np.cumsum(lengths + 1, axis=1) - lengths - 1 + width * np.arange(count)[:, None]
    # Both as one row of all problems.
    tokens, before = (np.full(count * width, each, dtype=np.uint8) for each in (PAD, 0))
    tokens[starts[:, 1:][held[:, 1:]] - 1] = separator
    # The longest first: those that go on are always the first ones.
    order = np.argsort(-lengths, axis=None, kind="stable")
    places, first_states = starts.reshape(-1)[order], order // high * most
    going = np.searchsorted(-lengths.reshape(-1)[order], -np.arange(max_len))
    letters, targets = automata.letters.reshape(-1, edges), automata.targets.reshape(-1, edges)
    degree, state = (letters > 0).sum(axis=1), np.zeros(len(order), dtype=np.int64)
    for place, alive in enumerate(going.tolist()):
        now = first_states[:alive] + state[:alive]
        edge = (rng.random(alive) * degree[now]).astype(np.int64)
        columns = places[:alive] + place
        tokens[columns], before[columns] = letters[now, edge], state[:alive]
        state[:alive] = targets[now, edge]
    tokens, before = (each.reshape(count, width)[:, :length].copy() for each in (tokens, before))
    return tokens, before


def longest(num_strings: int, max_len: int) -> int:
    """The most tokens that a problem can have: strings and the separators between them."""
    return num_strings * (max_len + 1) - 1
