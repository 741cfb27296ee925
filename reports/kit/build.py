"""From a page's configuration and the frames to a folder with index.html and the files beside it."""

from __future__ import annotations

import base64
import gc
import html
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd

from reports.kit.commands import commands_of, drawing_of
from reports.kit.details import run_details, run_numbers
from reports.kit.document import document
from reports.kit.hover import points_of
from reports.kit.latex import to_latex
from reports.kit.page import Page, Part, bound_part
from reports.kit.parts import PLAIN_STRINGS, Drawing, Frames, NoData, Table
from reports.kit.render import counted, to_html, to_markdown
from reports.kit.save import save_drawing, svg_of, write_csv
from reports.kit.sheet import SCREEN, Sheet
from suite.results import MACHINE_COLUMNS

SUFFIXES = (".png", ".pdf", ".csv", ".md", ".tex")
CSS_DPI = 96
SCRIPTS = ("dialog.js", "tables.js", "figures.js")


@dataclass(frozen=True)
class Linked:
    """What a page can open: the number of every run on it by its id, and by label, of an arm or a model, the ids of its runs."""

    numbers: Mapping[str, int]
    ids: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, frames: Frames, numbers: Mapping[str, int]) -> Linked:
        cells = frames.cells.drop_duplicates("run_id")
        by_label = (cells.groupby(name)["run_id"].agg(tuple).to_dict() for name in ("family", "arm"))
        return cls(numbers, {label: ids for found in by_label for label, ids in found.items()})

    def runs_of(self, label: str) -> list[int]:
        return [self.numbers[run_id] for run_id in self.ids.get(label, ())]

    def table(self, table: Table) -> Table:
        """The table in which an entry without runs has those of the arm that its row names: the label, and its numbers."""
        rows = []
        for row in table.rows:
            named = next((self.ids[entry.text] for entry in row if entry.text in self.ids), ())
            opens = (entry.sort is not None or entry.text in self.ids for entry in row)
            rows.append(tuple(replace(e, runs=e.runs or named) if opened else e for e, opened in zip(row, opens, strict=True)))
        return replace(table, rows=tuple(rows))


@PLAIN_STRINGS
def build_report(page: Page, frames: Frames, out_dir: Path, sheet: Sheet = SCREEN) -> Path:
    """Writes index.html, readable offline and alone, and the png, pdf, csv, md and tex of its parts; returns its path.

    A part for which the store holds nothing says so in its place. sheet: what figures and tables are drawn for; on paper
    everything lies in the folder's `paper`, beside what was drawn for the page. Raises RequestError for a part that can't be:
    an unknown type, or arguments that it does not take.
    """
    calls = [(part, bound_part(part)) for part in page.parts]
    out_dir = out_dir / "paper" if sheet.on_paper else out_dir
    out_dir.mkdir(parents=True, exist_ok=True)
    details, figures = run_details(frames), dict[str, Any]()
    linked = Linked.of(frames, run_numbers(details))
    with sheet.applied():
        sections = []
        for part, call in calls:
            with _uncollected():
                sections.append(_section(part, call, frames, out_dir, linked, figures))
    command = "\n".join([*commands_of(frames.request), drawing_of(frames.request)])
    whole = document(
        "page.html",
        SCRIPTS,
        data={"runs": details, "figures": figures, "command": command},
        about={"title": page.title, "runs": len(frames.cells), "asked": frames.request["created"]},
        title=html.escape(page.title),
        asked=html.escape(what_was_asked(frames)),
        contents="".join(f'<li><a href="#{part.name}">{html.escape(part.title)}</a></li>' for part, _ in calls),
        sections="\n".join(sections),
        command=html.escape(command),
        made=html.escape(how_it_was_made(frames)),
    )
    index = out_dir / "index.html"
    index.write_text(whole, encoding="utf-8")
    return index


