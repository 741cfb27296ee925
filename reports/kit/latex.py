r"""A table for a paper: a booktabs tabular that fits into one column, into the whole width, or is broken into several.

What an entry says is escaped: a store may come from a stranger. A fragment to be \input within a table, or a table*, with its
notes below; the first line says which. It needs \usepackage{array, booktabs}, and sizes are those of a class at 10 pt.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.ft2font import FT2Font, LoadFlags

from reports.kit.parts import Entry, Table
from reports.kit.render import numeric_columns, one_line
from reports.kit.sheet import current

LATEX = {character: rf"\{character}" for character in "{}$&#%_"}
LATEX |= {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "\N{NO-BREAK SPACE}": "~"}
LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$", "−": r"$-$", "≤": r"$\le$"}
# Behind the end of a row these two would be its options.
LATEX |= {"[": "{[}", "*": "{*}", "–": "--", "×": r"$\times$", "µ": r"$\mu$", "…": r"\ldots{}"}
WRAP = {"best": r"\textbf{{{}}}", "second": r"\underline{{{}}}", "": "{}"}
SIZES = {"small": (9.0, 1.03, 4.0), "footnotesize": (8.0, 1.065, 3.0)}
"""Per size of text: points, how much wider its letters are than those of 10 pt drawn smaller, points beside a column."""
BOLD = 1.16
"""How much wider bold letters are."""
SYMBOL = 0.78
"""The width of a mathematical sign, in the size of the text."""
LONG_WORD = 14
"""Letters after which a word may be broken where a column is."""
SPARE = 2.0
"""Points that stay free."""


@dataclass(frozen=True)
class Plan:
    """place: "table" or "table*". size: of the text. parts: the columns of every tabular. broken: widths of columns of lines."""

    place: str
    size: str
    parts: tuple[tuple[int, ...], ...]
    broken: dict[int, float]


def to_latex(table: Table) -> str:
    """The tabular, or several below one another with the first column repeated, and the notes; best bold, second underlined."""
    plan = plan_of(table)
    column, page = current().points()
    fits = {"table": f"one column, {column:.0f} pt", "table*": f"the width of the text, {page:.0f} pt"}[plan.place]
    lines = [rf"% For \begin{{{plan.place}}} ({fits}); needs \usepackage{{array, booktabs}}."]
    lines.append(rf"{{\{plan.size}\setlength{{\tabcolsep}}{{{SIZES[plan.size][2]:g}pt}}%")
    for columns in plan.parts:
        lines += [*_tabular(table, plan, columns), r"\par\smallskip"]
    lines.append("}")
    if table.notes:
        notes = "\\par\n".join(_breakable(note) for note in table.notes)
        lines.append(rf"{{\footnotesize\raggedright\noindent {notes}\par}}")
    return "\n".join(lines) + "\n"


def plan_of(table: Table) -> Plan:
    """The largest text in the narrowest place in which the table fits; long texts in lines, or columns apart, where none is."""
    every = tuple(range(len(table.header)))
    column, page = current().points()
    for place, limit in (("table", column), ("table*", page)):
        for size in SIZES:
            if _total(table, size, every) <= limit - SPARE:
                return Plan(place, size, (every,), {})
    broken = _lines_for(table, every, page)
    if broken:
        return Plan("table*", "footnotesize", (every,), broken)
    return _apart(table, page)


def _apart(table: Table, page: float) -> Plan:
    """As many columns as fit into one tabular, the others in the next ones; a column too wide for any is set in lines."""
    parts: list[tuple[int, ...]] = []
    broken = _lines_for(table, (0,), 0.4 * page) or {}
    for column in range(1, len(table.header)):
        longer = (*parts[-1], column) if parts else (0, column)
        if not parts or _total(table, "footnotesize", longer, broken) > page - SPARE:
            if _total(table, "footnotesize", (0, column), broken) > page - SPARE:
                rest = page - SPARE - _total(table, "footnotesize", (0,), broken) - 2 * SIZES["footnotesize"][2]
                broken |= {column: rest}
            longer = (0, column)
            parts.append(longer)
        parts[-1] = longer
    return Plan("table*", "footnotesize", tuple(parts), broken)


def _lines_for(table: Table, columns: Sequence[int], limit: float) -> dict[int, float]:
    """Widths for the columns of text, in lines, with which all of these fit; nothing where they don't, or do anyway."""
    size, numeric = "footnotesize", numeric_columns(table)
    over = _total(table, size, columns) - (limit - SPARE)
    texts = {i: _width(table, size, i) for i in columns if not numeric[i] and _width(table, size, i) > 60}
    if over <= 0 or not texts:
        return {}
    taken = {i: max(_longest_word(table, size, i), width * (1 - over / sum(texts.values()))) for i, width in texts.items()}
    slack = sum(texts.values()) - over - sum(taken.values())
    widest = max(taken, key=lambda i: taken[i])
    taken[widest] += slack
    return taken if taken[widest] >= max(60.0, _longest_word(table, size, widest)) else {}


