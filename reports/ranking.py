"""Whether one setting decides which of two models is ahead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from reports.lines import seed_points
from reports.panels import new_figure, zero_line
from reports.parts import Cell, Drawing, Frames, NoData, Table
from reports.render import signed, signed_interval
from reports.study import seed_summary, seeds_note
from reports.style import fact_label
from reports.sweep import scale_of
from reports.tables import Column, column_of, notes_on, number, per_run, rows_of
from suite.metrics import METRICS, axis_label

COLOR = "#332288"


def differences(frames: Frames, column: Column, fact: str, models: Sequence[str]) -> pd.DataFrame:
    """One row a value of the fact: the first model's score less the second's, paired by seed, with its 95 % t interval.

    ahead: the label of the model that the interval puts ahead, or "undecided". Raises NoData where no value has both.
    """
    values = per_run(frames, column, column.metric).rename("value")
    cells = rows_of(frames.cells, column).merge(values, left_on="run_id", right_index=True)
    names = cells.drop_duplicates("model").set_index("model")["family"]
    rows = []
    for value, group in cells.dropna(subset=fact).groupby(fact):
        by_seed = group.pivot_table(index="seed", columns="model", values="value").reindex(columns=list(models)).dropna()
        if len(by_seed):
            found = seed_summary((by_seed[models[0]] - by_seed[models[1]]).to_numpy(), column.metric, difference=True)
            means = dict(zip(("first", "second"), by_seed.mean(), strict=True))
            ahead = _ahead(found["low"], found["high"], [names[model] for model in models], METRICS[column.metric].better)
            rows.append({fact: value, **means, **found, "ahead": ahead})
    if not rows:
        raise NoData(f"no value of {fact_label(fact)} has runs of {' and '.join(models)} with the same seed")
    return pd.DataFrame(rows).assign(first_model=names[models[0]], second_model=names[models[1]])


def _ahead(low: float, high: float, names: Sequence[str], better: str) -> str:
    low, high = (low, high) if better == "higher" else (-high, -low)
    return names[0] if low > 0 else names[1] if high < 0 else "undecided"


def table(frames: Frames, *, column: Mapping[str, str], fact: str, models: Sequence[str]) -> Table:
    """One row a value of the fact: both models, their difference, and who is ahead; below, whether the fact decides it."""
    wanted = column_of(column)
    data = differences(frames, wanted, fact, models)
    names = data["first_model"].iloc[0], data["second_model"].iloc[0]
    rows = [
        (
            Cell(f"{row[fact]:g}", row[fact]),
            Cell(number(row["first"], wanted.metric), row["first"]),
            Cell(number(row["second"], wanted.metric), row["second"]),
            Cell(signed(row["mean"], 4) + signed_interval(row["low"], row["high"], 4), row["mean"]),
            Cell(row["ahead"]),
        )
        for row in data.to_dict("records")
    ]
    header = (fact_label(fact), *names, f"{axis_label(wanted.metric)}, {names[0]} less {names[1]}", "ahead")
    return Table(data, header, tuple(rows), (answer(data, fact), *notes_on(rows_of(frames.cells, wanted))))


def answer(data: pd.DataFrame, fact: str) -> str:
    """One sentence: whether the ranking changes with the fact, by intervals and by means; No where every interval says so."""
    decided = set(data["ahead"]) - {"undecided"}
    signs = set(np.sign(data["mean"]))
    said = ", ".join(f"{row.ahead} at {getattr(row, fact):g}" for row in data.itertuples())
    if len(decided) > 1:
        verdict = "Yes"
    elif {-1, 1} <= signs:
        verdict = "Not by the intervals, but the means change sign"
    else:
        verdict = "No" if "undecided" not in set(data["ahead"]) else "Not by the means, and not every interval is decided"
    return f"Does {fact_label(fact)} decide who is ahead? {verdict}: {said}."


def by_fact(frames: Frames, *, column: Mapping[str, str], fact: str, models: Sequence[str]) -> Drawing:
    """The difference of two models by the fact, paired by seed."""
    wanted = column_of(column)
    data = differences(frames, wanted, fact, models)
    figure = new_figure(4.8, 3.3)
    axes = figure.subplots()
    zero_line(axes)
    seed_points(axes, data[fact], data, look={"color": COLOR, "marker": "o", "markersize": 5, "elinewidth": 1.1})
    scale_of(axes, fact, data[fact])
    names = data["first_model"].iloc[0], data["second_model"].iloc[0]
    axes.set(xlabel=fact_label(fact), ylabel=f"{axis_label(wanted.metric)},\n{names[0]} less {names[1]}")
    worse = "below" if METRICS[wanted.metric].better == "lower" else "above"
    notes = (f"{worse.capitalize()} zero: {names[0]} is ahead.", seeds_note(data, "Bars"), "Differences are paired by seed.")
    return Drawing(data, figure, notes)
