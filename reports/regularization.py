"""Where a Mesa layer breaks: the floor of Lambda, with and without the cap on gamma, on text and on repeated tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from reports.lines import seed_points, shades
from reports.panels import WIDE_RANGE, grid_of_panels, row_of_panels, scale_of_metric, ticks_at, with_legend
from reports.parts import Cell, Drawing, Frames, NoData, Table
from reports.statistics import t_interval
from reports.study import mean_cell, of_stage, seed_summary, seeds_note
from reports.style import fact_label, fact_text, plain
from reports.tables import Column, column_of, notes_on, outcomes, per_run, rows_of
from suite.metrics import METRICS, axis_label

FLOOR, CAP = "regularizer_floor", "forget_cap"
LOOKS = (("#d55e00", "o"), ("#332288", "s"), ("#44aa99", "D"), ("#aa4499", "^"))
LOGARITHMIC = ("condition", *WIDE_RANGE)


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
        found = seed_summary(scored["value"].to_numpy(), metric) if len(scored) else {"n": 0}
        found["by_seed"] = dict(zip(scored["seed"], scored["value"], strict=True))
        key = {FLOOR: floor, "cap": cap, "metric": metric, "asked": len(group)}
        rows.append(found | key | {"without": outcomes(group.loc[group["value"].isna(), "status"])})
    return pd.DataFrame(rows).reindex(
        columns=[FLOOR, "cap", "metric", "mean", "low", "high", "half_width", "n", "each", "by_seed", "asked", "without"]
    )


def title_of(metric: str) -> str:
    return "NLL after a run less\nwithout it [nats/token]" if metric == "nll_change" else axis_label(metric)


def by_floor(frames: Frames, *, column: Mapping[str, str], after: Sequence[str], columns: int) -> Drawing:
    """The score on ordinary text by the floor of Lambda, and one panel a metric of `after` after the longest run.

    One line with the cap and one without; a diverged run is a cross at the panel's worse edge.
    """
    tables, longest = on_text_and_after(frames, column_of(column), after)
    figure, panels = grid_of_panels(len(tables), columns=columns, width=3.0, beside=1.6, height=2.7)
    for axes, (metric, table) in zip(panels, tables.items(), strict=True):
        _panel(axes, table)
        axes.set_title(f"{longest:g} repeated tokens" if metric else "ordinary text")
    data = pd.concat(tables.values(), ignore_index=True)
    diverged = data["without"].str.contains("diverged").any()
    notes = ["A cross at the frame's edge: runs that diverged."] if diverged else []
    return with_legend(data, figure, seeds_note(data, "Bars"), *notes)


def on_text_and_after(frames: Frames, column: Column, after: Sequence[str]) -> tuple[dict[str, pd.DataFrame], float]:
    """`on_text` under "", `after_runs` of each metric at the longest run under its name, and how long that run is."""
    tables = {"": on_text(frames, column)} | {metric: after_runs(frames, column, metric) for metric in after}
    longest = max(tables[metric]["run_length"].max() for metric in after)
    return tables | {metric: tables[metric][tables[metric]["run_length"] == longest] for metric in after}, longest


def _panel(axes: Axes, table: pd.DataFrame) -> None:
    metric = table["metric"].iloc[0]
    scale_of_metric(axes, metric)
    for (cap, line), (color, marker) in zip(table.groupby("cap"), LOOKS, strict=False):
        # An interval that reaches zero has no place on a logarithmic axis.
        line = line.assign(low=line["low"].clip(lower=0.1 * line["mean"])) if metric in LOGARITHMIC else line
        look = {"color": color, "marker": marker, "markersize": 4.5, "label": plain(cap)}
        seed_points(axes, line, FLOOR, look=look)
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
    figure, panels = row_of_panels(len(caps), width=3.4, beside=1.8, height=3.3, sharey=True)
    for axes, cap in zip(panels, caps, strict=True):
        for floor, color in zip(floors, shades(len(floors)), strict=True):
            line = data[(data["cap"] == cap) & (data[FLOOR] == floor)].sort_values("run_length")
            axes.plot(line["run_length"], line["mean"], color=color, marker="o", markersize=3.5, label=fact_text(FLOOR, floor))
        axes.set_xscale("symlog", linthresh=data.loc[data["run_length"] > 0, "run_length"].min(), linscale=0.5)
        ticks_at(axes, data["run_length"])
        axes.set(xlabel="repeated tokens", title=cap)
        scale_of_metric(axes, metric)
    panels[0].set_ylabel(title_of(metric))
    return with_legend(data, figure, f"Mean over {data['n'].max():.0f} seeds.")


def by_floor_table(frames: Frames, *, column: Mapping[str, str], after: Sequence[str]) -> Table:
    """One row a cap and floor: the score on text, and every metric of `after` after the longest run; what broke is named."""
    wanted = column_of(column)
    tables, longest = on_text_and_after(frames, wanted, after)
    rows = []
    for (cap, floor), _ in tables[""].groupby(["cap", FLOOR]):
        own = (table[(table["cap"] == cap) & (table[FLOOR] == floor)].iloc[0] for table in tables.values())
        rows.append((Cell(cap), Cell(f"{floor:g}", floor), *map(_cell, own)))
    titles = [title_of(metric).replace("\n", " ") for metric in (wanted.metric, *after)]
    data = pd.concat([table.assign(of=name or wanted.metric) for name, table in tables.items()], ignore_index=True)
    header = ("forget cap", fact_label(FLOOR), f"text: {titles[0]}", *(f"{longest:g} repeated: {title}" for title in titles[1:]))
    return Table(data, header, tuple(rows), (*broken(tables), *notes_on(cells_of(frames, wanted))))


def _cell(row: pd.Series) -> Cell:
    metric = row["metric"]
    if not row["n"]:
        return Cell(row["without"])
    if np.isinf(row["mean"]):
        cell = Cell("not finite", row["mean"])
    else:
        change = metric == "nll_change"
        cell = mean_cell(row, metric, difference=change, digits=3 if change else None)
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
