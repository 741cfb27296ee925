"""Ways to read a Mesa layer token by token: a fresh start, a warm one, and the recursion of Sherman and Morrison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from reports.lines import banded_line, shades
from reports.panels import metric_panels, position_axis, with_legend
from reports.parts import Cell, Drawing, Frames, NoData, Table
from reports.render import scientific, signed
from reports.solver_settings import setting_label
from reports.study import BAND, by_band, by_metric, cells_by, less, mean_cell, of_stage, over_runs, seeds_note
from suite.metrics import METRICS, axis_label

DECODER = ["decode", "refresh", "max_steps", "tolerance"]
STARTS = {"solver, diagonal start": "fresh start", "solver, previous_token start": "warm start"}
STEPS, TIME = "solver_steps", "relative_time"


def decoder_label(decode: str, refresh: float, max_steps: float, tolerance: float) -> str:
    """A decoder in words: "fresh start, eps 1e-4", "warm start, 2 steps", "Sherman-Morrison, refreshed every 64 tokens"."""
    if decode == "sherman_morrison":
        return f"Sherman-Morrison, {f'refreshed every {refresh:g} tokens' if refresh else 'never refreshed'}"
    return f"{STARTS.get(decode, decode)}, {setting_label('cg', 'diagonal', max_steps, tolerance)}"


def decoder_rows(frames: Frames, *, task: str, metric: str, whole: bool) -> pd.DataFrame:
    """The rows of the stage `decode` with DECODER and `decoder`, over whole sequences or by range of positions."""
    rows = by_band(of_stage(frames.results, stage="decode", task=task, metric=metric), whole=whole)
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
    costs = ("readout_error", "readout_error_worst", STEPS, TIME, "microseconds_per_token")
    nll, *others = (decoder_rows(frames, task=task, metric=metric, whole=True) for metric in ("nll", *costs))
    paired = less(nll, nll[nll["decoder"] == baseline], on=["run_id"], done=f"decoded with {baseline}")
    keys = ["decoder", *DECODER]
    change = over_runs(paired, "difference", keys, metric="nll", difference=True).assign(metric="nll")
    data = pd.concat([change, by_metric(dict(zip(costs, others, strict=True)), keys)], ignore_index=True)
    data = in_reading_order(_asked(data, decoders))
    if data.empty:
        raise NoData(f"no run was decoded with {', '.join(decoders)} (stage decode)")
    rows = [(Cell(decoder), *cells) for decoder, cells in cells_by(data, "decoder", "metric", ("nll", *costs), _cell)]
    titles = [f"{METRICS['nll'].label} less {baseline}", *map(axis_label, costs)]
    return Table(data, ("decoding", *titles), tuple(rows), (*findings(data, baseline), seeds_note(data, "±")))


def _asked(table: pd.DataFrame, decoders: Sequence[str]) -> pd.DataFrame:
    return table[table["decode"].isin(decoders) | table["decoder"].isin(decoders)]


def _cell(row: Mapping[str, object], metric: str) -> Cell:
    if row["decode"] == "sherman_morrison" and metric == STEPS:
        return Cell("none")
    return mean_cell(row, metric, difference=True, digits=5) if metric == "nll" else mean_cell(row, metric)


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
    tables = {metric: _asked(decoder_rows(frames, task=task, metric=metric, whole=False), decoders) for metric in metrics}
    if any(rows.empty for rows in tables.values()):
        raise NoData(f"no run was decoded with {', '.join(decoders)} by position (stage decode)")
    data = in_reading_order(by_metric(tables, ["decoder", *DECODER, *BAND]))
    figure = metric_panels(data, metrics, _lines, width=3.3, beside=2.6, height=3.6)
    return with_legend(data, figure, seeds_note(data, "Bands"))


def _lines(axes: Axes, data: pd.DataFrame) -> None:
    decoders = data["decoder"].unique()
    for decoder, color in zip(decoders, shades(len(decoders)), strict=True):
        dashes, marker = ("-", "o") if decoder.startswith("Sherman") else ("--", "s")
        look = {"color": color, "linestyle": dashes, "marker": marker, "markersize": 3.5, "label": decoder}
        banded_line(axes, data[data["decoder"] == decoder], look=look)
    position_axis(axes)
