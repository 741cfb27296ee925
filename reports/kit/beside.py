"""A published table beside the results of a store: ours, what is printed, and the difference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from reports.kit.fills import Fill, fills
from reports.kit.intervals import t_interval
from reports.kit.parts import Entry, Frames
from reports.kit.published import model_label
from reports.kit.render import signed
from reports.kit.stored import Stored, averaged, stored
from reports.kit.study import CELL, COLUMN, printed_rows, read_study
from reports.kit.style import arms_in_order
from reports.kit.tables import opened

DIGITS = 2
"""As the paper prints."""
OTHER = "other"
"""Sizes and numbers of tokens that the study does not have."""


def beside(frames: Frames, name: str, table: str, *, sizes: Sequence[str], models: Sequence[str]) -> pd.DataFrame:
    """One row a cell: CELL, `family`, COLUMN, `published`, `std`, `difference`, and of ours what `summarised` says.

    Ours is the mean over seeds with its 95 % t interval. sizes: as the study calls them, all where there are none, or OTHER.
    models: those of the table that are shown, and no others; all, and whatever the store has beside them, where there are none.
    """
    study = read_study(name)
    printed = printed_rows(name, table)
    columns = printed[COLUMN].drop_duplicates().reset_index(drop=True)
    found = stored(frames, name)
    own = summarised(_own(found, printed, columns, study.tables[table].averages, is_other=list(sizes) == [OTHER]))
    merged = printed[[*CELL, *COLUMN, "value", "std"]].rename(columns={"value": "published"})
    if list(sizes) == [OTHER]:
        merged = merged.iloc[:0]
    data = merged.merge(own, on=[*CELL, *COLUMN], how="outer")
    if sizes and list(sizes) != [OTHER]:
        data = data[data["size"].isin(sizes)]
    data = data[data["model"].isin(models)] if models else data
    data = _whole(data, columns)
    labels = dict(zip(found.runs["model"], found.runs["model_label"], strict=True))
    data["family"] = [labels.get(model) or model_label(model) for model in data["model"]]
    return _ordered(data.assign(difference=data["mean"] - data["published"]), columns)


def _own(
    found: Stored, printed: pd.DataFrame, columns: pd.DataFrame, averages: Mapping[str, tuple[str, ...]], *, is_other: bool
) -> pd.DataFrame:
    """The values of a store in the columns of a table, at the sizes and tokens that it has, or at all others."""
    cells = printed[["size", "train_tokens"]].drop_duplicates()
    values = found.values
    there = values.merge(cells.assign(is_printed=True), on=["size", "train_tokens"], how="left")["is_printed"].notna()
    values = values[(~there if is_other else there).to_numpy()]
    single = values.merge(columns, on=COLUMN)
    return pd.concat([single, averaged(values, averages, columns[columns["dataset"].isin(averages)])], ignore_index=True)


def summarised(values: pd.DataFrame) -> pd.DataFrame:
    """One row a value of CELL and COLUMN: mean, low, high (95 % t over seeds, NaN of one), n, each, and the ids of the runs."""
    groups = values.groupby([*CELL, *COLUMN], dropna=False, sort=False)
    rows = []
    for key, own in groups:
        each = own["value"].to_numpy(dtype=float)
        about = {"n": len(each), "each": tuple(each), "runs": " ".join(own["run_id"])}
        rows.append(dict(zip([*CELL, *COLUMN], key, strict=True)) | t_interval(each)._asdict() | about)
    names = [*CELL, *COLUMN, "mean", "low", "high", "n", "each", "runs"]
    table = pd.DataFrame(rows, columns=names)
    return table.astype({"context": float, "shots": float, "mean": float, "low": float, "high": float})


def _whole(data: pd.DataFrame, columns: pd.DataFrame) -> pd.DataFrame:
    """The rows with one of every column for each value of CELL."""
    cells = data[CELL].drop_duplicates()
    return cells.merge(columns, how="cross").merge(data, on=[*CELL, *COLUMN], how="left")


def _ordered(data: pd.DataFrame, columns: pd.DataFrame) -> pd.DataFrame:
    """The rows by size, tokens, and model in the order of every figure; the columns as printed."""
    models = {model: i for i, (_, model) in enumerate(arms_in_order(data, "family"))}
    sizes = data["size"].map(lambda size: amount_of(str(size)))
    order = data.assign(of_size=sizes, of_tokens=data["train_tokens"].map(amount_of), of_model=data["model"].map(models))
    column = {key: i for i, key in enumerate(columns.fillna(-1.0).itertuples(index=False, name=None))}
    order["of_column"] = [column[key] for key in data[COLUMN].fillna(-1.0).itertuples(index=False, name=None)]
    return data.loc[order.sort_values(["of_size", "of_tokens", "of_model", "of_column"], kind="stable").index].reset_index(
        drop=True
    )


def amount_of(title: str) -> float:
    """The number that a title such as "400M" stands for; those in words come first."""
    units = {"k": 1e3, "M": 1e6, "B": 1e9}
    try:
        return float(title[:-1]) * units[title[-1]] if title[-1:] in units else float(title)
    except ValueError:
        return 0.0


def cell_entry(row: Mapping[str, Any]) -> Entry:
    """Ours, what is printed, and the difference: "17.05 ± 0.02 / 17.02 / +0.03", with a dash for what is not there."""
    ours, printed, difference = row["mean"], row["published"], row["difference"]
    own = "–" if np.isnan(ours) else f"{ours:.{DIGITS}f}{_interval(row)}"
    spread = "" if np.isnan(row["std"]) else f" ± {row['std']:g}"
    theirs = "–" if np.isnan(printed) else f"{printed:.{DIGITS}f}{spread}"
    less = "–" if np.isnan(difference) else signed(difference, DIGITS)
    sort = next((float(value) for value in (ours, printed) if not np.isnan(value)), None)
    # In one line: a break within the three numbers would hide which is which.
    text = f"{own} / {theirs} / {less}".replace(" ", "\N{NO-BREAK SPACE}")
    return Entry(text, sort, runs=opened(row) if isinstance(row["runs"], str) else ())


def _interval(row: Mapping[str, Any]) -> str:
    half = (row["high"] - row["low"]) / 2
    return "" if np.isnan(half) or row["n"] < 3 else f" ± {half:.{DIGITS}f}"


def filled_by(frames: Frames, name: str, table: str, data: pd.DataFrame) -> Iterator[Fill]:
    """The commands for the printed cells of `beside` that are blank here."""
    study = read_study(name)
    blank = data[data["mean"].isna() & data["published"].notna()][CELL].drop_duplicates()
    runs = stored(frames, name).runs
    ids = runs.groupby(CELL)["run_id"].agg(" ".join).rename("run_ids").reset_index()
    blank = blank.merge(ids, on=CELL, how="left").fillna({"run_ids": ""})
    yield from fills(study, blank, study.tables[table].evaluation)
