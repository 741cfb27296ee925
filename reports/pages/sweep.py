"""How a score moves with one setting that an experiment varies, and whether that setting decides which of two models is ahead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from reports.kit.arguments import Model
from reports.kit.chosen import along, at_preferred, validated
from reports.kit.hover import remember
from reports.kit.lines import lines_of, seed_points, shaded
from reports.kit.marks import marks_notes
from reports.kit.panels import row_of_panels, ticks_at, with_legend, within_limits, zero_line
from reports.kit.parts import Drawing, Entry, Frames, NoData, Table
from reports.kit.render import signed, signed_interval
from reports.kit.rows import seed_summary, seeds_note
from reports.kit.style import arms_in_order, plain, style_of
from reports.kit.tables import Column, entries_by, entries_of, notes_on, number, rows_of, scored_cells
from suite.metrics import METRICS, axis_label
from suite.naming import fact_label, fact_text, last_part, natural

DIFFERENCE_COLOR = "#332288"
WIDE = 4
"""An axis is logarithmic where its greatest value is so many times its least."""


def scores(frames: Frames, *, column: Column, fact: str, best: Literal["model", "fact"]) -> Table:
    """Model x value of the fact, the mean over seeds in every entry, best and second best marked.

    fact: a setting, "train.lr". best: "model" compares the models at one value, "fact" the values of one model.
    """
    summary = by_fact(frames, column, fact)
    if summary.empty:
        raise NoData(f"no run of {column.runs} was asked for")
    within = fact if best == "model" else "family"
    entries = entries_of(summary, column.metric, within=within)
    values = sorted(summary[fact].unique())
    found = dict(entries_by(summary, "family", fact, values, lambda row, _: entries[row["arm"]], "not asked"))
    rows = tuple((Entry(family), *found[family]) for family, _ in arms_in_order(summary, "family"))
    header = ("model", *(fact_text(fact, value) for value in values))
    notes = *notes_on(rows_of(frames.cells, column)), *marks_notes([(column.title, summary, column.metric)], within=within)
    return Table(summary, header, rows, notes)


def by_fact(frames: Frames, column: Column, fact: str) -> pd.DataFrame:
    """`summarise` with the value of the fact: one row a model and value. A run that has no such fact is left out.

    Raises RequestError for a fact that no run has, NoData where a model has two arms at one value.
    """
    summary = along(frames, column, fact)
    twice = summary[summary.duplicated(["family", fact])]
    if len(twice):
        raise NoData(f"more than one {twice['family'].iloc[0]} at {fact_text(fact, twice[fact].iloc[0])}: which is meant?")
    return summary


def curves(frames: Frames, *, columns: Sequence[Column], fact: str, by: str = "", chosen: str = "") -> Drawing:
    """The score against the fact, one line a model, with t intervals or, see `seed_interval`, the seeds; see `along`.

    One panel a column and, where `by` names a second fact, each of its values. The point of a line that validation prefers
    is filled. A diverged run has no score: it is a cross at the frame's worse edge and a gap in its line.
    columns: one that was not asked for has no panel.
    """
    tables = [(column, along(frames, column, fact, by=by, chosen=chosen)) for column in columns]
    panels = [panel for column, table in tables for panel in _panels(column, table, by)]
    if not panels:
        raise NoData(f"no run of {', '.join(column.runs for column in columns)} was asked for")
    figure, drawn = row_of_panels(
        len(panels), width=3.4, beside=1.8, height=4.2 if len(panels) < 4 else 3.2, columns=min(len(panels), 4)
    )
    for axes, (title, column, table) in zip(drawn, panels, strict=True):
        _panel(axes, table, column, fact)
        axes.set_title(title)
    data = pd.concat([table.assign(size=column.size) for column, table in tables if len(table)], ignore_index=True)
    notes = ["The filled point of a line is what validation prefers."]
    if chosen:
        notes.append(f"Every point is at the {fact_label(chosen)} that validation prefers.")
    if data["without"].str.contains("diverged").any():
        notes.append("A cross at the frame's edge is a run that diverged.")
    return with_legend(data, figure, *notes, better=[METRICS[column.metric].better for _, column, _ in panels])


def _panels(column: Column, table: pd.DataFrame, by: str) -> Iterator[tuple[str, Column, pd.DataFrame]]:
    if not by:
        yield from [(column.runs, column, table)] if len(table) else []
        return
    for value in sorted(table[by].dropna().unique(), key=natural):
        yield f"{column.runs}, {fact_text(by, value)}", column, table[table[by] == value]


def _panel(axes: Axes, table: pd.DataFrame, column: Column, fact: str) -> None:
    own = table["family"].nunique() < table["line"].nunique()
    shades = iter(shaded(table, "line")) if own and table["family"].nunique() == 1 else None
    for _, look, line in lines_of(table, "place", "line", marker=0.9):
        if shades is not None:
            look |= {"color": next(shades)[1]["color"]}
        point = {"color": look["color"], "linestyle": "none", "marker": look.pop("marker"), "markersize": look.pop("markersize")}
        label = look.pop("label")
        seed_points(axes, line, "place", look=look)
        axes.plot(line["place"], line["mean"], markerfacecolor="white", **point)
        best = line[line["best"]]
        axes.plot(best["place"], best["mean"], label=label, **point)
    # Crosses at one value of the fact stand in a column.
    for place, group in table[table["without"].str.contains("diverged")].groupby("place"):
        for i, (label, model) in enumerate(arms_in_order(group, "line")):
            height = 0.035 * (i + 0.5)
            y = 1 - height if METRICS[column.metric].better == "lower" else height
            look = {"color": style_of(model).color, "markersize": 6, "transform": axes.get_xaxis_transform()}
            (cross,) = axes.plot(place, y, "x", **look)
            remember(cross, group[group["line"] == label])
    scale_of(axes, fact, table)
    axes.set(xlabel=fact_label(fact), ylabel=axis_label(column.metric))
    within_limits(axes, column.metric)


def scale_of(axes: Axes, fact: str, table: pd.DataFrame) -> None:
    """The x axis of a fact by the column of its values: logarithmic where they span decades, a forget gate by the time that it
    remembers, with a tick at every value.
    """
    values = table[fact]
    if not pd.api.types.is_numeric_dtype(values):
        ticks = table.drop_duplicates("place").sort_values("place")
        axes.set_xticks(ticks["place"], labels=[plain(str(value)) for value in ticks[fact]])
        axes.margins(x=0.15)
        return
    if last_part(fact) == "forget_gate_init":
        axes.set_xscale("function", functions=(lambda gamma: -np.log1p(-np.minimum(gamma, 0.9999)), lambda x: -np.expm1(-x)))
    elif (values > 0).all() and values.max() >= WIDE * values.min():
        axes.set_xscale("log")
    ticks_at(axes, values)


def differences(frames: Frames, column: Column, fact: str, models: Sequence[str]) -> pd.DataFrame:
    """One row a value of the fact: the first model's score less the second's, paired by seed, with its 95 % t interval.

    Each is at those TUNED settings that validation prefers.
    ahead: the label of the model that the interval puts ahead, or "undecided". Raises NoData where no value has both.
    """
    cells = scored_cells(frames, column).dropna(subset="value")
    names = cells.drop_duplicates("model").set_index("model")["family"]
    asked = cells[cells["model"].isin(models)]
    rows = []
    for value, group in asked.groupby(fact) if fact in cells else ():
        group = at_preferred(group, ["model"], validated(frames, column))
        by_seed = group.pivot_table(index="seed", columns="model", values="value").reindex(columns=list(models)).dropna()
        if len(by_seed):
            found = seed_summary((by_seed[models[0]] - by_seed[models[1]]).to_numpy(), column.metric, difference=True)
            sign = int(found["low"] > 0) - int(found["high"] < 0)
            ahead = models[(sign > 0) == (METRICS[column.metric].better == "lower")] if sign else None
            means = dict(zip(("first", "second"), by_seed.mean(), strict=True))
            rows.append({fact: value, **means, **found, "ahead": names[ahead] if ahead else "undecided"})
    if not rows:
        raise NoData(f"no value of {fact_label(fact)} has runs of {' and '.join(models)} with the same seed")
    return pd.DataFrame(rows).assign(first_model=names[models[0]], second_model=names[models[1]])


def ranking(frames: Frames, *, column: Column, fact: str, models: Sequence[Model]) -> Table:
    """One row a value of the fact: both models, their difference, and who is ahead; below, whether the fact decides it."""
    data = differences(frames, column, fact, models)
    names = data["first_model"].iloc[0], data["second_model"].iloc[0]
    rows = [
        (
            Entry(f"{row[fact]:g}", row[fact]),
            *(Entry(number(row[name], column.metric), row[name]) for name in ("first", "second")),
            Entry(signed(row["mean"], 4) + signed_interval(row["low"], row["high"], 4), row["mean"]),
            Entry(row["ahead"]),
        )
        for row in data.to_dict("records")
    ]
    header = (fact_label(fact), *names, f"{axis_label(column.metric)}, {names[0]} less {names[1]}", "ahead")
    return Table(data, header, tuple(rows), (answer(data, fact), *notes_on(rows_of(frames.cells, column))))


def answer(data: pd.DataFrame, fact: str) -> str:
    """One sentence: whether the ranking changes with the fact, by intervals and by means; No where every interval says so."""
    decided = set(data["ahead"]) - {"undecided"}
    said = ", ".join(f"{ahead} at {value:g}" for ahead, value in zip(data["ahead"], data[fact], strict=True))
    if len(decided) > 1:
        verdict = "Yes"
    elif {-1, 1} <= set(np.sign(data["mean"])):
        verdict = "Not by the intervals, but the means change sign"
    else:
        verdict = "No" if "undecided" not in set(data["ahead"]) else "Not by the means, and not every interval is decided"
    return f"Does {fact_label(fact)} decide who is ahead? {verdict}: {said}."


def difference(frames: Frames, *, column: Column, fact: str, models: Sequence[Model]) -> Drawing:
    """The difference of two models by the fact, paired by seed."""
    data = differences(frames, column, fact, models)
    figure, (axes,) = row_of_panels(1, width=4.8, height=3.3)
    zero_line(axes)
    seed_points(axes, data, fact, look={"color": DIFFERENCE_COLOR, "marker": "o", "markersize": 5})
    scale_of(axes, fact, data)
    names = data["first_model"].iloc[0], data["second_model"].iloc[0]
    axes.set(xlabel=fact_label(fact), ylabel=f"{axis_label(column.metric)},\n{names[0]} less {names[1]}")
    worse = "below" if METRICS[column.metric].better == "lower" else "above"
    notes = (f"{worse.capitalize()} zero: {names[0]} is ahead.", seeds_note(data, "Bars"), "Differences are paired by seed.")
    return Drawing(data, figure, notes)
