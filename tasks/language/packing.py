"""How the ids of a text become examples of one length."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

CHUNK_WINDOWS = 2**8  # so many examples are looked at together where all are
MOST_BLOCKS = 64  # of documents, whose places are held at once


class Stream(Protocol):
    """The ids of a text's documents, BOS between any two, in order: count of them. digest: hexadecimal, of all of them.

    knows_bytes: whether it is known which id is credited with which bytes of the text.
    num_blocks: the stream is cut into stretches whose places of BOS are read together.
    """

    count: int
    digest: str
    knows_bytes: bool
    num_blocks: int

    def ids(self, starts: np.ndarray, length: int) -> np.ndarray:
        """`length` ids from each of the places [B] on, [B, length] int64."""

    def num_bytes(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The bytes of text that these ids are credited with, [B, length]."""

    def boundaries(self, block: int) -> np.ndarray:
        """The places of BOS in a stretch, in order; -1 where BOS stands in front of all."""

    def counts(self) -> np.ndarray:
        """How often each id of the vocabulary occurs in the stream [vocab_size]."""

    def keep(self) -> None:
        """Keeps what is expensive to make again."""


class Packing(ABC):
    """Examples of seq_len ids; an example is a function of its index alone. count: how many there are."""

    count: int

    def __init__(self, stream: Stream, *, seq_len: int, bos: int) -> None:
        self.stream, self.seq_len, self.bos = stream, seq_len, bos

    @abstractmethod
    def ids(self, examples: Sequence[int] | np.ndarray) -> np.ndarray:
        """What the examples [B] predict, [B, T] int64."""

    @abstractmethod
    def num_bytes(self, examples: Sequence[int] | np.ndarray) -> np.ndarray:
        """The bytes of text that each of these ids is credited with [B, T]; where the stream knows them."""

    @abstractmethod
    def documents(self, examples: Sequence[int] | np.ndarray) -> list[int]:
        """The document to which most ids of each example belong, the earlier of two with as many; documents are counted."""


class Runs(Packing):
    """Example i is the i-th run of seq_len ids of the stream, whatever it cuts; a last run that isn't full is dropped."""

    def __init__(self, stream: Stream, *, seq_len: int, bos: int) -> None:
        super().__init__(stream, seq_len=seq_len, bos=bos)
        self.count = stream.count // seq_len

    def ids(self, examples: Sequence[int] | np.ndarray) -> np.ndarray:
        return self.stream.ids(np.asarray(examples, dtype=np.int64) * self.seq_len, self.seq_len)

    def num_bytes(self, examples: Sequence[int] | np.ndarray) -> np.ndarray:
        return self.stream.num_bytes(np.asarray(examples, dtype=np.int64) * self.seq_len, self.seq_len)

    def documents(self, examples: Sequence[int] | np.ndarray) -> list[int]:
        boundaries = np.concatenate([self.stream.boundaries(block) for block in range(self.stream.num_blocks)])
        boundaries, found = boundaries[boundaries >= 0], list[int]()
        for first in range(0, len(examples), CHUNK_WINDOWS):
            begins = np.asarray(examples[first : first + CHUNK_WINDOWS], dtype=np.int64) * self.seq_len
            places = begins[:, None] + np.arange(self.seq_len)
            documents = np.searchsorted(boundaries, places)
            # A BOS belongs to no document.
            text = np.searchsorted(boundaries, places, side="right") == documents
            found += [int(d[0] + np.bincount(d - d[0], weights=t).argmax()) for d, t in zip(documents, text, strict=True)]
        return found


class Segment(NamedTuple):
    """Ids of one document, as many as `length`, from a place of the stream on."""

    document: int
    start: int
    length: int


class Block(NamedTuple):
    """The documents that begin in a stretch of the stream: where, how long they are, and how many pieces lie before each."""

    starts: np.ndarray
    lengths: np.ndarray
    pieces_before: np.ndarray


