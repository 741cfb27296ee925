"""A table as Markdown and HTML. What an entry says is escaped everywhere: a store may come from a stranger."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping

from reports.kit.parts import Entry, Table

# Up to what is said of it, and of nothing that could end a code span or begin an element.
COMMAND = re.compile(r"(python -m suite [^`<>\n]*?)(?= \(|;|$)")


def to_markdown(table: Table) -> str:
    """A pipe table: best in bold, second in italics, since Markdown does not underline."""
    wrap = {"best": "**{}**", "second": "*{}*", "": "{}"}
    lines = [
        " | ".join(map(escape_markdown, table.header)),
        " | ".join("---:" if numeric else "---" for numeric in numeric_columns(table)),
    ]
    lines += [" | ".join(wrap[entry.mark].format(escape_markdown(entry.text)) for entry in row) for row in table.rows]
    notes = "".join(f"\n{_note(note)}\n" for note in table.notes)
    return "".join(f"| {line} |\n" for line in lines) + notes


def to_html(table: Table, name: str = "", numbers: Mapping[str, int] | None = None) -> str:
    """A table that a click on a header sorts; `data-sort` carries the number behind an entry's text.

    name: what a download of it is called. numbers: by its id, the number of every run that the page can open.
    """
    classes = [' class="number"' if numeric else "" for numeric in numeric_columns(table)]
    header = "".join(
        f'<th scope="col"{kind}><button>{html.escape(title)}</button></th>'
        for kind, title in zip(classes, table.header, strict=True)
    )
    known = numbers or {}
    rows = ("".join(_html_entry(entry, kind, known) for entry, kind in zip(row, classes, strict=True)) for row in table.rows)
    body = "".join(f"<tr>{row}</tr>\n" for row in rows)
    notes = "".join(f'<p class="note">{html.escape(note)}</p>\n' for note in table.notes)
    start = f'<div class="scroll"><table data-name="{html.escape(name)}">'
    return f"{start}\n<thead><tr>{header}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n{notes}"


def scientific(value: float) -> str:
    """A number of any size for an entry or a sentence: "1.2e-5", "1e-4", "3.0", "76", "inf"."""
    if not math.isfinite(value):
        return f"{value}"
    minus = "−" if value < 0 else ""
    if 10 <= abs(value) < 1000:
        return f"{minus}{abs(value):.0f}"
    mantissa, exponent = f"{abs(value):.1e}".split("e")
    return minus + (mantissa if int(exponent) == 0 else f"{mantissa.removesuffix('.0')}e{int(exponent)}")


def signed(value: float, digits: int) -> str:
    """A difference for an entry or a sentence: "+0.12", "−0.12"; a value that rounds to zero is +0."""
    return f"{round(value, digits) + 0.0:+,.{digits}f}".replace("-", "−")


def counted(count: float, what: str) -> str:
    """So many of something: "1 run", "2,048 runs"."""
    return f"{count:,.0f} {what}{'' if count == 1 else 's'}"


def signed_interval(low: float, high: float, digits: int) -> str:
    """The interval of a difference behind its mean: " [−0.12, +0.34]", nothing where there is none."""
    return "" if math.isnan(low) else f" [{signed(low, digits)}, {signed(high, digits)}]"


def numeric_columns(table: Table) -> list[bool]:
    """Which columns hold a number anywhere: these are aligned to the right."""
    return [any(row[i].sort is not None for row in table.rows) for i in range(len(table.header))]


def _html_entry(entry: Entry, kind: str, numbers: Mapping[str, int]) -> str:
    wrap = {"best": "<b>{}</b>", "second": "<u>{}</u>", "": "{}"}
    sort = "" if entry.sort is None else f' data-sort="{entry.sort:.10g}"'
    text = wrap[entry.mark].format(html.escape(entry.text))
    opened = " ".join(str(numbers[run_id]) for run_id in entry.runs if run_id in numbers)
    if opened:
        text = f'<button type="button" data-runs="{opened}">{text}</button>'
    return f"<td{kind}{sort}>{text}</td>"


def one_line(text: str) -> str:
    """Line breaks and tabs would end a row; a no-break space stays."""
    return re.sub(r"[^\S\N{NO-BREAK SPACE}]+", " ", text)


def _note(text: str) -> str:
    """With commands as code, which can be copied as they are."""
    *pairs, rest = COMMAND.split(one_line(text))
    said = (f"{escape_markdown(before)}`{command}`" for before, command in zip(pairs[::2], pairs[1::2], strict=True))
    return "".join(said) + escape_markdown(rest)


def escape_markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]|~])", r"\\\1", html.escape(one_line(text), quote=False))
