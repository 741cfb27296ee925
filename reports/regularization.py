"""Where a Mesa layer breaks: the floor of Lambda, with and without the cap on gamma, on text and on repeated tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes

from reports.parts import Cell, Drawing, Frames, NoData, Table
from reports.render import scientific
from reports.statistics import t_interval
from reports.study import mean_cell, of_stage, over_runs, seed_points, seeds_note
from reports.style import fact_label, fact_text, logarithmic, new_figure, plain, shared_legend
from reports.tables import Column, column_of, notes_on, outcomes, per_run, rows_of
from suite.metrics import METRICS, axis_label

FLOOR, CAP = "regularizer_floor", "forget_cap"
LOOKS = (("#d55e00", "o"), ("#332288", "s"), ("#44aa99", "D"), ("#aa4499", "^"))
LOGARITHMIC = ("readout_error", "readout_error_worst", "condition", "largest_readout")


def cells_of(frames: Frames, column: Column) -> pd.DataFrame:
    """The cells of the column's task and size with `cap`, the forget cap in words; raises NoData where no floor is known."""
    cells = rows_of(frames.cells, column).dropna(subset=FLOOR)
    if cells.empty:
        raise NoData(f"no run of {column.task} with a floor of Lambda was asked for")
    return cells.assign(cap=[fact_text(CAP, None if pd.isna(value) else value) for value in cells[CAP]])


def on_text(frames: Frames, column: Column) -> pd.DataFrame:
    """One row a floor and cap: the score's mean and interval over seeds, and what became of the runs without one."""
    values = per_run(frames, column, column.metric).rename("value")
    cells = cells_of(frames, column).merge(values, left_on="run_id", right_index=True, how="left")
    return _summarised(cells, column.metric)


def after_runs(frames: Frames, column: Column, metric: str) -> pd.DataFrame:
    """One row a floor, cap and run length: the metric of the stage `repeats`; `nll_change` is what the run does to the NLL."""
    wanted = ("nll", "nll_without_run") if metric == "nll_change" else (metric,)
    tables = [of_stage(frames.results, stage="repeats", task=column.task, metric=name) for name in wanted]
    tables = [table.set_index(["run_id", "run_length"])["value"] for table in tables]
    values = (tables[0] - tables[1] if len(tables) > 1 else tables[0]).rename("value").reset_index()
    # The store keeps what is not finite as nothing; here it was measured, and is as bad as can be.
    values["value"] = values["value"].fillna(np.inf)
    cells = cells_of(frames, column)
    lengths = pd.DataFrame({"run_length": sorted(values["run_length"].unique())})
    asked = cells.merge(lengths, how="cross").merge(values, on=["run_id", "run_length"], how="left")
    return pd.concat([_summarised(own, metric).assign(run_length=length) for length, own in asked.groupby("run_length")])


def _summarised(cells: pd.DataFrame, metric: str) -> pd.DataFrame:
    rows = []
    for (floor, cap), group in cells.groupby([FLOOR, "cap"]):
        scored = group.dropna(subset="value")
        found = over_runs(scored, "value", [FLOOR, "cap"], metric=metric).iloc[0].to_dict() if len(scored) else {"n": 0}
        found["by_seed"] = dict(zip(scored["seed"], scored["value"], strict=True))
        without = group.loc[group["value"].isna(), "status"]
        key = {FLOOR: floor, "cap": cap, "metric": metric, "asked": len(group)}
        rows.append(found | key | {"without": outcomes(without) if len(without) else ""})
    return pd.DataFrame(rows).reindex(
        columns=[FLOOR, "cap", "metric", "mean", "low", "high", "half_width", "n", "each", "by_seed", "asked", "without"]
    )


def title_of(metric: str) -> str:
    return "NLL after a run less\nwithout it [nats/token]" if metric == "nll_change" else axis_label(metric)


