"""Mesa layers trained with a cheap use of H and with a solve: what each scores for the FLOPs that it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from reports.kit.lines import Look, seed_points, shaded
from reports.kit.panels import row_of_panels, with_legend, within_limits
from reports.kit.parts import Drawing, Entry, Frames, NoData, Table
from reports.kit.rows import less, over_runs, seeds_note
from reports.kit.solver import setting_label
from reports.kit.style import line_style, plain
from reports.kit.tables import Column, mean_entry, notes_on, number, opened, rows_of, scored_cells
from reports.kit.verdicts import HOW, verdict
from suite.metrics import METRICS, axis_label
from suite.naming import task_label

SOLVER = ("name", "initial", "max_steps", "tolerance")
FLOPS = "measured_flops_per_token"
WAY = ["way", "model", "solved"]
REFERENCE_LINE: dict[str, Any] = {"color": "#666666", "linestyle": "--", "linewidth": 1.1}


def trained(frames: Frames, column: Column) -> pd.DataFrame:
    """One row a run of the column's task that has the metric: run_id, arm, seed, WAY, FLOPS and value.

    way: the solver in words, of a model that has none its label. solved: whether it has one. FLOPS: the mean over the seeds of
    what a token took on validation (stage cost).
    """
    cells = scored_cells(frames, column)
    if cells["value"].isna().all():
        raise NoData(f"no run of {task_label(column.task)} has {axis_label(column.metric)}")
    spent = scored_cells(frames, Column(metric=FLOPS, task=column.task, size=column.size, stage="cost", split="validation"))
    records = cells.to_dict("records")
    cells = cells.assign(way=[_way(cell) for cell in records], solved=[_solver(cell) is not None for cell in records])
    cells[FLOPS] = spent["value"].groupby(cells["way"]).transform("mean")
    runs = cells[["run_id", "arm", "seed", *WAY, FLOPS, "value"]].dropna(subset=["value", FLOPS])
    if runs.empty:
        raise NoData(f"no run of {task_label(column.task)} has {axis_label(column.metric)} and {axis_label(FLOPS)}")
    return runs


def _solver(cell: Mapping[str, Any]) -> list[Any] | None:
    """What a setting of a solver is named by; None for a model without one."""
    setting = [cell.get(f"model.mixer.solver.{name}", np.nan) for name in SOLVER]
    return None if pd.isna(setting).any() else setting


def _way(cell: Mapping[str, Any]) -> str:
    setting = _solver(cell)
    return str(cell["family"]) if setting is None else setting_label(*setting)


def compared(frames: Frames, column: Column, tolerance: float) -> pd.DataFrame:
    """One row a way, from few FLOPs to many: the `seed_summary` of the value, and that of its difference to the reference's.

    The latter's columns begin with difference_; it is paired by seed.

    The reference is what was trained with a solver that stops at the tolerance; a seed of each has seen the same data.
    """
    runs = trained(frames, column)
    reference = setting_label("cg", "diagonal", 0, tolerance)
    paired = less(runs, runs[runs["way"] == reference], on=["seed"], done=f"trained with {reference}")
    differences = over_runs(paired, ["way"], metric=column.metric).set_index("way")
    kept = differences[["mean", "low", "high", "half_width", "n", "each"]].add_prefix("difference_")
    data = over_runs(runs, [*WAY, FLOPS], metric=column.metric).join(kept, on="way").sort_values(FLOPS, ignore_index=True)
    return data.assign(task=column.task, metric=column.metric, reference=reference)


def compared_columns(frames: Frames, columns: Sequence[Column], tolerance: float) -> list[tuple[Column, pd.DataFrame]]:
    """`compared` of every column whose runs are there; raises NoData where none's are."""
    parts, reasons = [], []
    for column in columns:
        try:
            parts.append((column, compared(frames, column, tolerance)))
        except NoData as reason:
            reasons.append(str(reason))
    if not parts:
        raise NoData("; ".join(dict.fromkeys(reasons)))
    return parts


def by_flops(frames: Frames, *, columns: Sequence[Column], tolerance: float) -> Drawing:
    """Scores by the forward FLOPs that a token takes: a panel a column, a point a way of training.

    tolerance: that of the solver whose runs the others are compared with, at the dashed line.
    """
    parts = compared_columns(frames, columns, tolerance)
    data = pd.concat([part for _, part in parts], ignore_index=True)
    looks = _looks(data)
    figure, panels = row_of_panels(len(parts), width=3.4, beside=2.2, height=3.3)
    for axes, (column, part) in zip(panels, parts, strict=True):
        _points(axes, part, looks)
        axes.set(title=task_label(column.task), xlabel=axis_label(FLOPS), ylabel=axis_label(column.metric))
        within_limits(axes, column.metric)
    return with_legend(data, figure, seeds_note(data, "Bars"), f"Dashed: the mean of {data['reference'].iloc[0]}.")


