"""From a page's configuration and the frames to a folder with index.html and the files beside it."""

from __future__ import annotations

import base64
import html
import importlib
import inspect
import io
import platform
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from string import Template
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd

from reports.kit.parts import Drawing, Frames, NoData, Table
from reports.kit.render import to_html, to_latex, to_markdown
from reports.kit.style import TABLE
from suite.results import MACHINE_COLUMNS

SUFFIXES = (".png", ".pdf", ".csv", ".md", ".tex")
PNG_DPI = 200
PAGE = Path(__file__).with_name("page.html")
PAGES = Path(__file__).parents[1] / "pages"


def build_report(page: Mapping[str, Any], frames: Frames, out_dir: Path) -> Path:
    """Writes index.html, readable offline and alone, and the png, pdf, csv, md and tex of its parts; returns its path.

    page: {name, title, experiment, parts: [{name, type, title, caption, arguments}]}; `type` is "module.function" of
    reports/pages. A part for which the store holds nothing says so in its place.
    Raises ValueError for a part that can't be: an unknown type, arguments that it does not take, a bad name.
    """
    calls = [(part, bound_part(part)) for part in page["parts"]]
    out_dir.mkdir(parents=True, exist_ok=True)
    sections = [_section(part, call, frames, out_dir) for part, call in calls]
    document = Template(PAGE.read_text(encoding="utf-8")).substitute(
        title=html.escape(page["title"]),
        asked=html.escape(what_was_asked(frames)),
        contents="".join(f'<li><a href="#{part["name"]}">{html.escape(part["title"])}</a></li>' for part, _ in calls),
        sections="\n".join(sections),
        command=html.escape(command_of(frames.request)),
        made=html.escape(how_it_was_made(frames)),
    )
    index = out_dir / "index.html"
    index.write_text(document, encoding="utf-8")
    return index


def bound_part(part: Mapping[str, Any]) -> Callable[[Frames], Drawing | Table]:
    """The function of a part with its arguments filled in, checked before anything is drawn."""
    if not re.fullmatch(r"[\w-]+", part["name"]):
        raise ValueError(f"part name {part['name']!r} is not made of letters, digits, _ and -")
    function, arguments = part_function(part["type"]), dict(part.get("arguments") or {})
    parameters = [name for name in inspect.signature(function).parameters if name != "frames"]
    if set(parameters) != set(arguments):
        raise ValueError(f"part {part['name']!r}: {part['type']} takes {sorted(parameters)}, not {sorted(arguments)}")
    return lambda frames: function(frames, **arguments)


def part_function(type_name: str) -> Callable[..., Drawing | Table]:
    """The function named "module.function" that returns a Drawing or a Table, of a file anywhere in reports/pages.

    Raises ValueError for anything else: a configuration names a part, it can't name arbitrary code.
    """
    module_name, _, function_name = type_name.rpartition(".")
    found = [path for path in PAGES.rglob("*.py") if path.stem == module_name]
    if len(found) != 1:
        known = ", ".join(sorted(path.stem for path in PAGES.rglob("*.py") if path.stem != "__init__"))
        raise ValueError(f"part type {type_name!r} is not of the form module.function with a module of {known}")
    name = ".".join(("reports.pages", *found[0].relative_to(PAGES).with_suffix("").parts))
    function = getattr(importlib.import_module(name), function_name, None)
    if not inspect.isfunction(function) or function.__annotations__.get("return") not in ("Drawing", "Table"):
        raise ValueError(f"part type {type_name!r}: {name} has no table or figure {function_name!r}")
    return function


