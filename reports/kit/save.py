"""A drawing as files: png, pdf, csv, and the svg that a page shows."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from fontTools import subset

from reports.kit.finish import finish
from reports.kit.parts import Drawing
from suite.naming import natural

PNG_DPI = 200
LAYOUT_TABLES = ("GDEF", "GPOS", "GSUB", "MATH", "kern")


def save_drawing(drawing: Drawing, png: Path, pdf: Path, csv: Path) -> None:
    """Writes the figure, which is finished by this, and its numbers: the same bytes for the same numbers.

    The figure is exactly as large as it was made: a box drawn tightly around it would be another width in every figure.
    """
    finish(drawing.figure)
    drawing.figure.savefig(png, dpi=PNG_DPI)
    with _fonts_without_layout():
        drawing.figure.savefig(pdf, metadata={"CreationDate": None})
    write_csv(in_order(drawing.data), csv)


@contextmanager
def _fonts_without_layout() -> Iterator[None]:
    """Fonts are embedded without the tables by which text is laid out: a PDF says itself where each glyph stands.

    To cut these tables down takes longer than to draw most figures, and matplotlib has no setting for it.
    """
    kept = subset.Options._drop_tables_default
    subset.Options._drop_tables_default = [*kept, *LAYOUT_TABLES]
    try:
        yield
    finally:
        subset.Options._drop_tables_default = kept


def svg_of(drawing: Drawing) -> bytes:
    """The figure, saved before, as svg."""
    picture = io.BytesIO()
    drawing.figure.savefig(picture, format="svg", metadata={"Date": None}, transparent=True)
    return picture.getvalue()


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """The rows by arm, and those of an arm by every other column from left to right: what tells them apart stands first."""
    arms = [name for name in ("arm", "family") if name in table]
    names = [*arms, *(name for name in table if name not in arms)]
    return table.sort_values(names, key=_sortable, ignore_index=True, kind="stable")


def _sortable(column: pd.Series) -> pd.Series:
    if pd.api.types.is_numeric_dtype(column):
        return column
    ranks = {label: i for i, label in enumerate(sorted(set(map(str, column)), key=natural))}
    return column.map(lambda value: ranks[str(value)])


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """The numbers as csv. Text that a spreadsheet would compute gets an apostrophe, which keeps it text there."""

    def plain(value: object) -> object:
        return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value

    table.rename(columns=plain).map(plain).to_csv(path, index=False)
