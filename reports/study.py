"""What the studies of a trained model share: the rows of their stages, means over runs, and how these are printed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from reports.parts import Cell, Frames, NoData
from reports.render import scientific, signed
from reports.statistics import RESAMPLES, bootstrap_intervals, seed_interval, share_interval
from suite.metrics import METRICS

Keys = str | list[str]
SEEDS_SHOWN = 5
"""So many seeds are printed themselves where their mean has no interval; of more, how many have learnt."""
NO_INTERVAL = (
    "Where there are two seeds, and for a score that a seed has learnt or not, the seeds stand in the place of an interval; of "
    f"more than {SEEDS_SHOWN} is said how many are nearer to 1 than to chance, with the 95 % interval of Wilson."
)
BAND = ["position_low", "position_high"]
TINY = ("solver_residual", "readout_error", "readout_error_worst")
"""Metrics of any size, printed as a power of ten."""


def of_stage(frame: pd.DataFrame, *, stage: str, task: str, metric: str) -> pd.DataFrame:
    """The rows of one stage, task and metric; raises NoData where there is none."""
    rows = frame[(frame["stage"] == stage) & (frame["metric"] == metric) & (frame["task"] == task)]
    if rows.empty:
        raise NoData(f"no run of {task} has {metric} (stage {stage})")
    return rows


def slice_names(text: str) -> set[str]:
    """The names in a slice as its row spells it: {"solver", "max_steps"} of "max_steps=5, solver=cg"."""
    return {part.partition("=")[0] for part in text.split(", ")} - {""}


def by_band(rows: pd.DataFrame, *, whole: bool) -> pd.DataFrame:
    """The rows over whole sequences, or those of a range of positions."""
    banded = rows["slice"].map(lambda text: BAND[0] in slice_names(text))
    return rows[~banded if whole else banded]


def measured(frames: Frames, *, stage: str, task: str, metric: str, whole: bool) -> pd.DataFrame:
    """The rows of one stage that have a value, `by_band`; raises NoData where there is none."""
    rows = by_band(of_stage(frames.results, stage=stage, task=task, metric=metric), whole=whole).dropna(subset="value")
    if rows.empty:
        raise NoData(
            f"no run of {task} has {metric} over {'whole sequences' if whole else 'ranges of positions'} (stage {stage})"
        )
    return rows


def at_position(table: pd.DataFrame) -> pd.DataFrame:
    """The table with `position`, the geometric centre of its range of positions, counted from 1; as it is where it has none."""
    if BAND[0] not in table:
        return table
    first = table["position_low"] + 1
    return table.assign(position=np.sqrt(first * table["position_high"].clip(lower=first)))


def less(rows: pd.DataFrame, reference: pd.DataFrame, *, on: Sequence[str], done: str) -> pd.DataFrame:
    """The rows with `difference`: the value less that of the reference with the same `on`.

    done: what gives a reference, "trained at 30 fixed steps". Raises NoData where nothing was.
    """
    if reference.empty:
        raise NoData(f"no run was {done}, against which the others are compared")
    paired = rows.merge(reference[[*on, "value"]], on=list(on), suffixes=("", "_reference"))
    return paired.assign(difference=paired["value"] - paired["value_reference"]).drop(columns="value_reference")


def seed_summary(values: np.ndarray, metric: str, *, difference: bool = False) -> dict[str, object]:
    """mean, low, high and half_width (see `seed_interval`), n, and the value of each seed."""
    interval = seed_interval(values, metric, difference=difference)
    each = tuple(float(value) for value in values)
    return interval._asdict() | {"half_width": interval.half_width, "n": len(each), "each": each}


def over_runs(
    table: pd.DataFrame, column: str, keys: Sequence[str], *, metric: str = "", difference: bool = False
) -> pd.DataFrame:
    """One row a value of the keys: the `seed_summary` of a metric, or of its difference, over runs, and worst (in size)."""
    rows = []
    for key, group in table.groupby(list(keys), sort=False, dropna=False):
        values = group[column].to_numpy(dtype=float)
        found = seed_summary(values, metric, difference=difference) | {"worst": np.abs(values).max()}
        rows.append(dict(zip(keys, key, strict=True)) | found)
    return pd.DataFrame(rows)


def by_metric(tables: Mapping[str, pd.DataFrame], keys: Sequence[str]) -> pd.DataFrame:
    """`over_runs` of every metric's rows, told apart by `metric`; those by BAND `at_position`."""
    parts = [over_runs(rows, "value", keys, metric=metric).assign(metric=metric) for metric, rows in tables.items()]
    return at_position(pd.concat(parts, ignore_index=True))


