"""How many pairs a state holds (Triadic, Fig. 1): accuracy against the number of pairs, and where it falls to a half."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from reports.kit.arguments import Model, Task
from reports.kit.chosen_runs import SUCCESS, Chosen, check_one_setting, chosen_runs, line_labels, over_seeds, placed
from reports.kit.lines import lines_of
from reports.kit.medians import SHOWN, accuracy_axis, doubling_axis, median_lines, numbers_of, small_multiples
from reports.kit.panels import with_legend
from reports.kit.parts import Drawing, Entry, Frames, Table
from reports.kit.style import arms_in_order
from reports.kit.tables import opened
from suite.naming import fact_text

PAIRS = "num_pairs"
SIZE = "size.head_dim"
HALF = 0.5
FIRST = "A curve crosses a half where it first falls below, on a line through its points over the logarithm of the pairs."


class Half(NamedTuple):
    """The number of pairs at which accuracy falls to a half; beyond: ">" or "<" where that lies outside of what was measured."""

    pairs: float
    beyond: str = ""

    @property
    def text(self) -> str:
        return "–" if math.isnan(self.pairs) else f"{self.beyond} {self.pairs:,.4g}".strip()

    def over(self, other: Half) -> Half:
        """The ratio, or what is known of it: NaN where both are beyond on the same side."""
        sides = {self.beyond, {">": "<", "<": ">"}.get(other.beyond, "")} - {""}
        return Half(self.pairs / other.pairs if len(sides) < 2 else math.nan, "".join(sides) if len(sides) < 2 else "")


def half_point(pairs: Sequence[float], accuracy: Sequence[float]) -> Half:
    """Where an accuracy falls below HALF, on a line over log2 of the pairs between the two points around it.

    pairs: ascending. NaN where nothing is known.
    """
    x, y = np.log2(np.asarray(pairs, dtype=float)), np.asarray(accuracy, dtype=float)
    x, y = x[~np.isnan(y)], y[~np.isnan(y)]
    below = np.flatnonzero(y < HALF)
    if not len(y):
        return Half(math.nan)
    if not len(below):
        return Half(float(2 ** x[-1]), ">")
    if below[0] == 0:
        return Half(float(2 ** x[0]), "<")
    i = below[0]
    return Half(float(2 ** np.interp(HALF, [y[i], y[i - 1]], [x[i], x[i - 1]])))


def curve(frames: Frames, *, task: Task) -> Drawing:
    """Accuracy on the test split against the number of pairs, a line a model and head size, its half point marked."""
    chosen, cells = _measured(frames, task)
    data = _by_pairs(cells)
    figure, (axes,) = small_multiples(1, width=5.4, height=3.6)
    median_lines(axes, data, PAIRS)
    axes.axhline(HALF, color="#666666", linestyle=":", linewidth=1.0)
    halves = _halves(data)
    for _, look, line in lines_of(data, PAIRS):
        half = halves[line["arm"].iloc[0]]
        if not half.beyond and not math.isnan(half.pairs):
            _mark(axes, half.pairs, str(look["color"]))
    doubling_axis(axes, data[PAIRS].unique(), PAIRS)
    accuracy_axis(axes, data["metric"].iloc[0])
    data["half"] = data["arm"].map({arm: half.text for arm, half in halves.items()})
    notes = ("Rings: where a median falls to a half.", FIRST)
    return with_legend(data, figure, *chosen.notes(SHOWN), *notes, better="higher")


def _mark(axes: Axes, pairs: float, color: str) -> None:
    axes.plot([pairs, pairs], [-0.03, HALF], color=color, linewidth=0.8, linestyle=":", zorder=1.2)
    axes.plot(pairs, HALF, "o", markersize=9, markerfacecolor="none", markeredgecolor=color, markeredgewidth=1.2)


def half_points(frames: Frames, *, task: Task, model: Model, reference: Model) -> Table:
    """A row a model and head size: the pairs at a half, of the median and of every seed, the bytes of the state, and how many
    times those of the reference at the same head size and at twice that.
    """
    chosen, cells = _measured(frames, task)
    halves, arms = _halves(_by_pairs(cells)), arms_in_order(cells)
    known = {}
    for arm, _ in arms:
        own = cells[cells["arm"] == arm]
        curves = [_curve(each) for _, each in own.dropna(subset="value").groupby("seed")]
        seeds = [half_point(*each) for each in curves if len(each[0]) == own[PAIRS].nunique()]
        about = own[["model", SIZE, "state_bytes"]].bfill().iloc[0].to_dict()
        ids = " ".join(dict.fromkeys(own["run_id"]))
        known[arm] = {"arm": arm, **about, "half": halves[arm], "seeds": seeds, "runs": ids}
    rows = []
    for each in known.values():
        ratios = [Entry(""), Entry("")]
        if each["model"] == model:
            ratios = [_ratio(each, list(known.values()), reference, times) for times in (1, 2)]
        each |= {"at one": ratios[0].text, "at two": ratios[1].text}
        rows.append((Entry(each["arm"]), _half_entry(each), _seeds_entry(each["seeds"]), _bytes(each), *ratios))
    label = next((family for family, name in arms_in_order(cells, "family") if name == reference), reference)
    facts = ("model", "pairs at a half", "of the seeds", "state [bytes]")
    header = (*facts, f"times {label} at the same head size", f"times {label} at twice the head size")
    short = (*facts, "ratio, same head size", "ratio, twice the head size")
    data = pd.DataFrame(known.values()).assign(half=[each["half"].text for each in known.values()])
    data["seeds"] = ["; ".join(half.text for half in each["seeds"]) for each in known.values()]
    whole = "Seeds count that have a score at every number of pairs. > and <: no crossing within what was measured."
    notes = (FIRST, whole, *chosen.notes("pairs at a half are of the median curve"))
    return Table(data, header, tuple(rows), notes, short)


def _measured(frames: Frames, task: str) -> tuple[Chosen, pd.DataFrame]:
    """The runs that are reported, a row a number of pairs, with the `arm` of the curve that each is on."""
    chosen = chosen_runs(frames, [task])
    cells = numbers_of(placed(frames, chosen.cells, PAIRS), PAIRS)
    # The size of a head is what states are compared by: it is named where a model has but one, too.
    sizes = cells[SIZE].map(lambda size: f", {fact_text(SIZE, size)}", na_action="ignore").fillna("")
    cells = cells.assign(arm=line_labels(cells, SIZE) + sizes)
    return chosen, cells.sort_values(PAIRS, kind="stable", ignore_index=True)


def _by_pairs(cells: pd.DataFrame) -> pd.DataFrame:
    keys = ["arm", "model", "family", PAIRS]
    check_one_setting(cells, keys)
    return over_seeds(cells, keys, SUCCESS)


def _curve(own: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """The numbers of pairs, ascending, and the mean value at each."""
    means = own.groupby(PAIRS)["value"].mean()
    return means.index.to_series(), means


def _halves(data: pd.DataFrame) -> dict[str, Half]:
    return {str(arm): half_point(own[PAIRS], own["median"]) for arm, own in data.sort_values(PAIRS).groupby("arm")}


def _half_entry(each: Mapping[str, Any]) -> Entry:
    half = each["half"]
    return Entry(half.text, None if math.isnan(half.pairs) else half.pairs, runs=opened(each))


def _seeds_entry(seeds: Sequence[Half]) -> Entry:
    return Entry("; ".join(half.text for half in sorted(seeds, key=lambda half: (half.beyond == ">", half.pairs))))


def _bytes(each: Mapping[str, Any]) -> Entry:
    size = each["state_bytes"]
    return Entry("–") if pd.isna(size) else Entry(f"{size:,.0f}", float(size))


def _ratio(own: Mapping[str, Any], others: Sequence[Mapping[str, Any]], reference: str, times: int) -> Entry:
    """How many times the pairs of the reference with a head so many times as large; behind it, how many times its bytes."""
    match = next((each for each in others if each["model"] == reference and each[SIZE] == times * own[SIZE]), None)
    if match is None:
        return Entry("not asked")
    ratio, size = own["half"].over(match["half"]), own["state_bytes"] / match["state_bytes"]
    known = not math.isnan(ratio.pairs)
    pairs = f"{ratio.beyond} {ratio.pairs:.2f}".strip() if known else "–"
    return Entry(f"{pairs} ({size:.2f} of its bytes)", ratio.pairs if known else None)
