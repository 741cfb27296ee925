"""Ways to read a Mesa layer token by token: a fresh start, a warm one, and the recursion of Sherman and Morrison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from reports.kit.arguments import Metric, Task
from reports.kit.lines import banded_lines, shaded
from reports.kit.panels import metric_panels, with_legend
from reports.kit.parts import Drawing, Entry, Frames, NoData, Table
from reports.kit.render import scientific, signed
from reports.kit.rows import BAND, by_band, by_metric, less, of_stage, seeds_note
from reports.kit.solver import setting_label
from reports.kit.tables import entries_by, mean_entry
from suite.metrics import METRICS, axis_label

DECODER = ["decode", "refresh", "max_steps", "tolerance"]
STARTS = {"solver, diagonal start": "fresh start", "solver, previous_token start": "warm start"}
STEPS, TIME = "solver_steps", "relative_time"
COSTS = ("readout_error", "readout_error_worst", STEPS, TIME, "microseconds_per_token")


def decoder_label(decode: str, refresh: float, max_steps: float, tolerance: float) -> str:
    """A decoder in words: "fresh start, eps 1e-4", "warm start, 2 steps", "Sherman-Morrison, refreshed every 64 tokens"."""
    if decode == "sherman_morrison":
        return f"Sherman-Morrison, {f'refreshed every {refresh:g} tokens' if refresh else 'never refreshed'}"
    return f"{STARTS.get(decode, decode)}, {setting_label('cg', 'diagonal', max_steps, tolerance)}"


def decoder_rows(frames: Frames, *, task: str, metric: str, whole: bool) -> pd.DataFrame:
    """The rows of the stage `decode` with DECODER and `decoder`, over whole sequences or by range of positions."""
    rows = by_band(of_stage(frames.results, stage="decode", task=task, metric=metric), whole=whole)
    return rows.assign(decoder=[decoder_label(*key) for key in rows[DECODER].itertuples(index=False)])


def asked(table: pd.DataFrame, decoders: Sequence[str]) -> pd.DataFrame:
    """The rows of the decoders: solvers before the recursion, tight before loose, fresh before warm; it from often to never.

    decoders: of the `decode` of the rows, e.g. "sherman_morrison", or labels of single ones. Raises NoData where none was run.
    """
    table = table[table["decode"].isin(decoders) | table["decoder"].isin(decoders)]
    if table.empty:
        raise NoData(f"no run was decoded with {', '.join(decoders)} (stage decode)")
    keys = table.assign(
        recursion=table["decode"] == "sherman_morrison",
        often=table["refresh"].replace(0, np.inf),
        few=-table["max_steps"],
    )
    return table.loc[keys.sort_values(["recursion", "often", "few", "tolerance", "decode"]).index].reset_index(drop=True)


def comparison(frames: Frames, *, task: Task, baseline: str, decoders: Sequence[str]) -> Table:
    """One row a way of decoding: its loss less the baseline's, its error against an exact solve, its steps and time.

    decoders: see `asked`. baseline: the label of one.
    """
    nll = decoder_rows(frames, task=task, metric="nll", whole=True)
    paired = less(nll, nll[nll["decoder"] == baseline], on=["run_id"], done=f"decoded with {baseline}")
    costs = {metric: decoder_rows(frames, task=task, metric=metric, whole=True) for metric in COSTS}
    data = asked(by_metric({"nll": paired, **costs}, ["decoder", *DECODER]), decoders)
    rows = [(Entry(decoder), *entries) for decoder, entries in entries_by(data, "decoder", "metric", ("nll", *COSTS), _entry)]
    titles = [f"{METRICS['nll'].label} less {baseline}", *map(axis_label, COSTS)]
    return Table(data, ("decoding", *titles), tuple(rows), (*findings(data, baseline), seeds_note(data, "±")))


def _entry(row: Mapping[str, object], metric: str) -> Entry:
    if row["decode"] == "sherman_morrison" and metric == STEPS:
        return Entry("none")
    return mean_entry(row, metric, difference=True, digits=5) if metric == "nll" else mean_entry(row, metric)


def findings(data: pd.DataFrame, baseline: str) -> list[str]:
    """One sentence a pair of fresh and warm start, and one for each recursion: steps saved, error and time."""
    mean = data.pivot_table(index="decoder", columns="metric", values="mean", sort=False).to_dict("index")
    said = []
    for decoder, own in mean.items():
        if decoder.startswith("warm start") and (other := mean.get(decoder.replace("warm", "fresh"))):
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


def by_position(frames: Frames, *, task: Task, metrics: Sequence[Metric], decoders: Sequence[str]) -> Drawing:
    """One panel a metric by position, one line a way of decoding, mean over seeds with 95 % t intervals as bands."""
    tables = {metric: decoder_rows(frames, task=task, metric=metric, whole=False) for metric in metrics}
    data = asked(by_metric(tables, ["decoder", *DECODER, *BAND]), decoders)
    figure = metric_panels(data, metrics, _lines, width=3.5, height=3.6)
    return with_legend(data, figure, seeds_note(data, "Bands"))


def _lines(axes: Axes, data: pd.DataFrame) -> None:
    looks = {True: {"linestyle": "-"}, False: {"linestyle": "--", "marker": "s"}}
    lines = ((look | {"markersize": 3.5, "label": name}, name, rows) for name, look, rows in shaded(data, "decoder"))
    banded_lines(axes, ((look | looks[name.startswith("Sherman")], rows) for look, name, rows in lines))
