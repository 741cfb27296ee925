"""Rows of results: those of a stage, their means over runs with intervals, and their differences to a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from reports.kit.intervals import RESAMPLES, bootstrap_intervals, seed_interval
from reports.kit.parts import NoData
from reports.kit.render import counted

SEEDS_SHOWN = 5
"""So many seeds are printed themselves where their mean has no interval; of more, how many have learnt."""
NO_INTERVAL = (
    "Where there are two seeds, and for a score that a seed has learnt or not, the seeds stand in the place of an interval; of "
    f"more than {SEEDS_SHOWN} is said how many are nearer to 1 than to chance, with the 95 % interval of Wilson."
)
BAND = ["position_low", "position_high"]


def of_stage(frame: pd.DataFrame, *, stage: str, task: str = "", metric: str = "", split: str = "") -> pd.DataFrame:
    """The rows of one stage and, where they are named, task, metric and split; raises NoData where there is none."""
    for column, wanted in (("stage", stage), ("task", task), ("metric", metric), ("split", split)):
        frame = frame[frame[column] == wanted] if wanted else frame
    if frame.empty:
        raise NoData(f"no run{f' of {task}' if task else ''} has {metric or 'results'} (stage {stage})")
    return frame


def slice_names(text: str) -> set[str]:
    """The names in a slice as its row spells it: {"solver", "max_steps"} of "max_steps=5, solver=cg"."""
    return {part.partition("=")[0] for part in text.split(", ")} - {""}


def by_band(rows: pd.DataFrame, *, whole: bool) -> pd.DataFrame:
    """The rows over whole sequences, or those of a range of positions."""
    # Few texts stand in many rows.
    banded = [text for text in rows["slice"].unique() if BAND[0] in slice_names(text)]
    is_banded = rows["slice"].isin(banded)
    return rows[~is_banded if whole else is_banded]


def measured(frame: pd.DataFrame, *, stage: str, metric: str, whole: bool, task: str = "", split: str = "") -> pd.DataFrame:
    """The rows of one stage that have a value, `by_band`; raises NoData where there is none."""
    rows = by_band(of_stage(frame, stage=stage, task=task, metric=metric, split=split), whole=whole).dropna(subset="value")
    if rows.empty:
        over = "whole sequences" if whole else "ranges of positions"
        raise NoData(f"no run{f' of {task}' if task else ''} has {metric} over {over} (stage {stage})")
    return rows


def at_position(table: pd.DataFrame) -> pd.DataFrame:
    """The table with `position`, the geometric centre of its range of positions, counted from 1; as it is where it has none."""
    if BAND[0] not in table:
        return table
    first = table["position_low"] + 1
    return table.assign(position=np.sqrt(first * table["position_high"].clip(lower=first)))


def less(rows: pd.DataFrame, reference: pd.DataFrame, *, on: Sequence[str], done: str) -> pd.DataFrame:
    """The rows with `difference`: the value less that of the reference with the same `on`.

    done: what gives a reference, "trained at 30 fixed steps". Raises NoData where nothing was, or more than one of the same `on`.
    """
    if reference.empty:
        raise NoData(f"no run was {done}, against which the others are compared")
    if (several := reference.duplicated(list(on), keep=False)).any():
        told = ", ".join(reference.loc[several, "arm"].unique()) if "arm" in reference else ids_of(reference[several])
        raise NoData(f"more than one run was {done}, against which the others are compared: {told}")
    paired = rows.merge(reference[[*on, "value"]], on=list(on), suffixes=("", "_reference"))
    return paired.assign(difference=paired["value"] - paired["value_reference"]).drop(columns="value_reference")


def seed_summary(values: np.ndarray, metric: str, *, difference: bool = False) -> dict[str, object]:
    """mean, low, high and half_width (see `seed_interval`), n, and the value of each seed."""
    interval = seed_interval(values, metric, difference=difference)
    each = tuple(float(value) for value in values)
    return interval._asdict() | {"half_width": interval.half_width, "n": len(each), "each": each}


def check_one_arm(table: pd.DataFrame, keys: Sequence[str]) -> None:
    """Raises NoData where rows of several arms have the same value of the keys: two learning rates are no two seeds."""
    if "arm" not in table or "arm" in keys:
        return
    pairs = table[[*keys, "arm"]].drop_duplicates()
    several = pairs[pairs.duplicated(list(keys), keep=False)]
    if len(several):
        raise NoData(f"{', '.join(several['arm'].unique())} would be averaged as if they were seeds: which of them is asked for?")


def over_runs(table: pd.DataFrame, keys: Sequence[str], *, metric: str = "") -> pd.DataFrame:
    """One row a value of the keys: the `seed_summary` of a metric, or of its `difference`, over runs, worst (in size), runs.

    runs: their ids, see `ids_of`. Raises NoData where a value of the keys has runs of several arms.
    """
    check_one_arm(table, keys)
    differs, rows = "difference" in table, []
    value = "difference" if differs else "value"
    # A group of all settings, which are hundreds, takes longer to cut out than to summarise.
    needed = table[[*keys, value, *(name for name in ("run_id",) if name in table and name not in keys)]]
    for key, group in needed.groupby(list(keys), sort=False, dropna=False):
        values = group[value].to_numpy(dtype=float)
        found = seed_summary(values, metric, difference=differs) | {"worst": np.abs(values).max()}
        rows.append(dict(zip(keys, key, strict=True)) | found | {"runs": ids_of(group)})
    return pd.DataFrame(rows)


def ids_of(rows: pd.DataFrame) -> str:
    """The ids of the runs that rows come from, each once; nothing where they do not say."""
    return " ".join(map(str, rows["run_id"].unique())) if "run_id" in rows else ""


def by_metric(tables: Mapping[str, pd.DataFrame], keys: Sequence[str]) -> pd.DataFrame:
    """`over_runs` of every metric's rows, told apart by `metric`; those by BAND `at_position`."""
    parts = [over_runs(rows, keys, metric=metric).assign(metric=metric) for metric, rows in tables.items()]
    return at_position(pd.concat(parts, ignore_index=True))


