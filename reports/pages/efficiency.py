"""How fast the models are, by length and by batch, and how near to what the device could do (Figs. 2 and 6 of MesaNet)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from conf.settings import Settings
from reports.kit.hover import remember
from reports.kit.lines import lines_of
from reports.kit.panels import row_of_panels, ticks_at, with_legend
from reports.kit.parts import Drawing, Entry, Frames, NoData, Table
from reports.kit.rows import of_stage
from reports.kit.style import arms_in_order, backend_dashes
from reports.kit.tables import outcome_notes, state_notes
from suite.metrics import METRICS, axis_label

ARM = ["arm", "model", "backend"]
WORKLOAD = ["work", "batch", "length", "device"]
# The usual way of training, and what an arm is called that was trained in another.
ACCELERATION = {"compiled": 0, "cuda_graph": "auto", "checkpointed": 0}
ACCELERATED = {
    ("compiled", 1): "compiled",
    ("cuda_graph", "true"): "captured",
    ("cuda_graph", "false"): "eager",
    ("checkpointed", 1): "checkpointed",
}
OBSTACLES = ("out_of_memory", "not_captured")
TIMES = ("latency_ms_low", "latency_ms", "latency_ms_high")
"""The median between the quartiles."""
COSTS = {
    "latency_ms": f"{axis_label('latency_ms')} and quartiles",
    "cold_ms": axis_label("cold_ms"),
    "throughput": axis_label("throughput"),
    "roofline_fraction": "roofline reached [%]",
    "peak_memory_bytes": "peak memory [GiB]",
}
LABELLED = ((10, (1, 2, 5)), (3, (1, 1.5, 2, 3, 5, 7)), (0, (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)))
"""The leading digits that a logarithmic axis labels: the less it spans, the more."""
OTHER = {"length": "batch", "batch": "length"}
AXIS = {"length": "length [tokens]", "batch": "sequences at once"}


def measured(frames: Frames) -> pd.DataFrame:
    """One row an arm, piece of work, batch and length: a column a metric (the mean over runs), and the throughput.

    The same work trained in two ways, in one request, is two arms. A column of OBSTACLES is 1 where that kept the work
    from being timed. Raises NoData where nothing was measured.
    """
    rows = of_stage(frames.results, stage="efficiency")
    # Rows that are older than such a setting have none.
    rows = rows.assign(**{name: rows[name].fillna(usual) if name in rows else usual for name, usual in ACCELERATION.items()})
    wide = rows.pivot_table(index=[*ARM, *WORKLOAD, *ACCELERATION], columns="metric", values="value").reset_index()
    wide = wide.reindex(columns=wide.columns.union([*OBSTACLES, *TIMES, "peak_memory_bytes"], sort=False))
    several = {name: wide.groupby([*ARM, "work"])[name].transform("nunique") > 1 for name in ACCELERATION}
    for (name, value), said in ACCELERATED.items():
        wide["arm"] = wide["arm"].where(~(several[name] & (wide[name] == value)), wide["arm"] + f", {said}")
    tokens = wide["batch"] * wide["length"].where(~wide["work"].str.startswith("decode"), 1)
    return wide.rename_axis(columns=None).assign(throughput=1e3 * tokens / wide["latency_ms"])


def scan(data: pd.DataFrame, *, work: str, along: str) -> tuple[pd.DataFrame, str]:
    """The rows of one piece of work along "length" or "batch", and what is the same for all of them, in words.

    Work at a constant number of tokens has that number in common; prompts have what most of them share.
    """
    rows = data[data["work"] == work]
    if rows.empty:
        raise NoData(f"no run was timed in {work} (stage efficiency)")
    if rows["length"].nunique() > 1 and (rows["batch"] * rows["length"]).nunique() == 1:
        return rows, f"{rows['batch'].iloc[0] * rows['length'].iloc[0]:,.0f} tokens"
    other = OTHER[along]
    held = rows.groupby(other)[along].nunique().sort_values(ascending=False, kind="stable").index[0]
    plural = "" if held == 1 else "s"
    text = f"{held:,.0f} sequence{plural}" if other == "batch" else f"prompts of {held:,.0f} token{plural}"
    return rows[rows[other] == held], text


class Panel(Settings, kw_only=True):
    """What a panel shows of which piece of work, along what."""

    work: str
    along: Literal["length", "batch"]
    shows: Literal["latency_ms", "throughput"]


def lines(frames: Frames, *, panels: Sequence[Panel]) -> Drawing:
    """One panel an entry: what it shows by length or batch, a line an arm.

    Points are medians; bars span the quartiles, where they are wider than a marker.
    """
    whole, parts = measured(frames), []
    figure, drawn = row_of_panels(len(panels), width=3.0, beside=2.0, height=3.7)
    for axes, panel in zip(drawn, panels, strict=True):
        rows, common = scan(whole, work=panel.work, along=panel.along)
        _panel(axes, rows, along=panel.along, shows=panel.shows)
        axes.set_title(f"{panel.work}, {common}")
        parts.append(rows.assign(along=panel.along))
    data = pd.concat(parts, ignore_index=True).drop_duplicates()
    said = [f"Measured on {', '.join(sorted(data['device'].unique()))}. Bars span the quartiles."]
    backends = sorted(data["backend"].unique())
    if len(backends) > 1:
        names = {"-": "solid", "--": "dashed", "-.": "dash-dotted", ":": "dotted"}
        said.append("Lines by backend: " + ", ".join(f"{name} {names[backend_dashes(name)]}" for name in backends) + ".")
    better = [METRICS[panel.shows].better for panel in panels]
    return with_legend(data, figure, *said, *not_timed(data), better=better)


def _panel(axes: Axes, rows: pd.DataFrame, *, along: str, shows: str) -> None:
    several = rows["backend"].nunique() > 1
    for _, look, line in lines_of(rows, along, marker=0.75):
        dashes = {"linestyle": backend_dashes(line["backend"].iloc[0])} if several else {}
        below, above = spread = _spread(line, shows)
        drawn = axes.errorbar(line[along], line[shows], spread, elinewidth=1.1, **look | dashes)
        told = line.assign(mean=line[shows], low=line[shows] - below, high=line[shows] + above)
        remember(drawn.lines[0], told, interval="quartiles")
    axes.set_xscale("log", base=2)
    ticks_at(axes, rows[along], "{:,.0f}")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=next(digits for span, digits in LABELLED if high > span * low)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.9g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel=AXIS[along], ylabel=axis_label(shows))


def _spread(line: pd.DataFrame, shows: str) -> np.ndarray:
    """From the median down and up to the quartiles [2, N], in the unit that is shown."""
    low, median, high, shown = (line[name].to_numpy(float) for name in (*TIMES, shows))
    if shows == "throughput":
        low, high = shown * median / high, shown * median / low
    return np.stack([shown - low, high - shown]).clip(min=0)


def not_timed(data: pd.DataFrame) -> list[str]:
    """One sentence an obstacle: which arms it kept from which work, at which batch and length."""
    said = []
    for name in OBSTACLES:
        rows = data[data[name] == 1].drop_duplicates([*ARM, *WORKLOAD])
        if len(rows):
            found = [f"{row.arm} in {row.work} at {row.batch:,.0f} x {row.length:,.0f}" for row in rows.itertuples()]
            said.append(f"{METRICS[name].label.capitalize()}: {'; '.join(found)}.")
    return said


def costs(frames: Frames, *, works: Sequence[str]) -> Table:
    """One row an arm and piece of work, at the greatest length that was asked for: warm and cold time, memory, roofline."""
    whole = measured(frames)
    data = whole[whole["work"].isin(works)]
    if data.empty:
        raise NoData(f"no run was timed in {', '.join(works)} (stage efficiency)")
    # At the greatest length, the largest batch.
    for name in ("length", "batch"):
        data = data[data[name] == data.groupby("work")[name].transform("max")]
    shown = {name: title for name, title in COSTS.items() if data[name].notna().any()}
    places = {"work": list(works), "arm": [arm for arm, _ in arms_in_order(data)]}
    rows = []
    for row in data.sort_values(["work", "arm"], key=lambda column: column.map(places[column.name].index)).to_dict("records"):
        named = row["work"], row["arm"], row["backend"], f"{row['batch']:,.0f} x {row['length']:,.0f}"
        rows.append((*map(Entry, named), *(_entry(row, name) for name in shown)))
    header = ("work", "model", "backend", "sequences x tokens", *shown.values())
    notes = (*_ceilings(whole), *not_timed(whole), *outcome_notes(frames.cells), *state_notes(frames.runs))
    return Table(whole, header, tuple(rows), notes)


def _entry(row: Mapping[str, object], name: str) -> Entry:
    if name == "latency_ms":
        obstacles = [METRICS[obstacle].label for obstacle in OBSTACLES if row[obstacle] == 1]
        low, median, high = (_three_digits(row[time]) for time in TIMES)
        return Entry(obstacles[0]) if obstacles else Entry(f"{median} [{low}, {high}]", row[name])
    if pd.isna(row[name]):
        return Entry("–")
    value, form = {"roofline_fraction": (100, ".1f"), "peak_memory_bytes": (2**-30, ",.2f")}.get(name, (1, ",.0f"))
    value *= row[name]
    return Entry(_three_digits(value) if name == "cold_ms" else f"{value:{form}}", value)


def _three_digits(value: float) -> str:
    """From a microsecond to minutes, three digits that say something."""
    digits = sum(value < bound for bound in (100, 10, 1))
    return f"{value:,.{digits}f}"


def _ceilings(data: pd.DataFrame) -> list[str]:
    """One sentence a device: what it was seen to do at most, and what the roofline is."""
    said = []
    for device, rows in data.dropna(subset="matmul_flops_per_second").groupby("device"):
        product, copied = rows["matmul_flops_per_second"].max() / 1e12, rows["copy_bytes_per_second"].max() / 1e9
        said.append(
            f"Measured on {device}: a large matrix product {_three_digits(product)} TFLOP/s in the runs' precision, a copy "
            f"{_three_digits(copied)} GB/s. The roofline is the longer of the work's contractions at the one and its fewest "
            "bytes at the other."
        )
    return said
