"""How often a benchmark is learnt: the share of seeds that succeed, and the spread of their accuracies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from conf.settings import Share
from reports.kit.arguments import Task
from reports.kit.chosen_runs import (
    IN_WORDS,
    Chosen,
    chosen_runs,
    in_order,
    line_labels,
    over_seeds,
    place_label,
    place_text,
    placed,
)
from reports.kit.hover import remember
from reports.kit.medians import panels_of, small_multiples
from reports.kit.parts import Drawing, Entry, Frames, Table
from reports.kit.sheet import current
from reports.kit.style import arms_in_order, plain
from reports.kit.tables import opened
from suite.metrics import METRICS

COLORS = LinearSegmentedColormap.from_list("success", colormaps["YlGnBu"](np.linspace(0.0, 0.85, 256)))
ABSENT = "#f2f2f2"
SIDE, UP, UP_ON_PAPER, LABELS, LETTER = (0.5, 0.34), 0.27, 0.15, 1.9, 0.045
"""Inches of a square across, where there are few and where there are MANY, and up; of the names of the arms beside a panel; of
a letter of the names below, up."""
LEAST_SIDE = 0.2
"""Inches across that the words in a square take."""
SHORT = 5
"""Names of columns with more letters are turned."""
MANY = 8
"""More places than these stand below one another in a table."""


def heat_map(frames: Frames, *, tasks: Sequence[Task], across: str, threshold: Share, panels: str = "") -> Drawing:
    """The share of seeds whose accuracy on the test split reaches the threshold: a row an arm, a column a place.

    across: what a column is: "task", "setting", which is how a task is set, a slice of the scores such as "num_pairs", or a
    setting of the runs. panels: the same, with a panel for each value.
    """
    chosen, data = _shares(frames, tasks, across, panels, threshold)
    arms = [arm for arm, _ in arms_in_order(data)]
    parts = list(panels_of(data, panels))
    most = max(part[across].nunique() for _, part in parts)
    longest = max(len(_name(across, value)) for value in data[across].unique())
    crowded = most > MANY
    width, height = max(most * SIDE[crowded], 1.6), len(arms) * UP + 0.7 + (LETTER * longest if longest > SHORT else 0.0)
    figure, drawn = small_multiples(len(parts), width=width, beside=LABELS, height=height, most=2 if crowded else 4)
    place = drawn[0].get_subplotspec()
    rows, columns, *_ = place.get_geometry() if place else (1, 1)
    if current().on_paper:
        figure.set_figheight(rows * (height - len(arms) * (UP - UP_ON_PAPER) - 0.2))
    has_room = (figure.get_figwidth() - LABELS / 2) / columns / most > LEAST_SIDE
    for axes, (title, part) in zip(drawn, parts, strict=True):
        _squares(axes, part, arms, across, has_room=has_room)
        axes.set_title(title)
    several = (data["counted"] > data.groupby("arm")["counted"].transform("min")).any()
    of = "runs, of all seeds and settings of a column," if several and across == "task" else "seeds"
    shown = f"the darker a square, the larger the share of {of} that reach {threshold:g}"
    return Drawing(data, figure, chosen.notes(f"{shown}, in it how many of how many" if has_room else shown))


def _shares(frames: Frames, tasks: Sequence[str], across: str, panels: str, threshold: float) -> tuple[Chosen, pd.DataFrame]:
    """The runs that are reported, and `over_seeds` of every arm and place."""
    chosen = chosen_runs(frames, tasks)
    cells = placed(frames, chosen.cells, across, panels)
    cells = cells.assign(arm=line_labels(cells, across, panels))
    keys = dict.fromkeys(["arm", "model", "family", across, *([panels] if panels else [])])
    return chosen, over_seeds(cells, list(keys), threshold)


def _squares(axes: Axes, part: pd.DataFrame, arms: Sequence[str], across: str, *, has_room: bool) -> None:
    """A coloured square for every arm and place, in it, where it `has_room`, how many seeds succeed of how many count."""
    places = in_order(part[across])
    found = part.assign(x=part[across].map(places.index), y=part["arm"].map(list(arms).index))
    shares = np.full((len(arms), len(places)), np.nan)
    shares[found["y"], found["x"]] = found["share"]
    look: dict[str, Any] = {"cmap": COLORS, "vmin": 0, "vmax": 1, "edgecolors": "white", "linewidth": 1.5}
    axes.pcolormesh(np.arange(len(places) + 1) - 0.5, np.arange(len(arms) + 1) - 0.5, np.ma.masked_invalid(shares), **look)
    axes.set_facecolor(ABSENT)
    for row in found.to_dict("records") if has_room else ():
        text = f"{row['succeeded']}/{row['counted']}" if row["counted"] else "–"
        color = "white" if row["counted"] and row["share"] > 0.55 else "black"
        axes.text(row["x"], row["y"], text, ha="center", va="center", color=color, fontsize=7)
    (points,) = axes.plot(found["x"], found["y"], "s", color="none", markersize=8)
    remember(points, found.assign(at=[place_text(across, value) for value in found[across]]), value=("share", "", ""))
    names = [_name(across, value) for value in places]
    axes.set_xlabel("" if across in IN_WORDS else place_label(across))
    turned: dict[str, Any] = {"rotation": 35 if has_room else 90, "ha": "right", "rotation_mode": "anchor", "va": "center"}
    turned = turned if max(map(len, names)) > SHORT else {}
    axes.set_xticks(range(len(places)), labels=map(plain, names), **turned)
    axes.set_yticks(range(len(arms)), labels=map(plain, arms))
    axes.set(xlim=(-0.5, len(places) - 0.5), ylim=(len(arms) - 0.5, -0.5))
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _name(across: str, value: object) -> str:
    """What stands below a column: a number where the axis says of what."""
    return f"{value:,g}" if isinstance(value, Real) and across not in IN_WORDS else place_text(across, value)


def scores(frames: Frames, *, tasks: Sequence[Task], across: str, threshold: Share, panels: str = "") -> Table:
    """The median over seeds with its quartiles, and how many reach the threshold, of every arm and place.

    across, panels: see `heat_map`.
    """
    chosen, data = _shares(frames, tasks, across, panels, threshold)
    places, texts = [], dict[tuple[str, str], Entry]()
    for title, part in panels_of(data, panels):
        for value in in_order(part[across]):
            own = part[part[across] == value]
            places.append(f"{title}: {place_text(across, value)}" if title else place_text(across, value))
            texts |= {(row["arm"], places[-1]): _entry(row) for row in own.to_dict("records")}
    arms = [arm for arm, _ in arms_in_order(data)]
    notes = chosen.notes(f"entries are medians with quartiles in brackets, and behind them how many seeds reach {threshold:g}")
    absent = Entry("not asked")
    if len(places) > MANY:
        rows = [(Entry(place), *(texts.get((arm, place), absent) for arm in arms)) for place in places]
        return Table(data, (place_label(across), *arms), tuple(rows), notes)
    rows = [(Entry(arm), *(texts.get((arm, place), absent) for place in places)) for arm in arms]
    return Table(data, ("model", *places), tuple(rows), notes)


def _entry(row: Mapping[str, Any]) -> Entry:
    """ "0.981 [0.954, 0.992], 2/3"; what became of the runs where none has a score."""
    if not row["n"]:
        return Entry(str(row["without"]), runs=opened(row))
    digits = METRICS[str(row["metric"])].digits
    text = f"{row['median']:.{digits}f}"
    if row["n"] > 1:
        text += f" [{row['q1']:.{digits}f}, {row['q3']:.{digits}f}]"
    missing = f" ({row['without']})" if row["without"] else ""
    return Entry(f"{text}, {row['succeeded']}/{row['counted']}{missing}", float(row["median"]), runs=opened(row))
