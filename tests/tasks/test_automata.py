from __future__ import annotations

import numpy as np
import pytest

from tasks.regbench.automata import Automata, draw_automata, equivalent, minimal, table

PAPER = {"num_letters": 18, "min_alphabet": 4, "num_states": (4, 12), "max_edges": 3}
# So few letters that many states are equivalent and many automata of one language.
SMALL = {
    "chains": {"num_letters": 2, "min_alphabet": 1, "num_states": (2, 4), "max_edges": 1},
    "two edges": {"num_letters": 2, "min_alphabet": 2, "num_states": (3, 4), "max_edges": 2},
    "three letters": {"num_letters": 3, "min_alphabet": 2, "num_states": (3, 5), "max_edges": 2},
}
# Of 3,100 automata of the authors' generator, minimised by their library: how many have 1, 2, ... 12 states.
PUBLISHED_STATES = [7, 56, 109, 418, 425, 409, 412, 370, 350, 280, 196, 68]


def edges(automata: Automata, i: int) -> list[dict[int, int]]:
    """For every state of an automaton where each letter leads."""
    rows = zip(automata.letters[i].tolist(), automata.targets[i].tolist(), strict=True)
    return [{letter: target for letter, target in zip(*row, strict=True) if letter} for row in rows]


def words(automaton: list[dict[int, int]], state: int, length: int) -> frozenset[tuple[int, ...]]:
    """Every word of at most this length that can be walked from a state."""
    if length == 0:
        return frozenset([()])
    further = ((letter, *word) for letter, target in automaton[state].items() for word in words(automaton, target, length - 1))
    return frozenset([(), *further])


def reached(automaton: list[dict[int, int]]) -> set[int]:
    found, ahead = {0}, [0]
    while ahead:
        new = set(automaton[ahead.pop()].values()) - found
        found |= new
        ahead += new
    return found


def draw(count: int, seed: int = 0, **changes) -> Automata:
    return draw_automata(np.random.default_rng(seed), count, **(PAPER | changes))


@pytest.mark.parametrize("kind", SMALL)
def test_states_are_equivalent_if_and_only_if_the_same_words_lie_before_them(kind):
    """Words as long as there are states tell any two states apart (Moore 1956)."""
    automata = draw(150, **SMALL[kind])
    most, found = automata.letters.shape[1], equivalent(automata)
    assert not found.all() and (found.sum((1, 2)) > most).mean() > 0.2
    for i in range(150):
        automaton = edges(automata, i)
        before = [words(automaton, state, most) for state in range(most)]
        assert found[i].tolist() == [[one == other for other in before] for one in before]


@pytest.mark.parametrize("kind", SMALL)
def test_minimal_automata_have_the_language_and_a_state_for_every_different_rest_of_it(kind):
    automata = draw(150, **SMALL[kind])
    most, small = automata.letters.shape[1], minimal(automata)
    fewer = 0
    for i in range(150):
        before, after = edges(automata, i), edges(small, i)
        assert words(before, 0, 2 * most) == words(after, 0, 2 * most)
        rests = {words(before, state, most) for state in reached(before)}
        states = sum(map(bool, after))
        assert len(rests) == states == len(reached(after)) and all(after[:states]) and not any(after[states:])
        fewer += states < len(reached(before))
    assert fewer > 10


@pytest.mark.parametrize("kind", SMALL)
def test_canonical_forms_are_equal_if_and_only_if_the_languages_are(kind):
    """Words as long as two automata have states together tell their languages apart."""
    automata = draw(300, **SMALL[kind])
    small, length = minimal(automata), 2 * automata.letters.shape[1]
    forms = table(small, SMALL[kind]["num_letters"])
    pairs = {(words(edges(automata, i), 0, length), forms[i].tobytes()) for i in range(300)}
    languages, different = {language for language, _ in pairs}, {form for _, form in pairs}
    assert len(pairs) == len(languages) == len(different) < 270
    assert len(languages) > 5


def test_the_names_of_states_change_no_canonical_form():
    automata = draw(200)
    order = np.concatenate([[0], 1 + np.random.default_rng(1).permutation(11)])
    renamed = Automata(automata.letters[:, order], np.argsort(order)[automata.targets[:, order]].astype(np.uint8))
    assert not np.array_equal(renamed.targets, automata.targets)
    for one, other in zip(minimal(automata), minimal(renamed), strict=True):
        assert np.array_equal(one, other)


def test_what_is_minimal_stays_as_it_is():
    small = minimal(draw(200))
    for one, other in zip(minimal(small), small, strict=True):
        assert np.array_equal(one, other)


def test_a_table_says_where_every_letter_leads():
    small = minimal(draw(50))
    found = table(small, 18)
    for i in range(50):
        for state, leads in enumerate(edges(small, i)):
            assert {letter: target + 1 for letter, target in leads.items()} == {
                letter + 1: target for letter, target in enumerate(found[i, state].tolist()) if target
            }


def test_edges_bear_different_letters_and_lead_to_different_other_states():
    automata = draw(500)
    for i in range(500):
        automaton = edges(automata, i)
        for state, letters in enumerate(automata.letters[i].tolist()):
            held = [letter for letter in letters if letter]
            assert held == sorted(set(held)) and letters[len(held) :] == [0] * (3 - len(held))
            assert 1 <= len(held) <= 3 and max(held) <= 18
            assert len(set(automaton[state].values())) == len(held) and state not in automaton[state].values()
    # Nobody is led to a state above the number that was drawn, and all are led to by some.
    highest = np.array([max(target for state in range(4) for target in edges(automata, i)[state].values()) for i in range(500)])
    assert set(highest.tolist()) >= set(range(3, 12)) and highest.max() == 11


def test_degrees_letters_and_targets_are_uniform():
    automata = draw(4000, num_letters=5, min_alphabet=5, num_states=(5, 5))
    degree = (automata.letters > 0).sum(2)
    for numbers in (degree.ravel(), automata.letters[automata.letters > 0], automata.targets[:, 0][automata.letters[:, 0] > 0]):
        shares = np.unique(numbers, return_counts=True)[1] / len(numbers)
        assert shares == pytest.approx(np.full(len(shares), 1 / len(shares)), abs=0.012)
    assert set(np.unique(automata.targets[:, 0][automata.letters[:, 0] > 0]).tolist()) == {1, 2, 3, 4}
    # The lowest letter of a state leads to every other state alike.
    first = np.unique(automata.targets[:, 0, 0], return_counts=True)[1] / 4000
    assert first == pytest.approx(np.full(4, 0.25), abs=0.03)


def test_alphabets_have_all_sizes_and_all_letters():
    sizes = np.array([len(set(row.ravel().tolist()) - {0}) for row in draw(3000, num_states=(40, 40)).letters])
    # Eighty letters on edges nearly always show the whole alphabet where it is small.
    assert [(sizes == size).mean() for size in range(4, 9)] == pytest.approx([1 / 15] * 5, abs=0.02)
    assert sizes.min() == 4 and sizes.max() == 18


def test_as_many_states_are_left_as_in_the_published_data():
    states = (minimal(draw(6000)).letters[:, :, 0] > 0).sum(1)
    shares, known = np.bincount(states, minlength=13)[1:] / 6000, np.array(PUBLISHED_STATES) / sum(PUBLISHED_STATES)
    error = np.sqrt(known * (1 - known) * (1 / 6000 + 1 / 3100))
    assert (np.abs(shares - known) < 4 * error).all()
