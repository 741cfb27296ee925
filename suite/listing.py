"""What `list` does."""

from __future__ import annotations

import functools
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from conf.groups import find, options
from conf.settings import RequestError, text, unknown
from reports.kit.text import display_width, shown
from suite.metrics import METRICS
from suite.naming import ALIKE, varying
from suite.request.places import PLACES, read_places, split
from suite.results import load_results, load_runs
from suite.scores import main_scores
from suite.store.foreign import say
from suite.store.ids import check_store
from suite.where import column, order, select

KINDS = {
    "models": "model",
    "tasks": "task",
    "experiments": "experiment",
    "reports": "report",
    "evaluations": "eval",
    "protocols": "protocol",
    "recipes": "recipe",
    "sizes": "size",
}
"""What else than runs is listed, each a group of the configuration."""
OWN = {
    "where": "CONDITIONS  (of runs, those that all hold, with = != < <= > >= and |: 'model=gla|mesanet,train.lr<=1e-3')",
    "sort": "KEYS  (of runs, the lowest value or the best score first, -KEY the other way round: accuracy, or task,-train.lr)",
    "columns": "KEYS  (of runs, what is shown besides: parameters,train.lr)",
    "limit": "COUNT  (of runs, how many lines)",
}
"""The keys of `list`, beside those of the places. What they name is a column of `load_runs`, the ending of one, or a metric."""
ORDER = ("task", "size", "model")
LONGEST = 120
"""Letters of a description."""


def list_names(arguments: Sequence[str]) -> str | int:
    """What is there of one kind, a line each. Raises RequestError."""
    names, overrides = split(arguments)
    if not names:
        raise RequestError(f"list takes one of {', '.join((*KINDS, 'runs'))}")
    if len(names) > 1 or names[0] not in (*KINDS, "runs"):
        raise unknown("list", " ".join(names), (*KINDS, "runs"))
    if names[0] == "runs":
        return _runs(overrides)
    if overrides:
        raise RequestError(f"list {names[0]} takes no {overrides[0].partition('=')[0]}, which is for list runs")
    return "\n".join(
        _aligned([options(KINDS[names[0]]), [described(KINDS[names[0]], name) for name in options(KINDS[names[0]])]])
    )


def described(group: str, name: str) -> str:
    """A line about an option of a group: a model's label and paper, a title, or the first sentence of its file's comment."""
    told = {"model": ("label", "paper"), "report": ("title",)}.get(group)
    if told:
        written = _written(group, name)
        return ": ".join(shown(str(written[key])) for key in told if written.get(key))
    comment = re.match(r"(?:# @package.*\n)?((?:#.*\n)*)", find(group, name).read_text(encoding="utf-8"))
    words = " ".join(line.removeprefix("#").strip() for line in (comment[1] if comment else "").splitlines())
    # No sentence ends behind an abbreviation.
    sentence = re.split(r"(?<!App)(?<!Figs)(?<!Fig)(?<!sec)(?<!al)\.(?: |$)", words)[0]
    return shown(textwrap.shorten(sentence, LONGEST, placeholder=" …"))


def _written(group: str, name: str) -> dict[str, Any]:
    """What an option's file says, over what the options of its group say from which it begins."""
    content = yaml.safe_load(find(group, name).read_text(encoding="utf-8")) or {}
    bases = [each for each in content.get("defaults", []) if isinstance(each, str) and each != "_self_"]
    merged: dict[str, Any] = {}
    for base in bases:
        merged |= _written(group, base) if find(group, base).is_file() else {}
    return merged | content