def cells_by(
    data: pd.DataFrame, keys: Keys, column: Keys, names: Iterable, cell: Callable[[Mapping, Any], Cell], absent: str = "–"
) -> Iterator[tuple[Any, list[Cell]]]:
    """Every value of the keys, in the order of the data, and for each name in the column cell(row, name), or what is absent."""
    names = list(names)
    for key, own in data.groupby(keys, sort=False):
        found = own.set_index(column).to_dict("index")
        yield key, [cell(found[name], name) if name in found else Cell(absent) for name in names]


def mean_cell(row: Mapping[str, object], metric: str, *, difference: bool = False, digits: int | None = None) -> Cell:
    """A row of `over_runs`: "1.234 ± 0.056", a difference with its sign; TINY ones without interval, "1.2e-5".

    digits: those of the metric where none are given.
    """
    if metric in TINY:
        return Cell(scientific(row["mean"]), row["mean"])
    digits = METRICS[metric].digits if digits is None else digits
    text = signed(row["mean"], digits) if difference else f"{row['mean']:,.{digits}f}"
    return Cell(text + spread(row, digits=digits, difference=difference), row["mean"])


def spread(row: Mapping[str, object], *, digits: int, difference: bool = False, chance: float = 0.0) -> str:
    """What stands behind the mean of a `seed_summary`: " ± 0.056", " [0, 0.1]" where a limit cuts it, or the seeds themselves."""
    low, high = row["mean"] - row["low"], row["high"] - row["mean"]
    if row["half_width"] > 0 and row["n"] > 2:
        if np.isclose(low, high):
            return f" ±\N{NO-BREAK SPACE}{row['half_width']:,.{digits}f}"
        return f" [{row['low']:,.{digits}f}, {row['high']:,.{digits}f}]"
    texts = [signed(value, digits) if difference else f"{value:,.{digits}f}" for value in row["each"]]
    if len(set(texts)) < 2:
        return ""
    if len(texts) <= SEEDS_SHOWN:
        return f" ({'; '.join(texts)})"
    if difference:
        return ""
    learnt = sum(value > (1 + chance) / 2 for value in row["each"])
    low, high = share_interval(learnt, len(texts))
    return f" (learnt by {learnt} of {len(texts)} [{low:.2f}, {high:.2f}])"


def seeds_note(table: pd.DataFrame, shown: str) -> str:
    """What the intervals of a figure ("Bars") or table ("±") are."""
    seeds, bare = int(table["n"].max()), table["half_width"].isna() & (table["n"] > 1)
    if seeds == 1:
        return "One seed (n=1)."
    said = [] if bare.all() else [f"{shown}{' is half the' if shown == '±' else ':'} 95 % t interval over {seeds} seeds."]
    return " ".join([*said, NO_INTERVAL] if bare.any() else said)


def bootstrapped(paired: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """One row a value of the keys and BAND: mean and 95 % bootstrap interval of `difference`, windows, documents, position.

    Documents are drawn; windows are, and documents NaN, where it is not known (NaN) of which `document` each `example` is a part.
    """
    parts = []
    for key, group in paired.groupby(keys):
        wide = group.pivot_table(index="example", columns=BAND, values="difference")
        document = group.groupby("example")["document"].first().reindex(wide.index)
        clusters = document.to_numpy() if document.notna().all() else None
        mean, low, high = bootstrap_intervals(wide.to_numpy(), resamples=RESAMPLES, seed=0, clusters=clusters)
        documents = [np.nan if clusters is None else document[has].nunique() for _, has in wide.notna().items()]
        table = wide.columns.to_frame(index=False).assign(mean=mean, low=low, high=high, windows=wide.notna().sum().to_numpy())
        parts.append(table.assign(documents=documents, **dict(zip(keys, key, strict=True))))
    return at_position(pd.concat(parts, ignore_index=True))


def bands_note(data: pd.DataFrame) -> str:
    """What the bands of `bootstrapped` rows are."""
    drawn = drawn_from(*data[["windows", "documents"]].max(skipna=False))
    return f"Bands: 95 % paired bootstrap over {drawn}, seeds averaged per window."


def drawn_from(windows: float, documents: float) -> str:
    """What a bootstrap drew: "62 documents (512 windows)", or "512 windows" where the documents are not known."""
    return f"{windows:,.0f} windows" if np.isnan(documents) else f"{documents:,.0f} documents ({windows:,.0f} windows)"
