"""Ways to read a Mesa layer token by token: a fresh start, a warm one, and the recursion of Sherman and Morrison."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes

from reports.parts import Cell, Drawing, Frames, NoData, Table
from reports.render import scientific, signed
from reports.solver import position_axis
from reports.solver_settings import setting_label
from reports.study import BAND, band_center, by_band, mean_cell, of_stage, over_runs, seeds_note
from reports.style import new_figure, shared_legend
from suite.metrics import METRICS, axis_label

DECODER = ["decode", "refresh", "max_steps", "tolerance"]
STARTS = {"solver, diagonal start": "fresh start", "solver, previous_token start": "warm start"}
STEPS, TIME = "solver_steps", "relative_time"


def decoder_label(decode: str, refresh: float, max_steps: float, tolerance: float) -> str:
    """A decoder in words: "fresh start, eps 1e-4", "warm start, 2 steps", "Sherman-Morrison, refreshed every 64 tokens"."""
    if decode == "sherman_morrison":
        return f"Sherman-Morrison, {f'refreshed every {refresh:g} tokens' if refresh else 'never refreshed'}"
    return f"{STARTS.get(decode, decode)}, {setting_label('cg', 'diagonal', max_steps, tolerance)}"


def decoder_rows(frame: pd.DataFrame, *, task: str, metric: str, whole: bool) -> pd.DataFrame:
    """The rows of the stage `decode` with DECODER and `decoder`, over whole sequences or by range of positions."""
    rows = by_band(of_stage(frame, stage="decode", task=task, metric=metric), whole=whole)
    return rows.assign(decoder=[decoder_label(*key) for key in rows[DECODER].itertuples(index=False)])


def in_reading_order(table: pd.DataFrame) -> pd.DataFrame:
    """Solvers before the recursion, tight before loose, fresh before warm; the recursion from often to never refreshed."""
    keys = table.assign(
        recursion=table["decode"] == "sherman_morrison",
        often=table["refresh"].replace(0, np.inf),
        few=-table["max_steps"],
    )
    return table.loc[keys.sort_values(["recursion", "often", "few", "tolerance", "decode"]).index].reset_index(drop=True)


def comparison(frames: Frames, *, task: str, baseline: str, decoders: Sequence[str]) -> Table:
    """One row a way of decoding: its loss less the baseline's, its error against an exact solve, its steps and time.

    decoders: of the `decode` of the rows, e.g. "sherman_morrison", or labels of single ones; baseline: such a label.
    """
    parts = {"nll": _less(frames, task, baseline)}
    for metric in ("readout_error", "readout_error_worst", STEPS, TIME, "microseconds_per_token"):
        rows = decoder_rows(frames.results, task=task, metric=metric, whole=True)
        parts[metric] = over_runs(rows, "value", ["decoder", *DECODER], metric=metric)
    data = pd.concat([part.assign(metric=metric) for metric, part in parts.items()], ignore_index=True)
    data = in_reading_order(_asked(data, decoders))
    if data.empty:
        raise NoData(f"no run was decoded with {', '.join(decoders)} (stage decode)")
    rows = []
    for decoder, own in data.groupby("decoder", sort=False):
        rows.append((Cell(decoder), *(_cell(own[own["metric"] == metric], metric) for metric in parts)))
    titles = [f"{METRICS['nll'].label} less {baseline}", *(axis_label(metric) for metric in parts if metric != "nll")]
    notes = [*findings(data, baseline), seeds_note(data, "±")]
    return Table(data, ("decoding", *titles), tuple(rows), tuple(notes))


def _asked(table: pd.DataFrame, decoders: Sequence[str]) -> pd.DataFrame:
    return table[table["decode"].isin(decoders) | table["decoder"].isin(decoders)]


def _less(frames: Frames, task: str, baseline: str) -> pd.DataFrame:
    """The NLL of every decoder less that of the baseline on the same run."""
    rows = decoder_rows(frames.results, task=task, metric="nll", whole=True)
    at = rows[rows["decoder"] == baseline]
    if at.empty:
        raise NoData(f"no run was decoded with {baseline}, against which the others are compared")
    paired = rows.merge(at[["run_id", "value"]], on="run_id", suffixes=("", "_reference"))
    paired["difference"] = paired["value"] - paired["value_reference"]
    return over_runs(paired, "difference", ["decoder", *DECODER], metric="nll", difference=True)


def _cell(found: pd.DataFrame, metric: str) -> Cell:
    if found.empty:
        return Cell("–")
    row = found.iloc[0]
    if row["decode"] == "sherman_morrison" and metric == STEPS:
        return Cell("none")
    if metric.startswith("readout_error"):
        return Cell(scientific(row["mean"]), row["mean"])
    return mean_cell(row, digits=5 if metric == "nll" else METRICS[metric].digits, difference=metric == "nll")


def findings(data: pd.DataFrame, baseline: str) -> list[str]:
    """One sentence a pair of fresh and warm start, and one for each recursion: steps saved, error and time."""
    mean = data.pivot_table(index="decoder", columns="metric", values="mean", sort=False)
    said = []
    for decoder in mean.index:
        own = mean.loc[decoder]
        if decoder.startswith("warm start") and (fresh := decoder.replace("warm", "fresh")) in mean.index:
            other = mean.loc[fresh]
            said.append(
                f"Warm start at {decoder.removeprefix('warm start, ')}: {signed(other[STEPS] - own[STEPS], 2)} steps saved of "
                f"{other[STEPS]:.2f}, error {scientific(own['readout_error'])} against {scientific(other['readout_error'])}, "
                f"time {own[TIME] / other[TIME]:.2f} of the fresh start's."
            )
        elif decoder.startswith("Sherman"):
            said.append(
                f"{decoder}: error {scientific(own['readout_error'])} (worst {scientific(own['readout_error_worst'])}), "
                f"NLL {signed(own['nll'], 5)} nats to {baseline}, time {own[TIME]:.2f}."
            )
    return said


def by_position(frames: Frames, *, task: str, metrics: Sequence[str], decoders: Sequence[str]) -> Drawing:
    """One panel a metric by position, one line a way of decoding, mean over seeds with 95 % t intervals as bands."""
    parts = []
    for metric in metrics:
        rows = decoder_rows(frames.results, task=task, metric=metric, whole=False)
        rows = _asked(rows, decoders)
        if rows.empty:
            raise NoData(f"no run was decoded with {', '.join(decoders)} by position (stage decode)")
        parts.append(over_runs(rows, "value", ["decoder", *DECODER, *BAND], metric=metric).assign(metric=metric))
    data = in_reading_order(pd.concat(parts, ignore_index=True))
    data["position"] = band_center(data)
    figure = new_figure(2.6 + 3.3 * len(metrics), 3.6)
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        _lines(axes, data[data["metric"] == metric])
        axes.set_ylabel(axis_label(metric))
        if metric.startswith("readout_error"):
            axes.set_yscale("log")
        position_axis(axes)
    shared_legend(figure)
    return Drawing(data, figure, (seeds_note(data, "Bands"),))


def _lines(axes: Axes, data: pd.DataFrame) -> None:
    decoders = list(dict.fromkeys(data["decoder"]))
    colors = colormaps["viridis"](np.linspace(0.0, 0.88, max(len(decoders), 2)))
    for decoder, color in zip(decoders, colors, strict=False):
        line = data[data["decoder"] == decoder].sort_values("position")
        recursion = decoder.startswith("Sherman")
        look = {"linestyle": "-" if recursion else "--", "marker": "o" if recursion else "s", "markersize": 3.5}
        axes.plot(line["position"], line["mean"], color=color, label=decoder, **look)
        low = line["low"].clip(lower=line["mean"] / 10) if axes.get_yscale() == "log" else line["low"]
        axes.fill_between(line["position"], low, line["high"], color=color, alpha=0.13, linewidth=0)
