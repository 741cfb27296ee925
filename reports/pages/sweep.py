"""How a score moves with one setting that an experiment varies, and whether that setting decides which of two models is ahead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from reports.kit.lines import lines_of, seed_points
from reports.kit.panels import row_of_panels, ticks_at, with_legend, zero_line
from reports.kit.parts import Drawing, Entry, Frames, NoData, Table
from reports.kit.render import signed, signed_interval
from reports.kit.rows import seed_summary, seeds_note
from reports.kit.style import arms_in_order, fact_label, fact_text, last_part, style_of
from reports.kit.tables import Column, entries_by, entries_of, marks, notes_on, number, rows_of, scored_cells, summarise
from suite.metrics import METRICS, axis_label

DIFFERENCE_COLOR = "#332288"


def scores(frames: Frames, *, column: Mapping[str, str], fact: str, best: str) -> Table:
    """Model x value of the fact, the mean over seeds in every entry, best and second best marked.

    column: the fields of `Column`. fact: a setting, "train.lr". best: "model" compares the models at one value, "fact" the
    values of one model.
    """
    if best not in ("model", "fact"):
        raise ValueError(f"best {best!r} is not one of model, fact")
    wanted = Column.of(column)
    summary = by_fact(frames, wanted, fact)
    if summary.empty:
        raise NoData(f"no run of {wanted.runs} was asked for")
    entries = entries_of(summary, wanted.metric, within=fact if best == "model" else "family")
    values = sorted(summary[fact].unique())
    found = dict(entries_by(summary, "family", fact, values, lambda row, _: entries[row["arm"]], "not asked"))
    rows = tuple((Entry(family), *found[family]) for family, _ in arms_in_order(summary, "family"))
    header = ("model", *(fact_text(fact, value) for value in values))
    return Table(summary, header, rows, tuple(notes_on(rows_of(frames.cells, wanted))))


def by_fact(frames: Frames, column: Column, fact: str) -> pd.DataFrame:
    """`summarise` with the value of the fact: one row a model and value. A run that has no such fact is left out.

    Raises ValueError for a fact that no run has, NoData where a model has two arms at one value.
    """
    if fact not in frames.cells:
        known = [name for name in frames.cells if "." in name]
        raise ValueError(f"fact {fact!r} is not one of {', '.join(known)}")
    cells = rows_of(frames.cells, column)
    values = pd.to_numeric(cells.drop_duplicates("arm").set_index("arm")[fact], errors="coerce").dropna()
    if values.empty:
        return pd.DataFrame(columns=["arm", "family", fact])
    summary = summarise(frames, column).merge(values.reset_index(), on="arm")
    twice = summary[summary.duplicated(["family", fact])]
    if len(twice):
        raise NoData(f"more than one {twice['family'].iloc[0]} at {fact_text(fact, twice[fact].iloc[0])}: which is meant?")
    return summary


def curves(frames: Frames, *, columns: Sequence[Mapping[str, str]], fact: str) -> Drawing:
    """The score against the fact, one panel a column, one line a model, with t intervals or, see `seed_interval`, the seeds.

    A model's best is filled. A diverged run has no score: it is a cross at the frame's worse edge and a gap in its line.
    columns: the fields of `Column`; one that was not asked for has no panel.
    """
    wanted = [Column.of(column) for column in columns]
    panels = [(column, table) for column in wanted if len(table := by_fact(frames, column, fact))]
    if not panels:
        raise NoData(f"no run of {', '.join(column.runs for column in wanted)} was asked for")
    figure, drawn = row_of_panels(len(panels), width=3.4, beside=1.8, height=4.2)
    for axes, (column, table) in zip(drawn, panels, strict=True):
        _panel(axes, table, column, fact)
    data = pd.concat([table.assign(size=column.size) for column, table in panels], ignore_index=True)
    diverged = data["without"].str.contains("diverged").any()
    return with_legend(data, figure, *(["A cross at the frame's edge is a run that diverged."] if diverged else []))


def _panel(axes: Axes, table: pd.DataFrame, column: Column, fact: str) -> None:
    marked = marks(table, column.metric, within="family")
    for _, look, line in lines_of(table, fact, "family", marker=0.9):
        point = {"color": look["color"], "linestyle": "none", "marker": look.pop("marker"), "markersize": look.pop("markersize")}
        label = look.pop("label")
        seed_points(axes, line, fact, look=look)
        axes.plot(line[fact], line["mean"], markerfacecolor="white", **point)
        best = line[line["arm"].map(marked).eq("best")]
        axes.plot(best[fact], best["mean"], label=label, **point)
    # Crosses at one value of the fact stand in a column.
    for value, group in table[table["without"].str.contains("diverged")].groupby(fact):
        for i, (_, model) in enumerate(arms_in_order(group, "family")):
            height = 0.035 * (i + 0.5)
            y = 1 - height if METRICS[column.metric].better == "lower" else height
            axes.plot(value, y, "x", color=style_of(model).color, markersize=6, transform=axes.get_xaxis_transform())
    scale_of(axes, fact, table[fact])
    axes.set(title=column.runs, xlabel=fact_label(fact), ylabel=axis_label(column.metric))


def scale_of(axes: Axes, fact: str, values: pd.Series) -> None:
    """The x axis of a fact: logarithmic, a forget gate by the time that it remembers, with a tick at every value."""
    if last_part(fact) == "forget_gate_init":
        axes.set_xscale("function", functions=(lambda gamma: -np.log1p(-np.minimum(gamma, 0.9999)), lambda x: -np.expm1(-x)))
    else:
        # A value of zero has no logarithm.
        axes.set_xscale("log" if (values > 0).all() else "linear")
    ticks_at(axes, values)


def differences(frames: Frames, column: Column, fact: str, models: Sequence[str]) -> pd.DataFrame:
    """One row a value of the fact: the first model's score less the second's, paired by seed, with its 95 % t interval.

    ahead: the label of the model that the interval puts ahead, or "undecided". Raises NoData where no value has both.
    """
    cells = scored_cells(frames, column).dropna(subset="value")
    names = cells.drop_duplicates("model").set_index("model")["family"]
    rows = []
    for value, group in cells.groupby(fact) if fact in cells else ():
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


def ranking(frames: Frames, *, column: Mapping[str, str], fact: str, models: Sequence[str]) -> Table:
    """One row a value of the fact: both models, their difference, and who is ahead; below, whether the fact decides it."""
    wanted = Column.of(column)
    data = differences(frames, wanted, fact, models)
    names = data["first_model"].iloc[0], data["second_model"].iloc[0]
    rows = [
        (
            Entry(f"{row[fact]:g}", row[fact]),
            *(Entry(number(row[name], wanted.metric), row[name]) for name in ("first", "second")),
            Entry(signed(row["mean"], 4) + signed_interval(row["low"], row["high"], 4), row["mean"]),
            Entry(row["ahead"]),
        )
        for row in data.to_dict("records")
    ]
    header = (fact_label(fact), *names, f"{axis_label(wanted.metric)}, {names[0]} less {names[1]}", "ahead")
    return Table(data, header, tuple(rows), (answer(data, fact), *notes_on(rows_of(frames.cells, wanted))))


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


def difference(frames: Frames, *, column: Mapping[str, str], fact: str, models: Sequence[str]) -> Drawing:
    """The difference of two models by the fact, paired by seed."""
    wanted = Column.of(column)
    data = differences(frames, wanted, fact, models)
    figure, (axes,) = row_of_panels(1, width=4.8, height=3.3)
    zero_line(axes)
    seed_points(axes, data, fact, look={"color": DIFFERENCE_COLOR, "marker": "o", "markersize": 5})
    scale_of(axes, fact, data[fact])
    names = data["first_model"].iloc[0], data["second_model"].iloc[0]
    axes.set(xlabel=fact_label(fact), ylabel=f"{axis_label(wanted.metric)},\n{names[0]} less {names[1]}")
    worse = "below" if METRICS[wanted.metric].better == "lower" else "above"
    notes = (f"{worse.capitalize()} zero: {names[0]} is ahead.", seeds_note(data, "Bars"), "Differences are paired by seed.")
    return Drawing(data, figure, notes)
