"""Where a Mesa layer breaks: the floor of Lambda, with and without the cap on gamma, on text and on repeated tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from reports.kit.arguments import Known
from reports.kit.intervals import t_interval
from reports.kit.lines import seed_points, shaded
from reports.kit.panels import row_of_panels, scale_of_metric, ticks_at, with_legend, within_limits
from reports.kit.parts import Drawing, Entry, Frames, NoData, Table
from reports.kit.render import counted
from reports.kit.rows import of_stage, seeds_note
from reports.kit.style import plain
from reports.kit.tables import Column, mean_entry, notes_on, scored_cells, summarised
from suite.metrics import METRICS, axis_label
from suite.naming import fact_label, fact_text

FLOOR, CAP = "regularizer_floor", "model.mixer.forget_cap"
LOOKS = (("#d55e00", "o"), ("#332288", "s"), ("#44aa99", "D"), ("#aa4499", "^"))
WRONG = {
    "readout_error": ("read-out wrong by more than 1 %", lambda mean: mean > 1e-2),
    "finite": ("not finite", lambda mean: mean < 1),
}
"""Metrics after a run that say what broke, and where they say so."""
After = Annotated[str, Known(lambda: ("nll_change", *METRICS))]
"""What is drawn of the text behind a run: a metric, or what the run makes of the loss."""


def cells_of(frames: Frames, column: Column) -> pd.DataFrame:
    """`scored_cells` with the floor and `cap`, the forget cap in words, by both; raises NoData where no floor is known."""
    cells = scored_cells(frames, column)
    cells = cells.assign(**{FLOOR: cells.get(f"model.mixer.{FLOOR}", np.nan)}).dropna(subset=FLOOR)
    if cells.empty:
        raise NoData(f"no run of {column.task} with a floor of Lambda was asked for")
    caps = [fact_text(CAP, None if pd.isna(value) else value) for value in cells[CAP]]
    return cells.assign(cap=caps).sort_values([FLOOR, "cap"], kind="stable")


def after_runs(frames: Frames, column: Column, metric: str) -> pd.DataFrame:
    """One row a floor, cap and run length: the metric of the stage `repeats`; `nll_change` is what the run does to the NLL."""
    wanted = ("nll", "nll_without_run") if metric == "nll_change" else (metric,)
    tables = [of_stage(frames.results, stage="repeats", task=column.task, metric=name) for name in wanted]
    tables = [table.set_index(["run_id", "run_length"])["value"] for table in tables]
    values = (tables[0] - tables[1] if len(tables) > 1 else tables[0]).rename("value").reset_index()
    # The store keeps what is not finite as nothing; here it was measured, and is as bad as can be.
    values["value"] = values["value"].fillna(np.inf)
    lengths = pd.DataFrame({"run_length": sorted(values["run_length"].unique())})
    asked = cells_of(frames, column)[["run_id", "arm", FLOOR, "cap", "seed", "status"]].merge(lengths, how="cross")
    asked = asked.merge(values, on=["run_id", "run_length"], how="left")
    return pd.concat([by_floor_and_cap(own, metric).assign(run_length=length) for length, own in asked.groupby("run_length")])


def by_floor_and_cap(cells: pd.DataFrame, metric: str) -> pd.DataFrame:
    """`summarised` by floor and cap, with the value of every seed."""
    table = summarised(cells, [FLOOR, "cap"], metric)
    return table.assign(by_seed=[dict(zip(*each, strict=True)) for each in zip(table["of_seeds"], table["each"], strict=True)])


def title_of(metric: str) -> str:
    return "NLL after a run less\nwithout it [nats/token]" if metric == "nll_change" else axis_label(metric)


def by_floor(frames: Frames, *, column: Column, after: Sequence[After], columns: int) -> Drawing:
    """The score on ordinary text by the floor of Lambda, and one panel a metric of `after` after the longest run.

    One line with the cap and one without; a diverged run is a cross at the panel's worse edge.
    """
    tables, longest = on_text_and_after(frames, column, after)
    figure, panels = row_of_panels(len(tables), columns=columns, width=3.0, beside=1.6, height=2.7)
    for axes, (metric, table) in zip(panels, tables.items(), strict=True):
        _panel(axes, table)
        axes.set_title(f"{longest:g} repeated tokens" if metric else "ordinary text")
    data = pd.concat(tables.values(), ignore_index=True)
    diverged = data["without"].str.contains("diverged").any()
    notes = ["A cross at the frame's edge: runs that diverged."] if diverged else []
    return with_legend(data, figure, seeds_note(data, "Bars"), *notes)


def on_text_and_after(frames: Frames, column: Column, after: Sequence[str]) -> tuple[dict[str, pd.DataFrame], float]:
    """Under "" the score on text by floor and cap, `after_runs` of each metric at the longest run, and how long that run is."""
    text = by_floor_and_cap(cells_of(frames, column), column.metric)
    tables = {metric: after_runs(frames, column, metric) for metric in after}
    longest = max(table["run_length"].max() for table in tables.values())
    return {"": text} | {metric: table[table["run_length"] == longest] for metric, table in tables.items()}, longest


def _panel(axes: Axes, table: pd.DataFrame) -> None:
    metric = table["metric"].iloc[0]
    scale_of_metric(axes, metric)
    is_logarithmic = axes.get_yscale() == "log"
    for (cap, line), (color, marker) in zip(table.groupby("cap"), LOOKS, strict=False):
        # An interval that reaches zero can't be shown on a logarithmic axis.
        line = line.assign(low=line["low"].clip(lower=0.1 * line["mean"])) if is_logarithmic else line
        look = {"color": color, "marker": marker, "markersize": 4.5, "label": plain(cap)}
        seed_points(axes, line, FLOOR, look=look)
        for floor in line.loc[line["without"].str.contains("diverged"), FLOOR]:
            axes.plot(floor, 0.96, "x", color=color, markersize=7, markeredgewidth=2, transform=axes.get_xaxis_transform())
    shown = table.loc[np.isfinite(table["mean"]), "mean"]
    if is_logarithmic and shown.nunique() == 1:
        # A logarithmic axis needs two values to find its limits.
        axes.set_ylim(shown.max() / 2, shown.max() * 2)
    axes.set_xscale("log")
    axes.set(xlabel=fact_label(FLOOR), ylabel=title_of(metric))
    if metric in METRICS:
        within_limits(axes, metric)


def by_run_length(frames: Frames, *, column: Column, metric: After) -> Drawing:
    """A metric of the stage `repeats` by the length of the run, one panel with the cap and one without, one line a floor."""
    data = after_runs(frames, column, metric)
    caps = sorted(data["cap"].unique())
    figure, panels = row_of_panels(len(caps), width=3.4, beside=1.8, height=3.3, sharey=True)
    for axes, cap in zip(panels, caps, strict=True):
        for floor, look, line in shaded(data[data["cap"] == cap].sort_values([FLOOR, "run_length"]), FLOOR):
            label = f"{fact_label(FLOOR)} {floor:g}"
            axes.plot(line["run_length"], line["mean"], **look | {"markersize": 3.5, "label": label})
        axes.set_xscale("symlog", linthresh=data.loc[data["run_length"] > 0, "run_length"].min(), linscale=0.5)
        ticks_at(axes, data["run_length"])
        axes.set(xlabel="repeated tokens", title=cap)
        scale_of_metric(axes, metric)
    panels[0].set_ylabel(title_of(metric))
    return with_legend(data, figure, f"Mean over {counted(data['n'].max(), 'seed')}.")


def by_floor_table(frames: Frames, *, column: Column, after: Sequence[After]) -> Table:
    """One row a cap and floor: the score on text, and every metric of `after` after the longest run; what broke is named."""
    tables, longest = on_text_and_after(frames, column, after)
    indexed = [table.set_index(["cap", FLOOR]) for table in tables.values()]
    keys = sorted(indexed[0].index)
    rows = [(Entry(key[0]), Entry(f"{key[1]:g}", key[1]), *(_entry(table.loc[key]) for table in indexed)) for key in keys]
    titles = [title_of(metric).replace("\n", " ") for metric in (column.metric, *after)]
    data = pd.concat([table.assign(of=name or column.metric) for name, table in tables.items()], ignore_index=True)
    header = ("forget cap", fact_label(FLOOR), f"text: {titles[0]}", *(f"{longest:g} repeated: {title}" for title in titles[1:]))
    return Table(data, header, tuple(rows), (*broken(tables), *notes_on(cells_of(frames, column).sort_index())))


def _entry(row: pd.Series) -> Entry:
    if not row["n"]:
        return Entry(row["without"])
    change = row["metric"] == "nll_change"
    entry = mean_entry(row, row["metric"], difference=change, digits=3 if change else None)
    text = "not finite" if np.isinf(row["mean"]) else entry.text
    return Entry(f"{text} (n={row['n']:.0f}; {row['without']})" if row["without"] else text, row["mean"])


def broken(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """One sentence a cap: the best floor on text and those not told apart from it, the diverged runs, and the floors
    whose read-out is wrong after a run.
    """
    text = next(iter(tables.values()))
    said = []
    for cap, own in text.groupby("cap"):
        parts = _best(own)
        diverged = own.loc[own["without"].str.contains("diverged"), FLOOR]
        parts.append(f"diverged at {_floors(diverged)}" if len(diverged) else "no run diverged")
        for metric, (name, is_wrong) in WRONG.items():
            if metric not in tables:
                continue
            after = tables[metric][tables[metric]["cap"] == cap]
            wrong = after.loc[is_wrong(after["mean"]), FLOOR]
            parts.append(f"{name} after the run {f'at {_floors(wrong)}' if len(wrong) else 'nowhere'}")
        said.append(f"{cap[0].upper()}{cap[1:]}: {'; '.join(parts)}.")
    return said


def _best(own: pd.DataFrame) -> list[str]:
    """The best floor, and those that no interval tells apart from it; nothing where no floor has a score."""
    scored = own.dropna(subset="mean")
    if scored.empty:
        return []
    better = METRICS[own["metric"].iloc[0]].better
    best = scored.loc[scored["mean"].idxmin() if better == "lower" else scored["mean"].idxmax()]
    others = scored[scored[FLOOR] != best[FLOOR]]
    # The best is chosen by its score: each two floors count as compared, by their differences at the same seeds.
    pairs, first = math.comb(len(scored), 2), best["by_seed"]
    gaps = [np.array([values[seed] - first[seed] for seed in values if seed in first]) for values in others["by_seed"]]
    near = others.loc[[t_interval(gap, comparisons=pairs).sign == 0 for gap in gaps], FLOOR]
    told = f", not told apart from {_floors(near)}" if len(near) else ""
    return [f"best mean on text at a floor of {best[FLOOR]:g}{told}"]


def _floors(values: pd.Series) -> str:
    return ", ".join(f"{floor:g}" for floor in values)
