"""Accuracy of a synthetic benchmark against what varies: a width, the bytes of the state, the number of examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.kit.arguments import Metric, Task
from reports.kit.chosen_runs import SUCCESS, check_one_setting, chosen_runs, line_labels, over_seeds, placed
from reports.kit.medians import (
    SHOWN,
    accuracy_axis,
    bytes_axis,
    doubling_axis,
    median_lines,
    numbers_of,
    panels_of,
    reference_lines,
    small_multiples,
)
from reports.kit.panels import with_legend, within_limits
from reports.kit.parts import Drawing, Entry, Frames, NoData, Table
from reports.kit.protocol import protocol_names, read_protocol
from reports.kit.style import style_of
from suite.metrics import METRICS, axis_label
from suite.naming import fact_label, task_label, varying

BESIDE, CLEAR = (0.05, 0.05), (0.06, 0.05)
"""Shares of the x axis, and accuracies: from a point to its label, and from there to what the label must not hide."""


def accuracy_against(
    frames: Frames, *, task: Task, fact: str, panels: str = "", references: Sequence[Metric] = (), whole_axis: bool = True
) -> Drawing:
    """Accuracy on the test split against a setting, a line an arm: the median over seeds, at the rates of the protocol.

    panels: a setting or a slice of the scores, "num_pairs", with a panel for each of its values. references: metrics that are
    known without training. whole_axis: whether the accuracy goes from 0 to 1, or only where something is.
    """
    chosen = chosen_runs(frames, [task])
    cells = numbers_of(placed(frames, chosen.cells, fact, panels), fact)
    cells = cells.assign(arm=line_labels(cells, fact, panels))
    keys = ["arm", "model", "family", fact, *([panels] if panels else []), "task.seq_len"]
    keys = list(dict.fromkeys(keys))
    check_one_setting(cells, keys)
    data = over_seeds(cells, keys, SUCCESS)
    parts = list(panels_of(data, panels))
    figure, drawn = _panels(len(parts))
    known = []
    for axes, (title, part) in zip(drawn, parts, strict=True):
        slice_ = f"{panels}={part[panels].iloc[0]:g}" if panels and panels not in frames.cells else ""
        median_lines(axes, part, fact)
        own = reference_lines(axes, frames, cells["run_id"], references, slice_)
        known += [{**row, panels: part[panels].iloc[0]} if panels else row for row in own]
        doubling_axis(axes, data[fact].unique(), fact)
        axes.set_title(title)
        (accuracy_axis if whole_axis else _near_axis)(axes, data["metric"].iloc[0])
    both = pd.concat([data, pd.DataFrame(known)], ignore_index=True) if known else data
    both["arm"] = both["arm"].fillna("")
    return with_legend(both, figure, *chosen.notes(SHOWN), better="higher")


def _panels(count: int) -> tuple[Figure, Sequence[Axes]]:
    return small_multiples(1, width=5.4, height=3.6) if count == 1 else small_multiples(count)


def _near_axis(axes: Axes, metric: str) -> None:
    axes.set_ylabel(f"{axis_label(metric)}, test")
    within_limits(axes, metric)


def accuracy_by_state(frames: Frames, *, task: Task, panels: str = "") -> Drawing:
    """Accuracy on the test split against the bytes that a model carries, a line a model, the size of each beside its point.

    panels: see `accuracy_against`.
    """
    chosen = chosen_runs(frames, [task])
    sizes = [fact for fact in varying(chosen.cells) if fact.startswith("size.")]
    cells = numbers_of(placed(frames, chosen.cells, "state_bytes", panels), "state_bytes")
    cells = cells[cells["state_bytes"] > 0]
    if cells.empty:
        raise NoData(f"no run of {task_label(task)} carries a state")
    cells = cells.assign(arm=line_labels(cells, *sizes))
    varied = {arm: _varied(own, sizes) for arm, own in cells.groupby("arm", sort=False)}
    cells = cells.assign(size_of_arm=[row.get(varied[row["arm"]]) for row in cells.to_dict("records")])
    keys = ["arm", "model", "family", "state_bytes", "size_of_arm", *([panels] if panels else [])]
    check_one_setting(cells, [*keys, "task.seq_len"])
    data = over_seeds(cells, [*keys, "task.seq_len"], SUCCESS)
    parts = list(panels_of(data, panels))
    figure, drawn = _panels(len(parts))
    for axes, (title, part) in zip(drawn, parts, strict=True):
        median_lines(axes, part, "state_bytes", marker=1.0)
        bytes_axis(axes, part["state_bytes"])
        axes.set(title=title, xlabel=axis_label("state_bytes"))
        axes.margins(x=0.08)
        accuracy_axis(axes, data["metric"].iloc[0])
        _label_points(axes, part)
    names = dict.fromkeys(fact_label(fact) for fact in varied.values() if fact)
    told = [f"Numbers beside points: {' or '.join(names)}, whichever varies."] if names else []
    return with_legend(data, figure, *chosen.notes(SHOWN), *told, better="higher")


def _varied(own: pd.DataFrame, sizes: Sequence[str]) -> str:
    """The first of the sizes in which the points of a line differ; nothing for a single point."""
    return next((size for size in sizes if own[size].nunique(dropna=False) > 1), "")


def _label_points(axes: Axes, data: pd.DataFrame) -> None:
    """The size of every point beside it, where nothing else is: those of better models first."""
    octaves = np.log2(data["state_bytes"])
    places = np.stack([octaves / max(octaves.max() - octaves.min(), 1.0), data["median"]], axis=1)
    records, taken = data.to_dict("records"), np.empty((0, 2))
    for i in np.argsort(-data["median"].to_numpy(), kind="stable"):
        row, below = records[i], data["median"].iloc[i] > 0.5
        place = places[i] + np.array(BESIDE) * [1, -1 if below else 1]
        others = np.concatenate([np.delete(places, i, axis=0), taken])
        if pd.isna(row["size_of_arm"]) or np.isnan(row["median"]) or (np.abs(others - place) < CLEAR).all(axis=1).any():
            continue
        taken = np.concatenate([taken, [place]])
        beside: dict[str, Any] = {"xytext": (4, -8 if below else 3), "textcoords": "offset points"}
        color = style_of(row["model"]).color
        axes.annotate(f"{row['size_of_arm']:g}", (row["state_bytes"], row["median"]), fontsize=7, color=color, **beside)


def protocol(frames: Frames) -> Table:
    """How the runs of a benchmark are chosen and averaged, and what of a published protocol is not taken over."""
    read = [read_protocol(name) for name in dict.fromkeys(protocol_names(frames.cells))]
    asked = {
        "source": lambda each: each.source or "this suite's own",
        "rates are chosen on": lambda each: f"the {each.select_on} split",
        "reported": lambda each: f"{METRICS[each.metric].label}, on the test split",
        "seeds": lambda each: str(each.seeds),
    }
    rows = [(Entry(name), *(Entry(told(each)) for each in read)) for name, told in asked.items()]
    longest = max(len(each.deviations) for each in read)
    for i in range(longest):
        rows.append((Entry("deviates"), *(Entry(each.deviations[i] if i < len(each.deviations) else "") for each in read)))
    data = pd.DataFrame([dataclasses.asdict(each) | {"deviations": "; ".join(each.deviations)} for each in read])
    return Table(data, ("protocol", *(each.name for each in read)), tuple(rows))
