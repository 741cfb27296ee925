"""The default part of a product: every two values meet, and what is left out is marked slow and not lost."""

from __future__ import annotations

import itertools

from tests.thinned import in_turn, pairwise

AXES = {"letter": "abc", "number": [0, 1, 2], "sign": "+-", "word": ["one", "two", "three", "four"]}


def default(mark) -> list[tuple]:
    return [case.values for case in mark.args[1] if not case.marks]


def every(mark) -> list[tuple]:
    return [case.values for case in mark.args[1]]


def test_any_two_values_meet_in_few_cases():
    found = default(pairwise(**AXES))
    for (i, one), (j, other) in itertools.combinations(enumerate(AXES.values()), 2):
        assert {(case[i], case[j]) for case in found} == set(itertools.product(one, other))
    assert len(found) < 20


def test_every_value_has_its_turn():
    found = default(in_turn(word=AXES["word"], letter=AXES["letter"], sign=AXES["sign"]))
    assert [case[0] for case in found] == AXES["word"]
    assert {case[1] for case in found} == set("abc") and {case[2] for case in found} == set("+-")


def test_the_others_are_marked_slow():
    for mark in (pairwise(**AXES), in_turn(**AXES)):
        assert every(mark) == list(itertools.product(*AXES.values())) and mark.args[0] == tuple(AXES)
        assert {tuple(each.name for each in case.marks) for case in mark.args[1]} == {(), ("slow",)}
