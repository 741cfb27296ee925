"""What every head of every Mesa layer does: gates, Lambda, conditioning, steps (Fig. 14 of MesaNet, arXiv 2506.05233)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes

from reports.lines import banded_line, seed_points
from reports.panels import grid_of_panels, new_figure, position_axis, scale_of_metric, with_legend
from reports.parts import Cell, Drawing, Frames, Table
from reports.render import signed
from reports.study import BAND, by_metric, cells_by, mean_cell, measured, seeds_note
from suite.metrics import METRICS, axis_label

RANKED = "The heads of a layer are ordered by their mean gamma, so that those of different seeds can be compared."


def head_rows(frames: Frames, *, task: str, metric: str, whole: bool) -> pd.DataFrame:
    """The rows of the stage `internals` with `rank`: the head's place in its layer and run by mean gamma, 1 the lowest."""
    gamma = measured(frames, stage="internals", task=task, metric="gamma", whole=True)
    rank = gamma.assign(rank=gamma.groupby(["run_id", "layer"])["value"].rank(method="first").astype(int))
    rows = measured(frames, stage="internals", task=task, metric=metric, whole=whole).astype({"layer": int, "head": int})
    return rows.merge(rank[["run_id", "layer", "head", "rank"]], on=["run_id", "layer", "head"])


def by_layer(frames: Frames, *, task: str, metrics: Sequence[str], columns: int) -> Drawing:
    """One panel a metric: layers to the right, every head a point of the mean over seeds with its 95 % t interval."""
    data = by_metric({m: head_rows(frames, task=task, metric=m, whole=True) for m in metrics}, ["layer", "rank"])
    figure, panels = grid_of_panels(len(metrics), columns=columns, width=2.6, beside=1.4, height=2.5)
    for axes, metric in zip(panels, metrics, strict=True):
        scale_of_metric(axes, metric)
        _head_points(axes, data[data["metric"] == metric], data["rank"].max())
        axes.set_title(axis_label(metric))
    return with_legend(data, figure, RANKED, seeds_note(data, "Bars and bands"))


def head_color(rank: int, heads: int) -> tuple[float, ...]:
    return colormaps["plasma"](0.85 * (rank - 1) / max(heads - 1, 1))


def head_label(rank: int, heads: int) -> str:
    ends = {1: ", least gamma", heads: ", most gamma"}
    return f"head {rank}{ends.get(rank, '') if heads > 1 else ''}"


def _head_points(axes: Axes, data: pd.DataFrame, heads: int) -> None:
    for rank, points in data.groupby("rank"):
        beside = points.assign(x=points["layer"] + 1 + 0.6 * ((rank - 0.5) / heads - 0.5))
        look = {"color": head_color(rank, heads), "marker": "o", "markersize": 5, "linestyle": "none"}
        seed_points(axes, beside, "x", look=look | {"label": head_label(rank, heads)})
    axes.set_xticks(sorted(data["layer"].unique() + 1))
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("layer")


def by_position(frames: Frames, *, task: str, metrics: Sequence[str]) -> Drawing:
    """One row of panels a metric, one column a layer, one line a head, by position; mean over seeds, bands 95 % t intervals."""
    data = by_metric({m: head_rows(frames, task=task, metric=m, whole=False) for m in metrics}, ["layer", "rank", *BAND])
    layers, heads = sorted(data["layer"].unique()), data["rank"].max()
    figure = new_figure(1.8 + 1.9 * len(layers), 1.65 * len(metrics))
    panels = figure.subplots(len(metrics), len(layers), squeeze=False, sharex=True, sharey="row")
    for row, metric in zip(panels, metrics, strict=True):
        for axes, layer in zip(row, layers, strict=True):
            _head_lines(axes, data[(data["metric"] == metric) & (data["layer"] == layer)], heads)
        row[0].set_ylabel(_two_lines(axis_label(metric)), fontsize=8)
        scale_of_metric(row[0], metric)
    for axes, layer in zip(panels[0], layers, strict=True):
        axes.set_title(f"layer {layer + 1}")
    for axes in panels[-1]:
        axes.set_xlabel("position [tokens]", fontsize=8)
    return with_legend(data, figure, RANKED, seeds_note(data, "Bars and bands"))


def _two_lines(label: str) -> str:
    words = label.split(" ")
    return " ".join(words[: len(words) // 2]) + "\n" + " ".join(words[len(words) // 2 :]) if len(words) > 2 else label


def _head_lines(axes: Axes, data: pd.DataFrame, heads: int) -> None:
    for rank, line in data.groupby("rank"):
        banded_line(axes, line, look={"color": head_color(rank, heads), "linewidth": 1.3, "label": head_label(rank, heads)})
    position_axis(axes)
    axes.set_xlabel("")
    axes.tick_params(labelsize=7.5)


def by_head(frames: Frames, *, task: str, metrics: Sequence[str]) -> Table:
    """One row a layer and head, means over seeds; below, how the condition number goes with the other metrics over heads."""
    tables = {metric: head_rows(frames, task=task, metric=metric, whole=True) for metric in metrics}
    data = by_metric(tables, ["layer", "rank"])
    heads = cells_by(data.sort_values(["layer", "rank"]), ["layer", "rank"], "metric", metrics, mean_cell)
    rows = [(Cell(f"{layer + 1}", layer), Cell(f"{rank}", rank), *cells) for (layer, rank), cells in heads]
    notes = (*associations(tables), RANKED, seeds_note(data, "±"))
    return Table(data, ("layer", "head", *(axis_label(metric) for metric in metrics)), tuple(rows), notes)


def associations(tables: dict[str, pd.DataFrame]) -> list[str]:
    """Spearman's rank correlation over the heads of all layers and seeds of the condition number with every other metric."""
    if "condition" not in tables:
        return []
    wide = pd.concat(
        [table.set_index(["run_id", "layer", "head"])["value"].rename(metric) for metric, table in tables.items()], axis=1
    )
    ranks = wide.dropna().rank()
    found = {metric: ranks["condition"].corr(ranks[metric]) for metric in tables if metric != "condition"}
    # A metric that is the same for all heads goes with nothing.
    said = [f"{METRICS[metric].label} {signed(value, 2)}" for metric, value in found.items() if not np.isnan(value)]
    share = (wide["condition"] > 10 * wide["condition"].median()).mean()
    text = f"Rank correlation with the condition number over {len(ranks)} heads (all layers and seeds): {', '.join(said)}."
    return [
        text,
        f"Of the heads, {100 * share:.0f} % have a condition number above ten times the median head's.",
    ]