def by_floor(frames: Frames, *, column: Mapping[str, str], after: Sequence[str], columns: int) -> Drawing:
    """The score on ordinary text by the floor of Lambda, and one panel a metric of `after` after the longest run.

    One line with the cap and one without; a diverged run is a cross at the panel's worse edge.
    """
    wanted = column_of(column)
    longest = after_runs(frames, wanted, "finite")["run_length"].max()
    tables = [on_text(frames, wanted)]
    for metric in after:
        rows = after_runs(frames, wanted, metric)
        tables.append(rows[rows["run_length"] == longest])
    rows = -(-len(tables) // columns)
    figure = new_figure(1.6 + 3.0 * columns, 2.7 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, table in zip(panels, tables, strict=False):
        _panel(axes, table)
    for axes in panels:
        axes.set_visible(False)
    figure.axes[0].set_title("ordinary text")
    for axes in figure.axes[1 : len(tables)]:
        axes.set_title(f"{longest:g} repeated tokens")
    shared_legend(figure)
    data = pd.concat(tables, ignore_index=True)
    notes = [seeds_note(data, "Bars")]
    if data["without"].str.contains("diverged").any():
        notes.append("A cross at the frame's edge: runs that diverged.")
    return Drawing(data, figure, tuple(notes))


def _panel(axes: Axes, table: pd.DataFrame) -> None:
    metric = table["metric"].iloc[0]
    if metric == "condition":
        logarithmic(axes)
    elif metric in LOGARITHMIC:
        axes.set_yscale("log")
    for (cap, line), (color, marker) in zip(table.groupby("cap"), LOOKS, strict=False):
        line = line.sort_values(FLOOR)
        # An interval that reaches zero has no place on a logarithmic axis.
        line = line.assign(low=line["low"].clip(lower=0.1 * line["mean"])) if metric in LOGARITHMIC else line
        look = {"color": color, "marker": marker, "markersize": 4.5, "elinewidth": 1.1, "label": plain(cap)}
        seed_points(axes, line[FLOOR], line, look=look)
        for floor in line.loc[line["without"].str.contains("diverged"), FLOOR]:
            axes.plot(floor, 0.96, "x", color=color, markersize=7, markeredgewidth=2, transform=axes.get_xaxis_transform())
    shown = table.loc[np.isfinite(table["mean"]), "mean"]
    if metric in LOGARITHMIC and shown.nunique() == 1:
        # A logarithmic axis needs two values to find its limits.
        axes.set_ylim(shown.max() / 2, shown.max() * 2)
    axes.set_xscale("log")
    axes.set(xlabel=fact_label(FLOOR), ylabel=title_of(metric))


def by_run_length(frames: Frames, *, column: Mapping[str, str], metric: str) -> Drawing:
    """A metric of the stage `repeats` by the length of the run, one panel with the cap and one without, one line a floor."""
    data = after_runs(frames, column_of(column), metric)
    caps, floors = sorted(data["cap"].unique()), sorted(data[FLOOR].unique())
    figure = new_figure(1.8 + 3.4 * len(caps), 3.3)
    for axes, cap in zip(figure.subplots(1, len(caps), sharey=True, squeeze=False)[0], caps, strict=True):
        for i, floor in enumerate(floors):
            line = data[(data["cap"] == cap) & (data[FLOOR] == floor)].sort_values("run_length")
            color = colormaps["viridis"](0.88 * i / max(len(floors) - 1, 1))
            axes.plot(line["run_length"], line["mean"], color=color, marker="o", markersize=3.5, label=fact_text(FLOOR, floor))
        axes.set_xscale("symlog", linthresh=data.loc[data["run_length"] > 0, "run_length"].min(), linscale=0.5)
        lengths = sorted(data["run_length"].unique())
        axes.set_xticks(lengths, labels=[f"{length:g}" for length in lengths])
        axes.minorticks_off()
        axes.set(xlabel="repeated tokens", title=cap)
        if metric == "condition":
            logarithmic(axes)
        elif metric in LOGARITHMIC:
            axes.set_yscale("log")
    figure.axes[0].set_ylabel(title_of(metric))
    shared_legend(figure)
    return Drawing(data, figure, (f"Mean over {data['n'].max():.0f} seeds.",))


def by_floor_table(frames: Frames, *, column: Mapping[str, str], after: Sequence[str]) -> Table:
    """One row a cap and floor: the score on text, and every metric of `after` after the longest run; what broke is named."""
    wanted = column_of(column)
    tables = {wanted.metric: on_text(frames, wanted)}
    for metric in after:
        rows = after_runs(frames, wanted, metric)
        longest = rows["run_length"].max()
        tables[metric] = rows[rows["run_length"] == longest]
    rows = []
    for (cap, floor), _ in tables[wanted.metric].groupby(["cap", FLOOR]):
        own = {name: table[(table["cap"] == cap) & (table[FLOOR] == floor)].iloc[0] for name, table in tables.items()}
        rows.append((Cell(cap), Cell(f"{floor:g}", floor), *(_cell(row, name) for name, row in own.items())))
    titles = [title_of(name).replace("\n", " ") for name in tables]
    data = pd.concat([table.assign(of=name) for name, table in tables.items()], ignore_index=True)
    header = ("forget cap", fact_label(FLOOR), f"text: {titles[0]}", *(f"{longest:g} repeated: {title}" for title in titles[1:]))
    return Table(data, header, tuple(rows), (*broken(tables), *notes_on(cells_of(frames, wanted))))


def _cell(row: pd.Series, metric: str) -> Cell:
    if not row["n"]:
        return Cell(row["without"])
    if np.isinf(row["mean"]):
        cell = Cell("not finite", row["mean"])
    elif metric.startswith("readout_error"):
        cell = Cell(scientific(row["mean"]), row["mean"])
    else:
        cell = mean_cell(row, digits=METRICS[metric].digits if metric in METRICS else 3, difference=metric not in METRICS)
    without = f" (n={row['n']:.0f}; {row['without']})" if row["without"] else ""
    return Cell(cell.text + without, cell.sort)


def broken(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """One sentence a cap: the best floor on text and those not told apart from it, the diverged runs, and the floors
    whose read-out is wrong after a run.
    """
    said = []
    text = next(iter(tables.values()))
    better = METRICS[text["metric"].iloc[0]].better
    for cap, own in text.groupby("cap"):
        scored = own.dropna(subset="mean")
        parts = []
        if len(scored):
            best = scored.loc[scored["mean"].idxmin() if better == "lower" else scored["mean"].idxmax()]
            others = scored[scored[FLOOR] != best[FLOOR]]
            # The best is chosen by its score: each two floors count as compared.
            apart = [_apart(values, best["by_seed"], pairs=math.comb(len(scored), 2)) for values in others["by_seed"]]
            near = others.loc[~np.array(apart, dtype=bool), FLOOR]
            told = f", not told apart from {', '.join(f'{floor:g}' for floor in near)}" if len(near) else ""
            parts.append(f"best mean on text at a floor of {best[FLOOR]:g}{told}")
        diverged = own.loc[own["without"].str.contains("diverged"), FLOOR]
        parts.append(f"diverged at {', '.join(f'{floor:g}' for floor in diverged)}" if len(diverged) else "no run diverged")
        for metric, limit, name in (("readout_error", 1e-2, "read-out wrong by more than 1 %"), ("finite", None, "not finite")):
            if metric in tables:
                after = tables[metric][tables[metric]["cap"] == cap]
                wrong = after.loc[after["mean"] > limit if limit else after["mean"] < 1, FLOOR]
                places = f"at {', '.join(f'{floor:g}' for floor in wrong)}" if len(wrong) else "nowhere"
                parts.append(f"{name} after the run {places}")
        said.append(f"{cap[0].upper()}{cap[1:]}: {'; '.join(parts)}.")
    return said


def _apart(values: Mapping[int, float], best: Mapping[int, float], *, pairs: int) -> bool:
    """Whether the t interval of the differences of the same seeds, one of `pairs` intervals, leaves zero out."""
    interval = t_interval(np.array([values[seed] - best[seed] for seed in values if seed in best]), comparisons=pairs)
    return interval.low > 0 or interval.high < 0
