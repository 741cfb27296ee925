"""A table for a terminal: columns aligned by the width that a terminal gives their letters, no line broken."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence

from reports.kit.parts import Table
from reports.kit.render import numeric_columns, one_line

GAP = "  "
BEST = "*"
BEST_NOTE = "* best"


def to_text(table: Table, width: int) -> str:
    """The table with its notes, every line at most `width` letters wide where that can be; the best are marked by *.

    Columns that do not fit beside the others stand below them, behind the first column once more. Where not even one fits
    beside the first, every row is a list of its entries.
    """
    marked = [any(row[i].mark == "best" for row in table.rows) for i in range(len(table.header))]
    # Where one entry has a mark, the others leave room for it.
    rows = [
        [shown(each.text) + (BEST if each.mark == "best" else " " * has) for each, has in zip(row, marked, strict=True)]
        for row in table.rows
    ]
    header = [shown(title) + " " * has for title, has in zip(table.header, marked, strict=True)]
    columns = [list(column) for column in zip(header, *rows, strict=True)]
    widths = [max(map(display_width, column)) for column in columns]
    aligned = [
        [_padded(text, wide, right) for text in column]
        for column, wide, right in zip(columns, widths, numeric_columns(table), strict=True)
    ]
    if any(widths[0] + len(GAP) + wide > width for wide in widths[1:]):
        lines = _as_lists(header, rows)
    else:
        blocks = [[aligned[0], *(aligned[i] for i in block)] for block in _blocks(widths, width)]
        lines = [line for block in blocks for line in ["", *(GAP.join(line).rstrip() for line in zip(*block, strict=True))]][1:]
    notes = [*table.notes, *([BEST_NOTE] if any(marked) else [])]
    wrapped = (textwrap.wrap(shown(note), max(width, 20), break_on_hyphens=False) for note in notes)
    return "".join(f"{line}\n" for line in [*lines, *(line for lines in wrapped for line in lines)])


def _blocks(widths: Sequence[int], width: int) -> list[list[int]]:
    """Which columns stand side by side behind the first."""
    blocks, used = [list[int]()], widths[0]
    for i, wide in enumerate(widths[1:], 1):
        if blocks[-1] and used + len(GAP) + wide > width:
            blocks.append([])
            used = widths[0]
        blocks[-1].append(i)
        used += len(GAP) + wide
    return blocks


def _as_lists(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A line for the first entry of every row, and one below it for every other that says something."""
    lines = []
    for first, *others in rows:
        lines.append(first.rstrip())
        told = zip(header[1:], others, strict=True)
        lines += [f"{GAP}{title.rstrip()}: {text.rstrip()}" for title, text in told if text.strip()]
    return lines


def shown(text: str) -> str:
    """A text on one line that a terminal shows as it stands: what it would obey is spelled out."""
    plain = one_line(text).replace("\N{NO-BREAK SPACE}", " ")
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in plain)


def display_width(text: str) -> int:
    """Columns of a terminal that a text takes: two for a wide letter, none for an accent of the letter before."""
    if text.isascii():
        return len(text)
    accents = sum(unicodedata.category(letter) in ("Mn", "Me", "Cf") for letter in text)
    return len(text) - accents + sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)


def _padded(text: str, width: int, right: bool) -> str:
    space = " " * (width - display_width(text))
    return space + text if right else text + space