def _looks(data: pd.DataFrame) -> dict[str, Look]:
    """A shade for every solver, from cheap to dear; a model without one looks as in all figures."""
    solved = data[data["solved"]].sort_values(FLOPS, kind="stable")
    looks: dict[str, Look] = {way: {**look, "markersize": 6, "linestyle": "none"} for way, look, _ in shaded(solved, "way")}
    others = data.loc[~data["solved"], WAY[:2]].drop_duplicates()
    return looks | {way: {**line_style(model, 1.3), "linestyle": "none"} for way, model in others.itertuples(index=False)}


def _points(axes: Axes, data: pd.DataFrame, looks: Mapping[str, Look]) -> None:
    axes.axhline(data.loc[data["way"] == data["reference"], "mean"].iloc[0], **REFERENCE_LINE)
    for way, look in looks.items():
        own = data[data["way"] == way]
        if len(own):
            seed_points(axes, own, FLOPS, look={**look, "label": plain(way)})
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    # An interval wider than all that is compared would leave nothing to be seen of the rest: it runs out of the frame.
    wide = data["half_width"] > 2 * np.ptp(data["mean"])
    if wide.any():
        ends = [*data["mean"], *data.loc[~wide, ["low", "high"]].to_numpy().ravel()]
        low, high = np.nanmin(ends), np.nanmax(ends)
        axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))


def by_way(frames: Frames, *, columns: Sequence[Column], tolerance: float) -> Table:
    """One row a way of training: the FLOPs of a token, its scores, and their differences to the reference, paired by seed.

    Below stands a sentence a comparison, whether it is decided, but for scores that a seed has learnt or not.
    tolerance: see `compared`.
    """
    parts = compared_columns(frames, columns, tolerance)
    data = pd.concat([part for _, part in parts], ignore_index=True)
    shown: list[tuple[tuple[str, str], pd.DataFrame, Callable[[Mapping[str, Any]], Entry]]] = []
    for i, (column, part) in enumerate(parts):
        spent = Column(metric=FLOPS, task=column.task, stage="cost")
        reference, titles = part["reference"].iloc[0], (column.title, column.short)
        if column.task not in {earlier.task for earlier, _ in parts[:i]}:
            shown.append(((spent.title, spent.short), part, _flops))
        shown.append((titles, part, _score))
        if not METRICS[column.metric].learnt_or_not:
            less_reference = (f"{titles[0]}, less {reference}", f"less {reference}")
            shown.append((less_reference, part, _difference))
    found = [(part.set_index("way", drop=False).to_dict("index"), entry) for _, part, entry in shown]
    ways = data.groupby("way")[FLOPS].mean().sort_values(kind="stable").index
    rows = [(Entry(way), *(entry(own[way]) if way in own else Entry("–") for own, entry in found)) for way in ways]
    asked = pd.concat([rows_of(frames.cells, column) for column, _ in parts]).drop_duplicates("run_id")
    sentences = [sentence for _, part in parts for sentence in _sentences(part)]
    notes = (*sentences, HOW, *notes_on(asked))
    header, short = zip(("trained with", "trained with"), *(titles for titles, _, _ in shown), strict=True)
    return Table(data, header, tuple(rows), notes, short)


def _flops(row: Mapping[str, Any]) -> Entry:
    return Entry(number(row[FLOPS], FLOPS), row[FLOPS], runs=opened(row))


def _score(row: Mapping[str, Any]) -> Entry:
    return mean_entry(row, row["metric"])


def _difference(row: Mapping[str, Any]) -> Entry:
    if row["way"] == row["reference"]:
        return Entry("")
    own = {name.removeprefix("difference_"): value for name, value in row.items() if name.startswith("difference_")}
    return mean_entry({**own, "runs": row["runs"]}, row["metric"], difference=True, digits=METRICS[row["metric"]].digits + 1)


def _sentences(part: pd.DataFrame) -> Iterator[str]:
    for row in part.to_dict("records"):
        if row["way"] != row["reference"] and not METRICS[row["metric"]].learnt_or_not:
            what = f"{row['way']} against {row['reference']}, {task_label(row['task'])}"
            yield verdict(what, row["difference_each"], row["metric"])
