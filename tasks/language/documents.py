"""The documents of a unit of a large text, whatever its format, in fragments of bounded size."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from tasks.language.hub import hub_texts
from tasks.language.tables import table_texts
from tasks.language.text_files import named
from tasks.language.text_stream import Fragment, blocks, is_stream, text_fragments
from tasks.language.units import HubUnit, LinesUnit, TableUnit, TextUnit

MOST_LINE_BYTES = 2**28
HEADING = re.compile(r"\s?= [^=].* =\s*")


def read_fragments(unit: TextUnit | LinesUnit | TableUnit | HubUnit, rows: str) -> Iterator[Fragment]:
    """The documents that begin in a unit, those of white space alone left out. Raises ValueError, naming the file."""
    if isinstance(unit, HubUnit):
        yield from _of_rows(hub_texts(unit), rows)
        return
    with named(Path(unit.file)):
        if isinstance(unit, TextUnit):
            yield from text_fragments(unit)
        elif isinstance(unit, LinesUnit):
            yield from _of_rows(_line_texts(unit), rows)
        else:
            yield from _of_rows(table_texts(unit.file, unit.field, unit.first, unit.last), rows)


def _of_rows(texts: Iterable[str], rows: str) -> Iterator[Fragment]:
    for text in _joined(texts) if rows == "lines" else texts:
        if text.strip():
            yield Fragment(text, True, True)


def _joined(lines: Iterable[str]) -> Iterator[str]:
    """Documents of lines: a heading of the first level, e.g. " = Title = ", begins one."""
    document: list[str] = []
    for line in lines:
        if document and HEADING.fullmatch(line):
            yield "".join(document)
            document = []
        document.append(line if line.endswith("\n") else f"{line}\n")
    yield "".join(document)


def _line_texts(unit: LinesUnit) -> Iterator[str]:
    """The texts in the lines that begin in a unit. Raises ValueError with the number of a line that has none."""
    # The field's name need not be one that Python permits.
    row: Any = msgspec.defstruct("Row", [("text", str)], rename={"text": unit.field})
    decoder, whole = msgspec.json.Decoder(row), is_stream(Path(unit.file))
    for number, (start, line) in enumerate(_lines(Path(unit.file), unit.begin), 1):
        if start >= unit.end and not whole:
            return
        if not line.strip():
            continue
        try:
            yield decoder.decode(line).text
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            said = f"line {number if whole else _line_number(Path(unit.file), start)}"
            if isinstance(error, msgspec.ValidationError):
                reason = str(error).replace(" - at `$.text`", "").replace("`", "")
                raise ValueError(f"{said} has no text in the field {unit.field!r}: {reason}") from error
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise ValueError(f"{said} is not JSON in UTF-8: {reason}") from error


def _lines(file: Path, begin: int) -> Iterator[tuple[int, bytes]]:
    """Where each line begins, and the line, from the first on that begins at `begin` or behind it."""
    # The byte before tells whether a line begins just there.
    return itertools.islice(_split(file, max(0, begin - 1)), 1 if begin else 0, None)


def _split(file: Path, position: int) -> Iterator[tuple[int, bytes]]:
    rest = b""
    for block in blocks(file, position):
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            yield position, line
            position += len(line) + 1
        if len(rest) > MOST_LINE_BYTES:
            raise ValueError(f"has a line of more than {MOST_LINE_BYTES:,} bytes, which begins at byte {position}")
    if rest:
        yield position, rest


def _line_number(file: Path, start: int) -> int:
    """The number of the line that begins at this byte, counted from 1; only an error asks for it."""
    count, position = 1, 0
    for block in blocks(file, 0):
        count += block[: max(0, start - position)].count(b"\n")
        position += len(block)
        if position >= start:
            break
    return count