class Documents(Packing):
    """Example i begins with the i-th piece of a document (MesaNet, arXiv 2506.05233, App. G).

    A document is cut into pieces of seq_len ids, the last of which may be shorter: the rest of a long document is not lost, but
    an example of its own. A piece of seq_len ids is an example. Behind a shorter one stand BOS and another piece, drawn at
    random by the example's number alone, and so on until the example is full; the last of these is cut at its end. So a
    short document is trained on as often as the draws say, once at the beginning of an example.
    """

    def __init__(self, stream: Stream, *, seq_len: int, bos: int) -> None:
        super().__init__(stream, seq_len=seq_len, bos=bos)
        # A document may end in a later stretch than it begins in.
        self._ends = np.full(stream.num_blocks, stream.count, dtype=np.int64)
        following = stream.count
        for number in reversed(range(stream.num_blocks)):
            self._ends[number] = following
            if len(begins := self._begins(number)):
                following = int(begins[0]) - 1
        self._block = functools.lru_cache(MOST_BLOCKS)(self._read)
        sizes = [self._block(number) for number in range(stream.num_blocks)]
        self._pieces = np.cumsum([0, *(int(block.pieces_before[-1]) for block in sizes)], dtype=np.int64)
        self._documents = np.cumsum([0, *(len(block.starts) for block in sizes)], dtype=np.int64)
        self.count = int(self._pieces[-1])

    def ids(self, examples: Sequence[int] | np.ndarray) -> np.ndarray:
        ids = np.full((len(examples), self.seq_len), self.bos, dtype=np.int64)
        for row, example in zip(ids, examples, strict=True):
            self._fill(row, int(example), self.stream.ids)
        return ids

    def num_bytes(self, examples: Sequence[int] | np.ndarray) -> np.ndarray:
        num_bytes = np.zeros((len(examples), self.seq_len), dtype=np.int64)
        for row, example in zip(num_bytes, examples, strict=True):
            self._fill(row, int(example), self.stream.num_bytes)
        return num_bytes

    def documents(self, examples: Sequence[int] | np.ndarray) -> list[int]:
        found = []
        for example in examples:
            lengths: dict[int, int] = {}
            for segment in self.segments(int(example)):
                lengths[segment.document] = lengths.get(segment.document, 0) + segment.length
            found.append(min(lengths, key=lambda document: (-lengths[document], document)))
        return found

    def segments(self, example: int) -> list[Segment]:
        """The pieces of an example, between any two of which BOS stands."""
        segments = [self._piece(example)]
        left = self.seq_len - segments[0].length
        if left:
            draw = np.random.Generator(np.random.Philox(key=[example, self.seq_len]))
            # What is left may have room for BOS alone.
            while left > 1:
                other = int(draw.integers(max(1, self.count - 1)))
                piece = self._piece(other + (other >= example and self.count > 1))
                segments.append(piece._replace(length=min(piece.length, left - 1)))
                left -= 1 + segments[-1].length
        return segments

    def _fill(self, row: np.ndarray, example: int, read: Callable[[np.ndarray, int], np.ndarray]) -> None:
        place = 0
        for _, start, length in self.segments(example):
            row[place : place + length] = read(np.array([start]), length)[0]
            place += length + 1

    def _piece(self, number: int) -> Segment:
        block = int(np.searchsorted(self._pieces, number, side="right")) - 1
        starts, lengths, before = self._block(block)
        inside = number - int(self._pieces[block])
        document = int(np.searchsorted(before, inside, side="right")) - 1
        skipped = (inside - int(before[document])) * self.seq_len
        length = min(self.seq_len, int(lengths[document]) - skipped)
        return Segment(int(self._documents[block]) + document, int(starts[document]) + skipped, length)

    def _begins(self, number: int) -> np.ndarray:
        """Where documents begin in a stretch; the first of all may have no BOS in front."""
        boundaries = self.stream.boundaries(number)
        if number == 0 and not (len(boundaries) and boundaries[0] == -1):
            boundaries = np.concatenate([[-1], boundaries])
        return boundaries + 1

    def _read(self, number: int) -> Block:
        starts = self._begins(number)
        lengths = np.append(starts[1:] - 1, self._ends[number])[: len(starts)] - starts
        pieces = -(-lengths // self.seq_len)
        return Block(starts, lengths, np.concatenate([[0], np.cumsum(pieces)]))
