"""Lines of medians over seeds with their quartiles, and the panels and axes of a benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from reports.kit.chosen_runs import in_order, place_label, place_text
from reports.kit.hover import remember
from reports.kit.lines import BAND, lines_of
from reports.kit.panels import row_of_panels, ticks_at
from reports.kit.parts import Frames, NoData
from suite.metrics import METRICS, axis_label

SHOWN = "lines are medians over seeds, bands run from the first to the third quartile"
QUARTILES = ("median", "q1", "q3")
DASHES = (":", (0, (1, 3)), (0, (4, 2)), "-.")
"""Lines of what is known without training."""


def median_lines(axes: Axes, data: pd.DataFrame, x: str, label: str = "arm", *, marker: float = 0.9) -> None:
    """A line for every label through the medians of `over_seeds` rows, with their quartiles as a band of its colour."""
    known = data.dropna(subset=["median"])
    alpha = BAND / max(1.0, known[label].nunique() / 4) ** 0.5
    for _, look, line in lines_of(known, x, label, marker=marker):
        (drawn,) = axes.plot(line[x], line["median"], **look)
        remember(drawn, line, value=QUARTILES, interval="quartiles")
        axes.fill_between(line[x], line["q1"], line["q3"], color=look["color"], alpha=alpha, linewidth=0, zorder=1.5)


def panels_of(data: pd.DataFrame, name: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """The title and the rows of every value of a place, in order; all rows, without a title, where no place is named.

    Where the sequences of different panels are of different lengths, the titles say so.
    """
    if not name:
        yield "", data
        return
    lengths = data.groupby(name)["task.seq_len"].agg(["nunique", "first"]) if "task.seq_len" in data else pd.DataFrame()
    told = len(lengths) and (lengths["nunique"] == 1).all() and lengths["first"].nunique() > 1
    for value in in_order(data[name]):
        length = f", {lengths.loc[value, 'first']:,.0f} tokens" if told else ""
        yield f"{place_text(name, value)}{length}", data[data[name] == value]


def numbers_of(data: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows that have a number at a place. Raises NoData where none has."""
    numbers = pd.to_numeric(data[name], errors="coerce")
    if numbers.isna().all():
        raise NoData(f"no run has a number as its {place_label(name)}")
    return data.assign(**{name: numbers}).dropna(subset=[name])


def doubling_axis(axes: Axes, values: Iterable[float], name: str) -> None:
    """The x axis of a place, logarithmic where that can be, with a tick at every value."""
    values = list(values)
    if min(values) > 0 and max(values) > min(values):
        axes.set_xscale("log", base=2)
    axes.xaxis.set_minor_locator(FixedLocator([]))
    ticks_at(axes, values, "{:,g}")
    axes.set_xlabel(place_label(name))


def reference_lines(axes: Axes, frames: Frames, run_ids: pd.Series, metrics: Sequence[str], slice_: str) -> list[dict[str, Any]]:
    """Lines at what is known of the test split without training, mean over runs; returns what was drawn.

    slice_: as its rows spell it, "num_pairs=8"; what is not known by slice is that of the whole split.
    """
    rows, drawn = frames.results, []
    rows = rows[rows["run_id"].isin(run_ids) & (rows["stage"] == "test") & rows["metric"].isin(metrics)].dropna(subset="value")
    for metric, dashes in zip(metrics, DASHES, strict=False):
        own = rows[rows["metric"] == metric]
        own = own[own["slice"] == (slice_ if (own["slice"] == slice_).any() else "")]
        if len(own):
            value = float(own["value"].mean())
            axes.axhline(value, color="#666666", linestyle=dashes, linewidth=1.2, label=METRICS[metric].label)
            drawn.append({"reference": METRICS[metric].label, "metric": metric, "median": value})
    return drawn


def accuracy_axis(axes: Axes, metric: str) -> None:
    """The y axis of an accuracy, from 0 to 1 with room for markers, named in the first panel of a row."""
    axes.set(ylim=(-0.03, 1.03), yticks=np.linspace(0, 1, 6))
    place = axes.get_subplotspec()
    axes.set_ylabel(f"{axis_label(metric)}, test" if place is None or place.is_first_col() else "")


def small_multiples(
    count: int, *, width: float = 2.5, beside: float = 2.2, height: float = 2.9, most: int = 4
) -> tuple[Figure, Sequence[Axes]]:
    """So many panels of one y axis, in rows of three or four, so that few places stay empty.

    width, height: of a panel; beside: of what stands right or left of all, in inches. most: panels of a row.
    """
    columns = min(count, most, 4 if count % 4 in (0, 3) and count > 3 else 3)
    return row_of_panels(count, width=width, beside=beside, height=height, columns=columns, sharey=True)


def bytes_axis(axes: Axes, sizes: pd.Series) -> None:
    """A logarithmic x axis of bytes; where the sizes span less than two powers of two, they are the ticks themselves."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(bytes_text))
    if sizes.max() < 4 * sizes.min():
        axes.set_xticks(sorted(sizes.unique()))


def bytes_text(size: float, _position: int | None = None) -> str:
    """A number of bytes for a tick, in the largest binary unit that it fills: 512, 16K, 2M."""
    exponent = max(0, min(3, int(np.log2(max(size, 1)) // 10)))
    return f"{size / 1024**exponent:.3g}{('', 'K', 'M', 'G')[exponent]}"
