"""From fragments of documents to batches of pieces for a tokenizer, and which documents are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tasks.language.text_stream import Fragment
from tasks.language.tokens import PIECE_CHARACTERS
from tasks.language.units import Part

ASKED_CHARACTERS = 2**16
BATCH_CHARACTERS = 2**20  # of a batch of pieces: bounds the memory of a process that tokenises


class Piece(NamedTuple):
    """A piece of a document that a tokenizer reads alone. part: of its document. begins: whether it is the document's first."""

    text: str
    part: Part
    begins: bool


def is_held_out(beginning: str, fraction: float) -> bool:
    """Whether a document is held out, by its beginning alone.

    It is where the first 8 bytes of the SHA-256 of its first ASKED_CHARACTERS characters, as a number below 2**64, are below
    `fraction` of that. So copies share a part, the order of documents decides nothing, a larger fraction holds out all
    that a smaller one does, and no document has to be held in memory.
    """
    digest = hashlib.sha256(beginning[:ASKED_CHARACTERS].encode()).digest()
    return int.from_bytes(digest[:8], "big") < round(fraction * 2**64)


def batches(fragments: Iterable[Fragment], part: Part | None, fraction: float) -> Iterator[list[Piece]]:
    """All pieces of the fragments in order, in batches of one part and of about BATCH_CHARACTERS.

    part: of all documents; None where each is asked.
    """
    filling: dict[Part, list[Piece]] = {}
    sizes: dict[Part, int] = {}
    for piece in _cut(fragments, part, fraction):
        filling.setdefault(piece.part, []).append(piece)
        sizes[piece.part] = sizes.get(piece.part, 0) + len(piece.text)
        if sizes[piece.part] >= BATCH_CHARACTERS:
            yield filling.pop(piece.part)
            del sizes[piece.part]
    yield from filling.values()


def _cut(fragments: Iterable[Fragment], part: Part | None, fraction: float) -> Iterator[Piece]:
    """Cuts a long document at ends of lines, as `tasks.language.tokens` does one that is in memory."""
    rest, begins, place = "", True, part
    for fragment in fragments:
        if fragment.begins:
            place = part or ("validation" if is_held_out(fragment.text, fraction) else "train")
        assert place is not None
        text, start = rest + fragment.text, 0
        while len(text) - start > PIECE_CHARACTERS:
            end = text.rfind("\n", start, start + PIECE_CHARACTERS) + 1 or start + PIECE_CHARACTERS
            yield Piece(text[start:end], place, begins)
            start, begins = end, False
        rest = text[start:]
        if fragment.ends:
            if rest:
                yield Piece(rest, place, begins)
            rest, begins = "", True