def _runs(overrides: Sequence[str]) -> str | int:
    """The runs of a store that are asked for, a line each with its id first. Raises RequestError."""
    asked, places = _parsed(overrides)
    results = Path(read_places(places)["results"])
    check_store(results)
    try:
        runs = load_runs(results)
    except ValueError as error:
        # An empty store has nothing to list.
        say(error)
        return 0
    rows = functools.cache(lambda: load_results(results))
    runs = select(runs, asked["where"], rows) if "where" in asked else runs
    differing = _differing(runs)
    runs = order(runs, asked["sort"], rows) if "sort" in asked else runs.sort_values([*ORDER, "seed"], kind="stable")
    runs = runs.head(asked.get("limit", len(runs)))
    if runs.empty:
        return ""
    extra = {key: column(runs, key, rows).map(as_typed) for key in asked.get("columns", ())}
    # Whoever has asked for a few has them read alone.
    scores = main_scores(rows() if rows.cache_info().currsize else load_results(results, set(runs["run_id"])))
    columns = {**_names(runs), "differs in": differing.loc[runs.index], **_scores(runs, scores), **extra, "": runs["reason"]}
    header = [[name] for name in columns] if sys.stdout.isatty() else [[] for _ in columns]
    return "\n".join(_aligned([[*title, *values] for title, values in zip(header, columns.values(), strict=True)]))


def _parsed(overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The keys of `list runs` that are typed, and the places. Raises RequestError."""
    asked: dict[str, Any] = {}
    places = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key.startswith("paths."):
            places.append(override)
            continue
        if key not in OWN:
            raise unknown("key", key, (*OWN, *(f"paths.{name}" for name in PLACES)))
        if key in asked:
            raise RequestError(f"{key} is given twice, permitted is once; conditions and keys are separated by commas")
        asked[key] = value
    if "limit" in asked:
        if not re.fullmatch(r"[1-9]\d{0,8}", asked["limit"]):
            raise RequestError(f"limit={asked['limit']} is out of range, permitted are whole numbers from 1")
        asked["limit"] = int(asked["limit"])
    if "columns" in asked:
        asked["columns"] = [name.strip() for name in asked["columns"].split(",")]
    return asked, places


def _names(runs: pd.DataFrame) -> dict[str, pd.Series]:
    named = {name: runs[name].fillna("–") for name in ("run_id", "status", "model", "size", "task")}
    return {**named, "seed": "seed " + runs["seed"].astype(str)}


def _differing(runs: pd.DataFrame) -> pd.Series:
    """Per run the settings, as they are typed, in which it differs from others of its model, size, task and text."""
    alike = runs.groupby(ALIKE, dropna=False, sort=False).ngroup().to_numpy()
    differs = {}
    for name in (name for name in runs if "." in name):
        codes, _ = pd.factorize(runs[name], use_na_sentinel=False)
        several = codes.max(initial=0) + 1
        # The distinct values of a setting in every group of runs that are alike.
        values = np.bincount(np.unique(alike * several + codes) // several)
        if (values > 1).any():
            differs[name] = values[alike] > 1
    told = pd.Series("", index=runs.index)
    for name in varying(runs[[*ALIKE, *differs]]):
        typed = {value: f" {name}={as_typed(value)}" for value in runs[name].unique()}
        told = told.where(~differs[name], told + runs[name].map(typed).fillna(f" {name}=null"))
    return told.str.strip()


def as_typed(value: object) -> str:
    """A value as it is typed in where=: 8 of a column of real numbers, in which others have none."""
    if value is None or value != value:
        return "null"
    return f"{value:.6g}" if isinstance(value, float) else text(value)


def _scores(runs: pd.DataFrame, scores: pd.DataFrame) -> dict[str, pd.Series]:
    """The main score of every run, and what it is."""
    found = scores.reindex(runs["run_id"]).set_index(runs.index)
    value, what = pd.Series("", index=runs.index), pd.Series("", index=runs.index)
    for (metric, split_), own in found.groupby(["metric", "split"]):
        value[own.index] = own["value"].map(f"{{:,.{METRICS[metric].digits}f}}".format)
        what[own.index] = f"{split_} {metric}"
    return {"score": value, "of": what}


def _aligned(columns: Sequence[Sequence[str]]) -> list[str]:
    """The lines of columns of text, each as wide as its widest."""
    padded = []
    for values in columns:
        widths = [display_width(value) for value in values]
        most = max(widths, default=0)
        if most:
            padded.append([value + " " * (most - width) for value, width in zip(values, widths, strict=True)])
    return ["  ".join(line).rstrip() for line in zip(*padded, strict=True)]