def position_differences(
    rows: pd.DataFrame, is_reference: pd.Series, keys: Sequence[str], *, on: Sequence[str], done: str
) -> pd.DataFrame:
    """One row a value of the keys and BAND: the mean, by window and over runs, of the value less that of the reference.

    The reference of a row has the same `on`, BAND and window. low and high are a 95 % bootstrap over documents, or over
    windows, with `documents` NaN, where it is not known of which document a window is a part. done: see `less`.
    Raises NoData where a value of the keys has runs of several arms.
    """
    check_one_arm(rows[~is_reference], keys)
    pair = rows.groupby([*on, *BAND, "example"], dropna=False, sort=False).ngroup()
    reference = rows.loc[is_reference, "value"].groupby(pair[is_reference]).mean()
    if reference.empty:
        raise NoData(f"no run was {done}, against which the others are compared")
    told = rows[[*keys, *BAND, "example", *(name for name in ("run_id",) if name in rows and name not in keys)]].assign(
        document=rows["document"].groupby(pair).transform("first").astype(float),
        difference=rows["value"] - pair.map(reference),
    )
    told = told[~is_reference].dropna(subset=[*keys, "difference"])
    if told.empty:
        raise NoData(f"nothing is there to compare with what was {done}")
    number = told.groupby(list(keys)).ngroup().to_numpy()
    order = np.argsort(number, kind="stable")
    told, ends = told.iloc[order], np.flatnonzero(np.diff(number[order], append=-1)) + 1
    bands = told[BAND].drop_duplicates().sort_values(BAND, ignore_index=True)
    band = pd.MultiIndex.from_frame(bands).get_indexer(pd.MultiIndex.from_frame(told[BAND]))
    arrays = (band, *(told[name].to_numpy() for name in ("example", "document", "difference")))
    parts = [_by_window(*each) for each in zip(*(np.split(array, ends[:-1]) for array in arrays), strict=True)]
    table = pd.concat(_intervals(parts), ignore_index=True)
    counts = [len(part.bands) for part in parts]
    named = told[list(keys)].iloc[ends - 1].reset_index(drop=True)
    starts = [0, *ends[:-1]]
    named["runs"] = [ids_of(told.iloc[start:end]) for start, end in zip(starts, ends, strict=True)]
    found = [bands.take(table["band"]), table.drop(columns="band"), named.take(np.repeat(np.arange(len(counts)), counts))]
    return at_position(pd.concat([each.reset_index(drop=True) for each in found], axis=1))