def _section(part: Mapping[str, Any], call: Callable[[Frames], Drawing | Table], frames: Frames, out_dir: Path) -> str:
    """Draws one part, writes its files and returns its piece of the page."""
    paths = [out_dir / f"{part['name']}{suffix}" for suffix in SUFFIXES]
    for path in paths:
        path.unlink(missing_ok=True)
    try:
        with mpl.rc_context(TABLE["look"]):
            made = call(frames)
            body = (_drawn if isinstance(made, Drawing) else _tabulated)(made, part["title"], *paths)
    except NoData as nothing:
        body = f'<p class="nothing">Nothing to show: {html.escape(str(nothing))}.</p>'
    links = " · ".join(f'<a href="{path.name}">{path.suffix[1:]}</a>' for path in paths if path.exists())
    return (
        f'<section id="{part["name"]}">\n<h2>{html.escape(part["title"])}</h2>\n'
        f'<p class="caption">{html.escape(part["caption"])}</p>\n{body}\n<p class="files">{links}</p>\n</section>'
    )


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """The numbers as csv. Text that a spreadsheet would compute gets an apostrophe, which keeps it text there."""

    def plain(value: object) -> object:
        return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value

    table.rename(columns=plain).map(plain).to_csv(path, index=False)


def _drawn(drawing: Drawing, title: str, png: Path, pdf: Path, csv: Path, *_others: Path) -> str:
    """Writes the figure and its numbers, the same bytes for the same numbers; returns its piece of the page."""
    drawing.figure.savefig(png, dpi=PNG_DPI)
    # The layout is found once: finding it again for every format would take most of the report's time.
    drawing.figure.set_layout_engine("none")
    drawing.figure.savefig(pdf, metadata={"CreationDate": None})
    write_csv(drawing.data, csv)
    notes = "".join(f'<p class="note">{html.escape(note)}</p>\n' for note in drawing.notes)
    picture = io.BytesIO()
    drawing.figure.savefig(picture, format="svg", metadata={"Date": None})
    # An image rather than inline SVG: the ids of two figures can't clash, and no script of it would run.
    source = f"data:image/svg+xml;base64,{base64.b64encode(picture.getvalue()).decode()}"
    return f'<figure><img alt="{html.escape(title)}" src="{source}"></figure>\n{notes}'


def _tabulated(table: Table, _title: str, _png: Path, _pdf: Path, csv: Path, markdown: Path, latex: Path) -> str:
    """Writes the table and its numbers; returns its piece of the page."""
    write_csv(table.data, csv)
    markdown.write_text(to_markdown(table), encoding="utf-8")
    latex.write_text(to_latex(table), encoding="utf-8")
    return to_html(table)


def what_was_asked(frames: Frames) -> str:
    """One sentence: how many models, tasks and seeds, and what became of the runs."""
    cells = frames.cells
    seeds = cells.groupby(["arm", "task"]).size()
    n = f"n={seeds.min()}" if seeds.min() == seeds.max() else f"n={seeds.min()} to {seeds.max()}"
    counts = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in cells["status"].value_counts().items())
    return (
        f"{cells['family'].nunique()} models on {', '.join(sorted(cells['task'].unique()))}, {n} seeds each; "
        f"{len(cells)} runs asked for on {frames.request['created'][:16].replace('T', ' ')}: {counts}."
    )


def command_of(request: Mapping[str, Any]) -> str:
    """The command that makes these runs again, wherever they are to land."""
    overrides = [override for override in request["overrides"] if not override.startswith(("experiment=", "paths."))]
    return shlex.join(["python", "-m", "suite", "run", f"experiment={request['experiment']}", *overrides])


def how_it_was_made(frames: Frames) -> str:
    """Versions and machines of the runs, and the versions that drew the report."""
    runs = [
        f"{column.replace('_', ' ')} {', '.join(sorted(map(str, frames.runs[column].dropna().unique())))}"
        for column in ("backend", *MACHINE_COLUMNS)
        if column in frames.runs and frames.runs[column].notna().any()
    ]
    ages = frames.runs["code"].value_counts()
    made = {"another": "by another state of the code than that which drew this", "unknown": "by an unknown state of the code"}
    mixed = [f" {ages[age]} of {len(frames.runs)} runs were trained {words}." for age, words in made.items() if age in ages]
    drawn = f"Python {platform.python_version()}, numpy {np.__version__}, pandas {pd.__version__}, matplotlib {mpl.__version__}"
    return f"Runs: {'; '.join(runs)}. Report: {drawn}.{''.join(mixed)}"
