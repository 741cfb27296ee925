"""What a page knows of every run, once: column by column, so that what all runs share is written a single time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from reports.kit.parts import Frames
from reports.kit.rows import slice_names
from suite.metrics import METRICS, axis_label
from suite.naming import varying
from suite.results import MACHINE_COLUMNS, RUN_COLUMNS
from suite.scores import main_scores

MOST_STEPS = 200
"""Points of a curve of training: a curve on a page is not wider."""
MOST_SCORES = 60
MOST_RUNS = 1000
"""Reading the curves of more runs takes longer than drawing a page, which would be as long as all of them."""
PLACES = {"position", "position_low", "position_high", "layer", "head"}
"""Slices of which a run has too many to be read."""
ABOUT = [*(name for name in RUN_COLUMNS if name != "group_id"), "reason", "failed_stage", "failed_step"]
UNSAID = {"arm", "family", "group_id", "code", "command", "when", "studies", "main_score", "main_metric", *ABOUT}


def run_details(frames: Frames) -> dict[str, Any]:
    """The runs of a report for its page: `columns` of them, their scores, curves, and which settings differ between them.

    A page of more than MOST_RUNS runs has neither scores nor curves.
    """
    cells = frames.cells.reset_index(drop=True)
    if len(cells) > MOST_RUNS:
        return {**details(cells, varying(cells)), "scores": {"kinds": [], "of": {}}, "curves": {}}
    numbers = {run_id: i for i, run_id in enumerate(cells["run_id"])}
    return {
        **details(cells, varying(cells)),
        "scores": _scores(frames.results, numbers),
        "curves": _curves(frames.curves, numbers),
    }


def details(runs: pd.DataFrame, differing: Sequence[str]) -> dict[str, Any]:
    """The columns of a frame of runs, grouped as the page shows them, those that differ first.

    A column is {"all": the value of every run}, {"of": values, "at": the number of each run's}, or {"each": values}.
    """
    settings = [name for name in runs if "." in name]
    facts = [name for name in runs if "." not in name and name not in UNSAID and name not in MACHINE_COLUMNS]
    groups = {
        "settings": [*differing, *(name for name in settings if name not in differing)],
        "facts": ["model", "size", "task", "data", "seed", "backend", *facts],
        "environment": [*(name for name in MACHINE_COLUMNS if name in runs), "code"],
    }
    groups = {title: [name for name in names if name in runs] for title, names in groups.items()}
    rest = [name for name in ("arm", "run_id", "model_label", "status", "reason", "command", "when") if name in runs]
    names = dict.fromkeys([*rest, *(name for names in groups.values() for name in names)])
    return {
        "count": len(runs),
        "columns": {name: encoded(runs[name]) for name in names},
        "groups": groups,
        "varying": list(differing),
    }


def encoded(column: pd.Series) -> dict[str, Any]:
    """A column as `details` has it, as short as it can be; what is missing is null."""
    # Missing values of all kinds are one.
    codes, found = pd.factorize(column, use_na_sentinel=True)
    of = [_plain(value) for value in found]
    if (codes < 0).any():
        codes, of = np.where(codes < 0, len(of), codes), [*of, None]
    if len(of) <= 1:
        return {"all": of[0] if of else None}
    if len(of) < 0.5 * len(codes):
        return {"of": of, "at": codes.tolist()}
    return {"each": [of[code] for code in codes]}


def _plain(value: Any) -> Any:
    """A value that JSON has: text, true or false, a finite number, or null."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int | float):
        if not math.isfinite(value):
            return None
        return int(value) if float(value).is_integer() and abs(value) < 1e15 else value
    return None if value is pd.NA or value is pd.NaT else str(value)


def _scores(results: pd.DataFrame, numbers: Mapping[str, int]) -> dict[str, Any]:
    """By run its scores, each [its kind, value], the one that judges it first; a kind is [metric, stage, split, slice]."""
    whole = results[~results["superseded"].astype(bool) & results["value"].notna()]
    whole = whole[np.array([not slice_names(text) & PLACES for text in whole["slice"]], bool)]
    main = main_scores(results)
    first = whole["run_id"].map(main["metric"]).eq(whole["metric"]) & whole["run_id"].map(main["stage"]).eq(whole["stage"])
    first &= whole["run_id"].map(main["split"]).eq(whole["split"]) & whole["slice"].eq("")
    ordered = whole.assign(other=~first, sliced=whole["slice"].ne("")).sort_values(["other", "sliced"], kind="stable")
    kinds: dict[tuple[str, ...], int] = {}
    of: dict[int, list[list[Any]]] = {}
    for row in ordered[["run_id", "metric", "stage", "split", "slice", "value"]].itertuples(index=False, name=None):
        run_id, *kind, value = row
        own = of.setdefault(numbers[run_id], [])
        if len(own) < MOST_SCORES:
            own.append([kinds.setdefault(tuple(kind), len(kinds)), float(f"{value:.6g}")])
    told = [[axis_label(metric), *rest, METRICS[metric].better if metric in METRICS else ""] for metric, *rest in kinds]
    return {"kinds": told, "of": of}


def _curves(curves: pd.DataFrame, numbers: Mapping[str, int]) -> dict[int, list[list[float]]]:
    """By run its training loss: the tokens seen and the losses, of at most MOST_STEPS steps."""
    found: dict[int, list[list[float]]] = {}
    for run_id, curve in curves.groupby("run_id", sort=False):
        step = curve.dropna(subset=["tokens", "loss"])
        step = step.iloc[np.unique(np.linspace(0, len(step) - 1, MOST_STEPS).round().astype(int))] if len(step) else step
        losses = [float(f"{loss:.5g}") for loss in step["loss"]]
        if len(losses) > 1 and np.isfinite(losses).all():
            found[numbers[str(run_id)]] = [[int(tokens) for tokens in step["tokens"]], losses]
    return found


def run_numbers(details_of: Mapping[str, Any]) -> dict[str, int]:
    """The number of every run on a page, by its id."""
    column = details_of["columns"]["run_id"]
    ids: Iterable[str] = column["each"] if "each" in column else [column["all"]] * details_of["count"]
    return {run_id: i for i, run_id in enumerate(ids)}