def _tabular(table: Table, plan: Plan, columns: Sequence[int]) -> list[str]:
    numeric = numeric_columns(table)
    kinds = {i: rf">{{\raggedright\arraybackslash}}p{{{width:.1f}pt}}" for i, width in plan.broken.items()}
    alignment = "".join(kinds.get(i, "r" if numeric[i] else "l") for i in columns)
    header = " & ".join(_header(table, plan.size, i, "r" if numeric[i] else "l", plan.broken.get(i)) for i in columns)
    lines = [rf"\begin{{tabular}}{{@{{}}{alignment}@{{}}}}", r"\toprule", rf"{header} \\", r"\midrule"]
    for row in table.rows:
        lines.append(" & ".join(_entry(row[i], i in plan.broken) for i in columns) + r" \\")
    return [*lines, r"\bottomrule", r"\end{tabular}"]


def _entry(entry: Entry, is_broken: bool) -> str:
    return WRAP[entry.mark].format(_breakable(entry.text) if is_broken else escape_latex(entry.text))


def _header(table: Table, size: str, column: int, side: str, width: float | None) -> str:
    if width is not None:
        return _breakable(_title(table, column))
    lines = [escape_latex(line) for line in _title_lines(table, size, column)]
    stacked = r" \\ ".join(lines)
    return lines[0] if len(lines) == 1 else rf"\shortstack[{side}]{{{stacked}}}"


def _title(table: Table, column: int) -> str:
    return (table.short or table.header)[column]


def _title_lines(table: Table, size: str, column: int) -> list[str]:
    """The title in lines that are no longer than the entries below it, or than its longest word."""
    words = one_line(_title(table, column)).split(" ")
    room = max([_body_width(table, size, column), *(text_width(word, size) for word in words)])
    lines = [words[0]]
    for word in words[1:]:
        longer = f"{lines[-1]} {word}"
        if text_width(longer, size) <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _total(table: Table, size: str, columns: Sequence[int], broken: dict[int, float] | None = None) -> float:
    """The width of a tabular of these columns in points."""
    widths = ((broken or {}).get(i) or _width(table, size, i) for i in columns)
    return sum(widths) + 2 * SIZES[size][2] * (len(columns) - 1)


def _width(table: Table, size: str, column: int) -> float:
    titles = (text_width(line, size) for line in _title_lines(table, size, column))
    return max([_body_width(table, size, column), *titles])


def _body_width(table: Table, size: str, column: int) -> float:
    entries = (row[column] for row in table.rows)
    return max((text_width(entry.text, size) * (BOLD if entry.mark == "best" else 1) for entry in entries), default=0.0)


def _longest_word(table: Table, size: str, column: int) -> float:
    texts = [_title(table, column), *(row[column].text for row in table.rows)]
    return max(text_width(piece, size) for text in texts for word in one_line(text).split(" ") for piece in _pieces(word)) + 2


def text_width(text: str, size: str) -> float:
    """How wide a text is in Computer Modern of this size, in points: about right, and rather too wide."""
    points, factor, _ = SIZES[size]
    return sum(map(_letter_width, one_line(text))) * points * factor


@functools.cache
def _letter_width(letter: str) -> float:
    """The width of a letter in the size of the text."""
    font = _roman()
    if ord(letter) >= 128 or font.get_char_index(ord(letter)) == 0:
        return {"\N{NO-BREAK SPACE}": 1 / 3, "–": 0.5}.get(letter, SYMBOL)
    return font.load_char(ord(letter), flags=LoadFlags.NO_HINTING).linearHoriAdvance / 65536 / 10


@functools.cache
def _roman() -> FT2Font:
    font = FT2Font(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / "cmr10.ttf"))
    font.set_size(10.0, 72.0)
    return font


def _pieces(word: str) -> list[str]:
    return re.findall(f".{{1,{LONG_WORD}}}", word) or [""]


def _breakable(text: str) -> str:
    """The text, escaped, with places at which a long word may be broken."""
    return " ".join(r"\hspace{0pt}".join(map(escape_latex, _pieces(word))) for word in one_line(text).split(" "))


def escape_latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in one_line(text))
