"""How the loss falls with tokens, FLOPs, parameters and state, and the power laws through it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from reports.kit.lines import lines_of, seed_points
from reports.kit.panels import row_of_panels, with_legend
from reports.kit.parts import Drawing, Entry, Frames, NoData, Table
from reports.kit.power_law import LEAST, WITH_OFFSET, Law, fit
from reports.kit.tables import Column, number, opened, scored_cells, summarised
from suite.metrics import METRICS, axis_label

Axis = Literal["train_tokens", "train_flops", "parameters", "state_bytes"]
LABELS = {
    "train_tokens": "training tokens",
    "train_flops": "training FLOPs",
    "parameters": "parameters",
    "state_bytes": "state [bytes]",
}
DRAWN_POINTS = 60
SUBDIVIDED = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
"""Where an axis of losses, which span less than a decade, has ticks."""
FORWARDS_PER_STEP = 3.0
CHOSEN = (
    "A point is the best of a model's runs with this x, whatever else they have: the best size at a number of tokens, the best "
    "length at a size; over FLOPs, what no run of the model with fewer beats. Pale dots are its other runs."
)


def curves(frames: Frames, *, column: Column, axes: Sequence[Axis]) -> Drawing:
    """A loss against each of the axes, a line a model, with the power law through it; both axes of a panel are logarithmic."""
    points = _points(frames, column, axes)
    figure, panels = row_of_panels(len(axes), width=3.4, beside=1.8, height=3.2, columns=min(2, len(axes)))
    laws: dict[tuple[str, str], Law | None] = {}
    for panel, name in zip(panels, axes, strict=True):
        own = points[points["axis"] == name]
        laws |= {(name, family): law for family, law in _laws(own[own["chosen"]])}
        _panel(panel, own, name, laws)
        panel.set_ylabel(axis_label(column.metric))
    found = [laws[row["axis"], row["family"]] for row in points.to_dict("records")]
    points["fitted"] = [
        float(law.at(x)) if law and not law.at_edge else np.nan for law, x in zip(found, points["x"], strict=True)
    ]
    law = f"Lines are power laws a x^-b + c, with c = 0 for fewer than {WITH_OFFSET} points and none for fewer than {LEAST}."
    return with_legend(points, figure, CHOSEN, law, *_without(laws), better="lower")


def fits(frames: Frames, *, column: Column, axes: Sequence[Axis]) -> Table:
    """The exponent and the offset of every law with their 95 % intervals; a line of too few points says so."""
    points = _points(frames, column, axes)
    rows, data = [], []
    for name in axes:
        own = points[points["chosen"] & (points["axis"] == name)]
        laws = dict(_laws(own))
        for family, _, of_line in lines_of(own, "x", "family"):
            law, runs = laws[family], opened({"runs": " ".join(of_line["runs"])})
            about = (Entry(family, runs=runs), Entry(LABELS[name]), Entry(f"{len(of_line)}", len(of_line)))
            rows.append((*about, *_entries(law, column)))
            data.append({"axis": name, "family": family, "points": len(of_line), **_numbers(law)})
    header = ("model", "over", "points", "exponent b", "offset c", "drawn again")
    return Table(pd.DataFrame(data), header, tuple(rows), (_said(data), CHOSEN))


def _points(frames: Frames, column: Column, axes: Sequence[Axis]) -> pd.DataFrame:
    """One row an arm and axis: x, the `seed_summary` of its runs, and whether it is `chosen`, a point of its model's line.

    Raises NoData where no run has a score, and for a score that is no loss.
    """
    if METRICS[column.metric].better != "lower":
        raise NoData(f"{axis_label(column.metric)} is no loss, which falls")
    cells = scored_cells(frames, column).dropna(subset=["value"])
    facts = ["train_tokens", "flops_per_token", "parameters", "state_bytes"]
    cells = cells.reindex(columns=list(dict.fromkeys([*cells.columns, *facts])))
    cells = cells.assign(**{name: pd.to_numeric(cells[name], errors="coerce") for name in facts}).dropna(subset=facts)
    if cells.empty:
        raise NoData(f"no run of {column.runs} has {axis_label(column.metric)} and says what it cost")
    cells = cells.assign(train_flops=FORWARDS_PER_STEP * cells["flops_per_token"] * cells["train_tokens"])
    if cells["data"].nunique() > 1:
        # The least loss of several texts is that of the easiest one, and no point of a law.
        cells = cells.assign(family=cells["family"] + ", " + cells["data"].fillna(""))
    parts = []
    for name in axes:
        table = summarised(cells.assign(x=cells[name]), ["arm", "family", "model", "x"], column.metric)
        table = table.sort_values(["family", "x", "mean"], ignore_index=True)
        parts.append(table.assign(axis=name, chosen=_chosen(table, is_frontier=name == "train_flops")))
    return pd.concat(parts, ignore_index=True)


def _chosen(table: pd.DataFrame, *, is_frontier: bool) -> pd.Series:
    """The best arm of a model at every x; of a frontier those alone that are better than all with a smaller x."""
    best = ~table.duplicated(["family", "x"])
    if not is_frontier:
        return best
    before = table.groupby("family")["mean"].transform(lambda means: means.cummin().shift(fill_value=math.inf))
    return best & (table["mean"] < before)


def _laws(points: pd.DataFrame) -> Iterator[tuple[str, Law | None]]:
    for family, own in points.groupby("family", sort=False):
        yield str(family), fit(own["x"].to_numpy(), [np.array(each) for each in own["each"]])


def _panel(axes: Axes, points: pd.DataFrame, name: str, laws: dict[tuple[str, str], Law | None]) -> None:
    others = points[~points["chosen"]]
    for family, look, own in lines_of(points[points["chosen"]], "x", "family", marker=0.9):
        law, pale = laws[name, family], others[others["family"] == family]
        axes.plot(pale["x"], pale["mean"], ".", color=look["color"], alpha=0.25, markersize=4, zorder=1.2)
        if law is not None and not law.at_edge:
            x = np.geomspace(own["x"].min(), own["x"].max(), DRAWN_POINTS)
            axes.plot(x, law.at(x), color=look["color"], linestyle=look["linestyle"], linewidth=1.2)
        seed_points(axes, own, "x", look={**look, "linestyle": "none"})
    axes.set(xscale="log", yscale="log", xlabel=LABELS[name])
    axes.yaxis.set_major_locator(LogLocator(subs=SUBDIVIDED))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _entries(law: Law | None, column: Column) -> tuple[Entry, Entry, Entry]:
    if law is None:
        return Entry(f"too few points, from {LEAST}"), Entry("–"), Entry("–")
    exponent = f"{law.b:.3f} [{law.b_ends[0]:.3f}, {law.b_ends[1]:.3f}]"
    if law.at_edge:
        return Entry("no power law"), Entry("–"), Entry("–")
    offset = f"{number(law.c, column.metric)} [{law.c_ends[0]:.2f}, {law.c_ends[1]:.2f}]"
    return (
        Entry(exponent, law.b),
        Entry(offset, law.c) if law.has_offset else Entry("0, not fitted"),
        Entry(law.resampled),
    )


def _numbers(law: Law | None) -> dict[str, Any]:
    names = ("a", "b", "c", "scale", "has_offset", "resampled", "at_edge")
    plain_ = {name: None if law is None else getattr(law, name) for name in names}
    ends = (math.nan,) * 4 if law is None else (*law.b_ends, *law.c_ends)
    return plain_ | dict(zip(("b_low", "b_high", "c_low", "c_high"), ends, strict=True))


def _without(laws: dict[tuple[str, str], Law | None]) -> list[str]:
    """Which lines have no law, for want of points or since their points show none."""
    said = []
    for reason, lacks in (
        ("Too few points for a law", lambda law: law is None),
        ("No power law", lambda law: law and law.at_edge),
    ):
        names = [f"{family} over {LABELS[name]}" for (name, family), law in laws.items() if lacks(law)]
        said += [f"{reason}: {', '.join(names)}."] if names else []
    return said


def _said(data: Sequence[dict[str, Any]]) -> str:
    """How the intervals were made, and what they do not say."""
    by_seed = any(row["resampled"] == "seeds" for row in data)
    by_point = any(row["resampled"] == "points" for row in data)
    how = [
        *(["seeds drawn again within each point"] if by_seed else []),
        *(["whole points drawn again where a point has one seed"] if by_point else []),
    ]
    drawn = " and ".join(how) or "nothing, since no line has points enough"
    return (
        f"Intervals are 95 % percentiles of a bootstrap over {drawn}; c is fitted from {WITH_OFFSET} points on. They are "
        "about the points that were run, and say nothing of larger ones."
    )