@contextmanager
def _uncollected() -> Iterator[None]:
    """No search for garbage while a part is drawn: of thousands of artists none is garbage until the part is done."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _section(
    part: Part,
    call: Callable[[Frames], Drawing | Table],
    frames: Frames,
    out_dir: Path,
    linked: Linked,
    figures: dict[str, Any],
) -> str:
    """Draws one part, writes its files and returns its piece of the page. figures: gains the points of a figure."""
    paths = [out_dir / f"{part.name}{suffix}" for suffix in SUFFIXES]
    for path in paths:
        path.unlink(missing_ok=True)
    try:
        made = call(frames)
        if isinstance(made, Drawing):
            body = _drawn(made, part, *paths)
            figures[part.name] = points_of(made.figure, linked.runs_of, linked.numbers.get)
        else:
            body = _tabulated(linked.table(made), part.name, linked.numbers, *paths[2:])
    except NoData as nothing:
        body = f'<p class="nothing">Nothing to show: {html.escape(str(nothing))}.</p>'
    links = " · ".join(f'<a href="{path.name}">{path.suffix[1:]}</a>' for path in paths if path.exists())
    return (
        f'<section id="{part.name}">\n<h2>{html.escape(part.title)}</h2>\n'
        f'<p class="caption">{html.escape(part.caption)}</p>\n{body}\n<p class="files">{links}</p>\n</section>'
    )


def _drawn(drawing: Drawing, part: Part, png: Path, pdf: Path, csv: Path, *_others: Path) -> str:
    """Writes the figure and its numbers, the same bytes for the same numbers; returns its piece of the page."""
    save_drawing(drawing, png, pdf, csv)
    notes = "".join(f'<p class="note">{html.escape(note)}</p>\n' for note in drawing.notes)
    # An image rather than inline SVG: the ids of two figures can't clash, and no script of it would run.
    source = f"data:image/svg+xml;base64,{base64.b64encode(svg_of(drawing)).decode()}"
    wide = f"{drawing.figure.get_size_inches()[0] * CSS_DPI:.0f}px"
    plot = f'<div class="plot" data-figure="{part.name}" style="--wide: {wide}; width: {wide}">'
    return f'<figure>{plot}<img alt="{html.escape(part.title)}" src="{source}"></div></figure>\n{notes}'


def _tabulated(table: Table, name: str, numbers: Mapping[str, int], csv: Path, markdown: Path, latex: Path) -> str:
    """Writes the table and its numbers; returns its piece of the page."""
    write_csv(table.data, csv)
    markdown.write_text(to_markdown(table), encoding="utf-8")
    latex.write_text(to_latex(table), encoding="utf-8")
    return to_html(table, name, numbers)


def what_was_asked(frames: Frames) -> str:
    """One sentence: how many models, tasks and seeds, and what became of the runs."""
    cells = frames.cells
    if cells.empty:
        return "The store has no run for this report."
    seeds = cells.groupby(["arm", "task"]).size()
    n = "" if seeds.min() == seeds.max() else f"{seeds.min()} to "
    counts = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in cells["status"].value_counts().items())
    created, tasks = frames.request["created"], ", ".join(sorted(cells["task"].unique()))
    when = f" on {created[:16].replace('T', ' ')}" if created else ""
    return (
        f"{counted(cells['family'].nunique(), 'model')} on {tasks}, n={n}{counted(seeds.max(), 'seed')} each; "
        f"{counted(len(cells), 'run')} asked for{when}: {counts}."
    )


def how_it_was_made(frames: Frames) -> str:
    """Versions and machines of the runs, and the versions that drew the report."""
    runs = [
        f"{column.replace('_', ' ')} {', '.join(sorted(map(str, frames.runs[column].dropna().unique())))}"
        for column in ("backend", *MACHINE_COLUMNS)
        if column in frames.runs and frames.runs[column].notna().any()
    ]
    ages = frames.runs["code"].value_counts()
    made = {"another": "by another state of the code than that which drew this", "unknown": "by an unknown state of the code"}
    asked = counted(len(frames.runs), "run")
    mixed = [f" By the code, {ages[age]} of {asked}: trained {words}." for age, words in made.items() if age in ages]
    drawn = f"Python {platform.python_version()}, numpy {np.__version__}, pandas {pd.__version__}, matplotlib {mpl.__version__}"
    made_on = [f"Runs: {'; '.join(runs)}."] if runs else []
    return " ".join([*made_on, f"Report: {drawn}.{''.join(mixed)}"])
