from __future__ import annotations

import itertools

import numpy as np
import pytest

from tasks.language.packing import Documents, Runs

BOS = 99


class Listed:
    """A stream of documents. stretches: how many boundaries each has. leads: whether BOS is in front of all."""

    knows_bytes, digest = True, ""

    def __init__(self, documents: list[list[int]], stretches: list[int] | None = None, *, leads: bool = False) -> None:
        self.all = [i for number, document in enumerate(documents) for i in ([BOS] * (number > 0) + document)]
        self.count, places = len(self.all), [-1] * leads + [place for place, i in enumerate(self.all) if i == BOS]
        cuts = np.cumsum([0, *(stretches or [len(places)])])
        self.stretches = [np.array(places[a:b], dtype=np.int64) for a, b in itertools.pairwise(cuts)]
        self.num_blocks = len(self.stretches)

    def ids(self, starts, length):
        return np.array([self.all[start : start + length] for start in starts])

    def num_bytes(self, starts, length):
        return np.where(self.ids(starts, length) == BOS, 0, 3)

    def boundaries(self, block):
        return self.stretches[block]


LONG, SHORT = [1, 2, 3, 4, 5, 6, 7], [11, 12, 13]


def rows(packing) -> list[list[int]]:
    return packing.ids(range(packing.count)).tolist()


def test_runs_of_two_documents_are_the_stream_and_drop_the_end():
    packed = Runs(Listed([LONG, SHORT]), seq_len=4, bos=BOS)
    assert rows(packed) == [[1, 2, 3, 4], [5, 6, 7, BOS]]
    assert packed.num_bytes([1]).tolist() == [[3, 3, 3, 0]] and packed.documents([0, 1]) == [0, 0]
    assert rows(Runs(Listed([LONG, SHORT]), seq_len=3, bos=BOS)) == [[1, 2, 3], [4, 5, 6], [7, BOS, 11]]
    # Each document has one id in it: the earlier counts.
    assert Runs(Listed([LONG, SHORT]), seq_len=3, bos=BOS).documents([2]) == [0]


@pytest.mark.parametrize("leads", [False, True])
def test_each_piece_of_two_documents_begins_an_example(leads):
    packed = Documents(Listed([LONG, SHORT], leads=leads), seq_len=4, bos=BOS)
    assert rows(packed) == [[1, 2, 3, 4], [5, 6, 7, BOS], [11, 12, 13, BOS]]
    assert packed.num_bytes([2, 0]).tolist() == [[3, 3, 3, 0], [3, 3, 3, 3]] and packed.documents([0, 1, 2]) == [0, 0, 1]


def test_an_example_that_is_too_short_is_filled_with_pieces_that_its_number_draws():
    packed = Documents(Listed([LONG, SHORT]), seq_len=5, bos=BOS)
    assert rows(packed) == FILLED
    assert packed.documents([0, 1, 2]) == FILLED_DOCUMENTS
    # An example is a function of its number alone.
    assert packed.ids([2, 1]).tolist() == [FILLED[2], FILLED[1]]


# By hand but for the draws. Pieces are 1 to 5, 6 and 7, 11 to 13. Example 1 has room for two ids behind BOS, example 2 for one.
FILLED = [[1, 2, 3, 4, 5], [6, 7, BOS, 11, 12], [11, 12, 13, BOS, 6]]
FILLED_DOCUMENTS = [0, 0, 1]


def test_no_piece_fills_its_own_example_unless_there_is_no_other():
    many = Documents(Listed([[i] for i in range(20)]), seq_len=9, bos=BOS)
    for example in range(many.count):
        first, *others = many.segments(example)
        assert first.document == example and example not in {each.document for each in others} and len(others) == 4
    drawn = {each.document for example in range(many.count) for each in many.segments(example)[1:]}
    assert len(drawn) > 15
    assert rows(Documents(Listed([[7, 8]]), seq_len=5, bos=BOS)) == [[7, 8, BOS, 7, 8]]


def test_every_id_of_every_document_begins_or_follows_in_some_example():
    documents = [[100 * d + i for i in range(1, 2 + 7 * d % 23)] for d in range(1, 30)]
    packed = Documents(Listed(documents), seq_len=6, bos=BOS)
    firsts = [i for example in range(packed.count) for i in packed.ids([example])[0][: packed.segments(example)[0].length]]
    assert firsts == [i for document in documents for i in document]
    assert all(len(row) == 6 for row in rows(packed))


@pytest.mark.parametrize("leads", [False, True])
@pytest.mark.parametrize("stretches", [[2, 0, 5, 1, 0, 4], [0, 0, 12], [12, 0], [1] * 12])
def test_the_stretches_of_a_stream_decide_nothing(stretches, leads):
    documents = [list(range(10 * d, 10 * d + 1 + 3 * d % 8)) for d in range(20, 33)]
    stretches = [stretches[0] + leads, *stretches[1:]]
    whole, cut = (Documents(Listed(documents, each, leads=leads), seq_len=4, bos=BOS) for each in (None, stretches))
    assert rows(whole) == rows(cut) and whole.documents(range(whole.count)) == cut.documents(range(cut.count))


def test_documents_without_ids_are_no_examples():
    """OLMo's files end with BOS, and one of its documents may be empty."""
    packed = Documents(Listed([[1, 2], [], [3], []]), seq_len=2, bos=BOS)
    assert rows(packed) == [[1, 2], [3, BOS]] and packed.documents([0, 1]) == [0, 2]
