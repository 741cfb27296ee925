"""What every head of every Mesa layer does: gates, Lambda, conditioning, steps (Fig. 14 of MesaNet, arXiv 2506.05233)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps

from reports.kit.arguments import Metric, Task
from reports.kit.lines import banded_lines, seed_points
from reports.kit.panels import grid_of_panels, row_of_panels, scale_of_metric, with_legend, within_limits
from reports.kit.parts import Drawing, Entry, Frames, Table
from reports.kit.render import signed
from reports.kit.rows import BAND, by_metric, measured, seeds_note
from reports.kit.tables import entries_by, mean_entry
from suite.metrics import METRICS, axis_label

RANKED = "The heads of a layer are ordered by their mean gamma, so that those of different seeds can be compared."


def head_rows(frames: Frames, *, task: str, metrics: Sequence[str], whole: bool) -> dict[str, pd.DataFrame]:
    """By metric the rows of the stage `internals` with `rank`, the head's in its layer and run by mean gamma, 1 the lowest."""
    gamma = measured(frames.results, stage="internals", task=task, metric="gamma", whole=True)
    rank = gamma.assign(rank=gamma.groupby(["run_id", "layer"])["value"].rank(method="first").astype(int))
    head = ["run_id", "layer", "head"]
    tables = {m: measured(frames.results, stage="internals", task=task, metric=m, whole=whole) for m in metrics}
    return {m: rows.astype({"layer": int, "head": int}).merge(rank[[*head, "rank"]], on=head) for m, rows in tables.items()}


def by_layer(frames: Frames, *, task: Task, metrics: Sequence[Metric], columns: int) -> Drawing:
    """One panel a metric: layers to the right, every head a point of the mean over seeds with its 95 % t interval."""
    data = by_metric(head_rows(frames, task=task, metrics=metrics, whole=True), ["layer", "rank"])
    heads = data["rank"].max()
    figure, panels = row_of_panels(len(metrics), columns=columns, width=2.6, beside=1.4, height=2.5)
    for axes, metric in zip(panels, metrics, strict=True):
        scale_of_metric(axes, metric)
        for rank, points in data[data["metric"] == metric].groupby("rank"):
            beside = points.assign(x=points["layer"] + 1 + 0.6 * ((rank - 0.5) / heads - 0.5), at=points["layer"] + 1)
            seed_points(axes, beside, "x", look=_look(rank, heads) | {"marker": "o", "markersize": 5, "linestyle": "none"})
        axes.set_xticks(sorted(data["layer"].unique() + 1))
        axes.grid(axis="x", visible=False)
        axes.set(xlabel="layer", title=axis_label(metric))
        within_limits(axes, metric)
    return with_legend(data, figure, RANKED, seeds_note(data, "Bars and bands"))


def _look(rank: int, heads: int) -> dict[str, object]:
    """The colour and label of a head."""
    end = {1: ", least gamma", heads: ", most gamma"}.get(rank, "") if heads > 1 else ""
    return {"color": colormaps["plasma"](0.85 * (rank - 1) / max(heads - 1, 1)), "label": f"head {rank}{end}"}


def by_position(frames: Frames, *, task: Task, metrics: Sequence[Metric]) -> Drawing:
    """One row of panels a metric, one column a layer, one line a head, by position; mean over seeds, bands 95 % t intervals."""
    data = by_metric(head_rows(frames, task=task, metrics=metrics, whole=False), ["layer", "rank", *BAND])
    layers, heads = sorted(data["layer"].unique()), data["rank"].max()
    figure, panels = grid_of_panels(len(metrics), len(layers), width=1.9, beside=1.8, height=1.65)
    for row, metric in zip(panels, metrics, strict=True):
        for axes, layer in zip(row, layers, strict=True):
            lines = data[(data["metric"] == metric) & (data["layer"] == layer)].groupby("rank")
            banded_lines(axes, ((_look(rank, heads) | {"linewidth": 1.3}, line) for rank, line in lines))
            axes.set_xlabel("")
            axes.tick_params(labelsize=7.5)
        row[0].set_ylabel(axis_label(metric), fontsize=8)
        scale_of_metric(row[0], metric)
        within_limits(row[0], metric)
    for top, bottom, layer in zip(panels[0], panels[-1], layers, strict=True):
        top.set_title(f"layer {layer + 1}")
        bottom.set_xlabel("position [tokens]", fontsize=8)
    return with_legend(data, figure, RANKED, seeds_note(data, "Bars and bands"))


def by_head(frames: Frames, *, task: Task, metrics: Sequence[Metric]) -> Table:
    """One row a layer and head, means over seeds; below, how the condition number goes with the other metrics over heads."""
    tables = head_rows(frames, task=task, metrics=metrics, whole=True)
    data = by_metric(tables, ["layer", "rank"])
    heads = entries_by(data.sort_values(["layer", "rank"]), ["layer", "rank"], "metric", metrics, mean_entry)
    rows = [(Entry(f"{layer + 1}", layer), Entry(f"{rank}", rank), *entries) for (layer, rank), entries in heads]
    notes = (*associations(tables), RANKED, seeds_note(data, "±"))
    return Table(data, ("layer", "head", *map(axis_label, metrics)), tuple(rows), notes)


def associations(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Spearman's rank correlation over the heads of all layers and seeds of the condition number with every other metric."""
    if "condition" not in tables:
        return []
    head = ["run_id", "layer", "head"]
    wide = pd.concat([table.set_index(head)["value"].rename(metric) for metric, table in tables.items()], axis=1)
    ranks = wide.dropna().rank()
    found = {metric: ranks["condition"].corr(ranks[metric]) for metric in tables if metric != "condition"}
    # A metric that is the same for all heads goes with nothing.
    said = ", ".join(f"{METRICS[metric].label} {signed(value, 2)}" for metric, value in found.items() if not np.isnan(value))
    share = (wide["condition"] > 10 * wide["condition"].median()).mean()
    return [
        f"Rank correlation with the condition number over {len(ranks)} heads (all layers and seeds): {said}.",
        f"Of the heads, {100 * share:.0f} % have a condition number above ten times the median head's.",
    ]