class _Windows(NamedTuple):
    """The numbers of the ranges of positions, the mean difference of every window in each, [window, range], and its document.

    A range or a window that has no difference anywhere is left out; a window of no known document has NaN.
    """

    bands: np.ndarray
    wide: np.ndarray
    document: np.ndarray


def _by_window(band: np.ndarray, example: np.ndarray, document: np.ndarray, difference: np.ndarray) -> _Windows:
    bands, column = np.unique(band, return_inverse=True)
    examples, first, row = np.unique(example, return_index=True, return_inverse=True)
    shape, cell = (len(examples), len(bands)), row * len(bands) + column
    sums, counts = (np.bincount(cell, each, len(examples) * len(bands)) for each in (difference, None))
    with np.errstate(invalid="ignore"):
        return _Windows(bands, (sums / counts).reshape(shape), document[first])


def _intervals(parts: Sequence[_Windows]) -> list[pd.DataFrame]:
    """A table of each part, a row a range: band, mean, low, high, windows, documents. Parts of the same documents share draws."""
    alike: dict[bytes, list[int]] = {}
    for i, part in enumerate(parts):
        alike.setdefault(part.document.tobytes(), []).append(i)
    tables: dict[int, pd.DataFrame] = {}
    for members in alike.values():
        own, document = [parts[i] for i in members], parts[members[0]].document
        wide = np.concatenate([part.wide for part in own], axis=1)
        clusters = None if np.isnan(document).any() else document
        mean, low, high = bootstrap_intervals(wide, resamples=RESAMPLES, seed=0, clusters=clusters)
        has = np.isfinite(wide)
        documents = [np.nan if clusters is None else len(np.unique(clusters[each])) for each in has.T]
        shown = {"mean": mean, "low": low, "high": high, "windows": has.sum(axis=0), "documents": documents}
        table = pd.DataFrame({"band": np.concatenate([part.bands for part in own]), **shown})
        ends = np.cumsum([len(part.bands) for part in own])
        tables |= {i: table.iloc[end - len(parts[i].bands) : end] for i, end in zip(members, ends, strict=True)}
    return [tables[i] for i in range(len(parts))]


def unpaired_note(rows: pd.DataFrame, data: pd.DataFrame, baseline: str) -> list[str]:
    """Which arms of the rows `position_differences` has nothing of, since no baseline is of their size, text and task."""
    arms = rows.loc[(rows["model"] != baseline) & ~rows["arm"].isin(data["arm"]), "arm"].unique()
    return [f"Without a {baseline} of the same size and documents, and so not drawn: {', '.join(arms)}."] if len(arms) else []


def bands_note(data: pd.DataFrame) -> str:
    """What the bands of `position_differences` are."""
    drawn = drawn_from(*data[["windows", "documents"]].max(skipna=False))
    return f"Bands: 95 % paired bootstrap over {drawn}, seeds averaged per window."


def drawn_from(windows: float, documents: float) -> str:
    """What a bootstrap drew: "62 documents (512 windows)", or "512 windows" where the documents are not known."""
    drawn = counted(windows, "window")
    return drawn if np.isnan(documents) else f"{counted(documents, 'document')} ({drawn})"


def seeds_note(table: pd.DataFrame, shown: str) -> str:
    """What the intervals of a figure ("Bars") or table ("±") are."""
    seeds, bare = int(table["n"].max()), table["half_width"].isna() & (table["n"] > 1)
    if seeds == 1:
        return "One seed (n=1)."
    said = [] if bare.all() else [f"{shown}{' is half the' if shown == '±' else ':'} 95 % t interval over {seeds} seeds."]
    return " ".join([*said, NO_INTERVAL] if bare.any() else said)
