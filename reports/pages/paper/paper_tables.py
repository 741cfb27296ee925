"""The tables of a published study: every cell is ours, what is printed, and the difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from reports.kit.arguments import Model
from reports.kit.beside import beside, cell_entry, filled_by
from reports.kit.fills import HOW
from reports.kit.parts import Entry, Frames, NoData, Table
from reports.kit.render import counted
from reports.kit.stored import stored
from reports.kit.study import CELL, COLUMN

HOW_CELLS = (
    "A cell is ours / printed / ours less printed; – is what is not there. ± of ours is half the 95 % t interval over seeds."
)


def printed_table(frames: Frames, *, study: str, table: str, sizes: Sequence[str] = (), models: Sequence[Model] = ()) -> Table:
    """A row a model, size and number of tokens: every cell is ours, what the paper prints, and the difference.

    study: of reports/published. table: of its file. sizes: as the paper calls them, all where there are none; "other" for the
    sizes that the paper does not have. models: those shown; all where there are none.
    """
    data = beside(frames, study, table, sizes=sizes, models=models)
    if data.empty:
        raise NoData("no run of another size or number of tokens has scores that the table asks for")
    columns = data[COLUMN].drop_duplicates()
    titles = [_title(column, columns) for column in columns.to_dict("records")]
    rows = [
        (Entry(size), Entry(tokens), Entry(own["family"].iloc[0]), *map(cell_entry, own.to_dict("records")))
        for (size, tokens, _), own in data.groupby(CELL, sort=False)
    ]
    told = list(filled_by(frames, study, table, data))
    by_cell = {cell: fill.command for fill in told for cell in fill.cells}
    commands = [by_cell.get(cell, "") for cell in data[CELL].itertuples(index=False, name=None)]
    is_blank = data["published"].notna() & data["mean"].isna()
    data = data.assign(filled_by=np.where(is_blank, commands, ""))
    notes = [HOW_CELLS, *stored(frames, study).notes, *_filled(data, [fill.told for fill in told])]
    header = ("size", "tokens", "model", *titles)
    return Table(data, header, tuple(rows), tuple(notes))


def _title(column: Mapping[str, Any], columns: pd.DataFrame) -> str:
    """The header of a column: the paper's abbreviation, with shots and context where the table has several of them."""
    title = str(column["dataset"]).replace("_", " ")
    for name, words in (("shots", "{:.0f}-shot"), ("context", "{:,.0f} tokens")):
        if columns[name].nunique() > 1 and not np.isnan(column[name]):
            title += f", {words.format(column[name])}"
    return title


def _filled(data: pd.DataFrame, told: Sequence[str]) -> list[str]:
    """How many cells are blank, and by which commands they are filled."""
    printed = data["published"].notna()
    blank = int((printed & data["mean"].isna()).sum())
    if not blank:
        return []
    return [f"{counted(blank, 'cell')} of {int(printed.sum()):,} are blank here. They are filled by:", *told, HOW]
