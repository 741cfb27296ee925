"""The documents of text files of any size, read from any byte on, in fragments of bounded size."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tasks.files import open_regular
from tasks.language.text_files import COMPRESSED, JSON, MARKER, READ_BYTES, TABLES, UNSEEN, decompressed
from tasks.language.units import TextUnit

MARK = b"<|endoftext|>"
# With the byte before it, which ends the line above, and CRLF behind.
LONGEST_SEPARATOR = len(MARK) + 3
FRAGMENT_BYTES = 2**22  # a document that is longer comes in several fragments
ANY_BYTES = 2**62
RULE = "a separator is a line that holds exactly <|endoftext|> and ends in LF"


class Fragment(NamedTuple):
    """Text of a document; begins, ends: whether it is the first or the last of its document."""

    text: str
    begins: bool
    ends: bool


def blocks(file: Path, begin: int) -> Iterator[bytes]:
    """What a file holds from a byte on, or, from the beginning, what a compressed one holds."""
    if is_stream(file):
        yield from decompressed(file, ANY_BYTES)
        return
    with os.fdopen(open_regular(file, follow=True), "rb") as opened:
        opened.seek(begin)
        while block := opened.read(READ_BYTES):
            yield block


def is_stream(file: Path) -> bool:
    """Whether a file has no bytes but from its beginning on."""
    return file.suffix.lower() in COMPRESSED


def text_fragments(unit: TextUnit) -> Iterator[Fragment]:
    """The documents of a text file that begin in a unit, those of white space alone left out.

    A line that holds exactly <|endoftext|> ends a document. Raises ValueError for what is no UTF-8 text, and for text that
    seems to mark documents otherwise.
    """
    file = Path(unit.file)
    text, end = _Text(file, max(0, unit.begin - LONGEST_SEPARATOR)), ANY_BYTES if is_stream(file) else unit.end
    # The next document may begin behind the unit's end.
    if unit.begin and not (text.skips_to_document(unit.begin) and text.start < end):
        return
    first = unit.begin == 0
    for fragment, is_cut in text.fragments(end):
        if first and not is_cut:
            _check_is_text(file, fragment.text)
        first = False
        _check_marks(fragment.text)
        if not (fragment.begins and fragment.ends) or fragment.text.strip():
            yield fragment


class _Text:
    """A text as it is read: buffer holds its bytes from `start` on; at_line: whether a line begins there."""

    def __init__(self, file: Path, start: int) -> None:
        self.blocks, self.start = blocks(file, start), start
        self.buffer, self.at_line, self.returns, self.lines = b"", start == 0, 0, 0
        if start == 0:
            self._fill()
            if self.buffer.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
                raise ValueError("is UTF-16 or UTF-32 text: write it as UTF-8, e.g. iconv -f UTF-16 -t UTF-8")
            if self.buffer.startswith(b"\xef\xbb\xbf"):
                self._drop(3)

    def skips_to_document(self, begin: int) -> bool:
        """Drops all up to the first separator that ends at `begin` or behind it; False where there is none."""
        while True:
            place = 0
            while found := self._separator(place):
                place = found[1]
                if self.start + place >= begin:
                    self._drop(place)
                    self.at_line = True
                    return True
            # A separator may have begun, with the end of the line above in front of it.
            rest = len(self.buffer) - LONGEST_SEPARATOR
            self.at_line = place >= max(rest, 1) or (rest <= 0 and self.at_line)
            self._drop(max(place, rest, 0))
            if not self._fill():
                return False

    def fragments(self, end: int) -> Iterator[tuple[Fragment, bool]]:
        """The documents that begin before byte `end`, and whether a separator ends the fragment."""
        begins, place = True, 0
        while True:
            if found := self._separator(place):
                yield self._fragment(place, found[0], begins, True), True
                begins, place = True, found[1]
                if self.start + place >= end:
                    return
                continue
            self.at_line = self.at_line or place > 0
            self._drop(place)
            place = 0
            if len(self.buffer) > FRAGMENT_BYTES:
                line = self.buffer.rfind(b"\n") + 1
                cut = line or _whole_letters(self.buffer)
                yield self._fragment(0, cut, begins, False), False
                self._drop(cut)
                begins, self.at_line = False, line > 0
            if not self._fill():
                break
        if self.buffer == MARK and self.at_line or self.buffer.endswith(b"\n" + MARK):
            self.buffer = self.buffer.removesuffix(MARK)
        if self.buffer or not begins:
            yield self._fragment(0, len(self.buffer), begins, True), False
        if self.returns > 10 * self.lines:
            raise ValueError(r"has line ends of CR alone: change them to LF, e.g. tr '\r' '\n'")

    def _separator(self, place: int) -> tuple[int, int] | None:
        """Where the first separator from `place` on begins and ends; None where the buffer has no whole one."""
        while (at := self.buffer.find(MARK, place)) >= 0:
            behind = self.buffer[at + len(MARK) : at + len(MARK) + 2]
            width = 1 if behind[:1] == b"\n" else 2 if behind == b"\r\n" else 0
            if width and (self.buffer[at - 1 : at] == b"\n" if at else self.at_line):
                return at, at + len(MARK) + width
            place = at + 1
        return None

    def _fragment(self, first: int, last: int, begins: bool, ends: bool) -> Fragment:
        try:
            return Fragment(self.buffer[first:last].decode(), begins, ends)
        except UnicodeDecodeError as error:
            raise ValueError(f"is not UTF-8 text (at byte {self.start + first + error.start})") from error

    def _drop(self, count: int) -> None:
        self.buffer, self.start = self.buffer[count:], self.start + count

    def _fill(self) -> bool:
        block = next(self.blocks, b"")
        if (zero := block.find(b"\0")) >= 0 and not block.startswith((b"\xff\xfe", b"\0\0\xfe\xff")):
            raise ValueError(f"is binary, not text (a zero byte at offset {self.start + len(self.buffer) + zero})")
        self.returns, self.lines = self.returns + block.count(b"\r"), self.lines + block.count(b"\n")
        self.buffer += block
        return bool(block)


def _whole_letters(data: bytes) -> int:
    """How many bytes from the front on end with a whole letter of UTF-8."""
    back = next((i for i in range(1, 5) if data[-i] & 0xC0 != 0x80), 0)
    return len(data) - back if back else len(data)


def _check_is_text(file: Path, text: str) -> None:
    """A first document that no separator ends may be a table."""
    suffix = ([""] + [each for each in map(str.lower, file.suffixes) if each not in COMPRESSED])[-1]
    if (kind := TABLES.get(suffix)) or JSON.match(text):
        raise ValueError(f"looks like {kind or 'JSON'}, not text: data=jsonl reads JSON lines; in text {RULE}")


def _check_marks(text: str) -> None:
    if "<|" in text and MARKER.search(text):
        for line in text.splitlines():
            if "<|" in line and MARKER.fullmatch(line.strip(UNSEEN)):
                raise ValueError(f"has the line {line!r}, which separates no documents: {RULE}")
