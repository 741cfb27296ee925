"""Finite automata without rejecting states, many at a time: drawn, minimised, and brought into one form for each language.

State 0 is the start. Every state accepts, so a word belongs to the language if and only if it can be walked.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tasks.synthetic.sampling import first_smallest


class Automata(NamedTuple):
    """N automata of at most S states, each with at most E edges.

    letters: [N, S, E] uint8, from 1, what a state's edges are called, ascending; 0 where there is no edge.
    targets: [N, S, E] uint8, the states to which they lead; 0 where there is no edge.
    """

    letters: np.ndarray
    targets: np.ndarray


def draw_automata(
    rng: np.random.Generator, count: int, *, num_letters: int, min_alphabet: int, num_states: tuple[int, int], max_edges: int
) -> Automata:
    """Automata as Akyürek et al. (2024), section 3, draw them, by the program that they published.

    The number of states is uniform from num_states[0] to num_states[1], that of letters from min_alphabet to num_letters.
    A state has 1 to max_edges edges, uniform, with different letters to different states other than itself.
    """
    low, high = num_states
    states = rng.integers(low, high + 1, size=(count, 1, 1))
    sizes = rng.integers(min_alphabet, num_letters + 1, size=(count, 1, 1))
    # The first letters of a random order are the alphabet.
    order = _chosen(rng, np.ones((count, 1, num_letters), bool), num_letters) + 1
    places = _chosen(rng, np.broadcast_to(np.arange(num_letters) < sizes, (count, high, num_letters)), max_edges)
    targets = _chosen(rng, (np.arange(high) < states) & ~np.eye(high, dtype=bool), max_edges)
    absent = np.arange(max_edges) >= rng.integers(1, max_edges + 1, size=(count, high, 1))
    letters = np.take_along_axis(order, places, axis=2)
    letters[absent] = num_letters + 1
    # Targets are in random order and need not be sorted with the letters.
    letters = np.where(absent, 0, np.sort(letters, axis=2))
    return Automata(letters.astype(np.uint8), np.where(absent, 0, targets).astype(np.uint8))


def _chosen(rng: np.random.Generator, permitted: np.ndarray, count: int) -> np.ndarray:
    """`count` different columns of those that each row permits [..., C], in random order [..., count]."""
    draws = rng.random(permitted.shape) + ~permitted
    return first_smallest(draws.reshape(-1, draws.shape[-1]), count).reshape(*draws.shape[:-1], count)


def equivalent(automata: Automata) -> np.ndarray:
    """[N, S, S] bool: which two states have the same words before them (Moore 1956).

    States that differ in the letters of their edges differ; so do states of which one letter leads to two that differ.
    """
    letters, targets = automata
    same = (letters[:, :, None] == letters[:, None]).all(axis=3)
    rows, one, other = np.nonzero(same)
    while True:
        kept = same[rows[:, None], targets[rows, one], targets[rows, other]].all(axis=1)
        if kept.all():
            return same
        same[rows[~kept], one[~kept], other[~kept]] = False
        rows, one, other = rows[kept], one[kept], other[kept]


def minimal(automata: Automata) -> Automata:
    """The smallest automata of the same languages, in canonical form: they are equal if and only if the languages are.

    States are numbered as a breadth-first search that follows letters in ascending order meets them; states that are never
    met have no edges.
    """
    letters, (count, most, edges) = automata.letters, automata.letters.shape
    # Equivalent states are taken for the first of them.
    every, first = np.arange(count), equivalent(automata).argmax(axis=2)
    targets = first[every[:, None, None], automata.targets]
    number = np.full((count, most), most)
    met = np.zeros((count, most), dtype=np.int64)
    number[:, 0], found = 0, np.ones(count, dtype=np.int64)
    for place in range(most):
        state = met[:, place]
        for edge in range(edges):
            target = targets[every, state, edge]
            new = (place < found) & (letters[every, state, edge] > 0) & (number[every, target] == most)
            rows, target, free = every[new], target[new], found[new]
            number[rows, target], met[rows, free] = free, target
            found += new
    rows = every[:, None]
    letters = letters[rows, met] * (np.arange(most) < found[:, None])[..., None]
    targets = number[rows[..., None], targets[rows, met]]
    return Automata(letters, np.where(letters > 0, targets, 0).astype(np.uint8))


def table(automata: Automata, num_letters: int) -> np.ndarray:
    """The states [N, S, num_letters] to which each letter from 1 leads, plus 1; 0 where it cannot follow."""
    letters, targets = automata
    found = np.zeros((*letters.shape[:2], num_letters + 1), dtype=np.uint8)
    np.put_along_axis(found, letters.astype(np.int64), targets + 1, axis=2)
    return found[:, :, 1:]
