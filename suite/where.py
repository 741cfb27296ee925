"""Which runs are meant, and in which order: where='model=gla|mesanet,train.lr<=1e-3,status=done' and sort=-accuracy.

Conditions are separated by commas, and all of them have to hold; `|` separates values of which one has to. A value in quotes
is text, whatever is in it. A number equals every spelling of it, null is a value that a run does not have, and `!=` holds
wherever `=` does not. Imports no torch.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd

from conf.settings import RequestError, near, text
from suite.metrics import METRICS
from suite.naming import natural
from suite.scores import JUDGED_ON

Results = Callable[[], pd.DataFrame]
"""Reads the rows of `suite.results.load_results`, which only metrics need."""
COMPARED: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
OPERATORS = ("=", "!=", *COMPARED)
MOST_SHOWN = 10
CONDITION = re.compile(r"\s*([^=!<>]*?)\s*([=!<>]+)\s*(.*?)\s*", re.DOTALL)
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
QUOTED = re.compile(r"""(["'])(.*)\1""", re.DOTALL)
# Quotes, and brackets that hold no others, protect what is in them: train.betas=[0.9,0.98].
PIECES = {mark: re.compile(rf"""(?:"[^"]*"|'[^']*'|\[[^][]*\]|\{{[^}}{{]*\}}|[^{mark}])+""", re.DOTALL) for mark in (",", "|")}


def select(runs: pd.DataFrame, where: str, results: Results) -> pd.DataFrame:
    """The runs for which every condition holds. Raises RequestError.

    runs: of `suite.results.load_runs`. A condition's key is a column of them, or the ending of a single one, or a metric.
    """
    kept = pd.Series(True, index=runs.index)
    for condition in _pieces(where, ","):
        kept &= _holds(runs, condition, results)
    return runs[kept]


def order(runs: pd.DataFrame, sort: str, results: Results) -> pd.DataFrame:
    """The runs by a key, or by several that are separated by commas, the lowest value first and the highest for "-KEY".

    A metric with a direction has its best value first, and for "-KEY" the worst. What has no value stands last.
    Raises RequestError.
    """
    for key in reversed(_pieces(sort, ",")):
        name = key.strip().removeprefix("-")
        found = column(runs, name, results)
        is_metric = found.name not in runs
        falls = key.strip().startswith("-") != (is_metric and found.name in METRICS and METRICS[found.name].better == "higher")
        known = found[found.notna()]
        ranks = known if _is_number(found) else known.map(natural)
        ordered = ranks.sort_values(ascending=not falls, kind="stable").index
        runs = runs.loc[[*ordered, *found.index[found.isna()]]]
    return runs


def column(runs: pd.DataFrame, key: str, results: Results) -> pd.Series:
    """The values of a key, one a run, under the whole name of what the key means. Raises RequestError for one that means nothing.

    An exact name is preferred to the ending of a dotted one ("d_model" for size.d_model). A metric's value is that over a
    whole split, of the first of `suite.scores.JUDGED_ON` that a run has or else of its first stage with one.
    """
    if key in runs:
        return runs[key]
    if key not in METRICS:
        endings = sorted(name for name in runs if name.endswith(f".{key}")) if key else []
        if len(endings) == 1:
            return runs[endings[0]]
        if endings:
            raise RequestError(f"key {key!r} is the ending of several, permitted are {_few(endings)}")
    values = _metric(results(), key)
    if key not in METRICS and values.empty:
        known = [*runs, *(name.rpartition(".")[2] for name in runs), *METRICS]
        raise RequestError(
            f"unknown key {key!r}{near(key, known)} (permitted are columns of `list runs`, such as model, seed, status and "
            f"train.lr, and metrics, such as accuracy)"
        )
    return runs["run_id"].map(values).rename(key)


def _metric(rows: pd.DataFrame, metric: str) -> pd.Series:
    """The value of a metric by run_id, for the runs that have one."""
    whole = rows[(rows["metric"] == metric) & (rows["slice"] == "") & ~rows["superseded"].astype(bool) & rows["value"].notna()]
    places = {place: i for i, place in enumerate(JUDGED_ON)}
    place = [places.get(pair, len(places)) for pair in zip(whole["stage"], whole["split"], strict=True)]
    first = whole.assign(place=place).sort_values("place", kind="stable").drop_duplicates("run_id")
    return first.set_index("run_id")["value"]


def _holds(runs: pd.DataFrame, condition: str, results: Results) -> pd.Series:
    """Per run, whether a condition holds."""
    parts = CONDITION.fullmatch(condition)
    if parts is None or parts[2] not in OPERATORS:
        raise RequestError(f"condition {condition.strip()!r} has none of the operators {' '.join(OPERATORS)}, as in model=gla")
    key, sign, typed = parts.groups()
    values = column(runs, key, results)
    codes, distinct = pd.factorize(values)
    if sign in COMPARED:
        limit = _limit(condition.strip(), typed, values)
        return values.map(lambda value: COMPARED[sign](value, limit), na_action="ignore").eq(True)
    alternatives, there = _pieces(typed, "|") or [""], set(codes)
    numbered = [(-1, None), *enumerate(list(distinct))]
    equal = [{i for i, value in numbered if _equals(value, each.strip())} for each in alternatives]
    for each, found in zip(alternatives, equal, strict=True):
        # What no run has to be different from may be absent: status!=diverged.
        if sign == "=" and not found & there:
            known = sorted({*map(text, distinct), *(["null"] if values.isna().any() else [])}, key=natural)
            raise RequestError(f"no run has {values.name}={each.strip()}, there are {_few(known)}")
    return pd.Series(codes, values.index).isin(set.union(*equal)) == (sign == "=")


def _limit(condition: str, typed: str, values: pd.Series) -> float:
    """The number with which values are compared. Raises RequestError where it, or a value, is none."""
    if not _is_number(values) and values.notna().any():
        raise RequestError(f"condition {condition!r}: {values.name} is no number, permitted are = and !=")
    if not NUMBER.fullmatch(typed):
        raise RequestError(f"condition {condition!r}: {typed!r} is no number, permitted are numbers such as 8 and 1e-3")
    return float(typed)


def _is_number(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def _equals(value: Any, typed: str) -> bool:
    """Whether a value is what was typed. value: None for one that is missing."""
    if quoted := QUOTED.fullmatch(typed):
        return isinstance(value, str) and value == quoted[2]
    if value is None or isinstance(value, str):
        return (typed == "null") if value is None else value == typed
    if pd.api.types.is_bool(value):
        return text(bool(value)) == typed.lower()
    return NUMBER.fullmatch(typed) is not None and float(typed) == value


def _pieces(whole: str, mark: str) -> list[str]:
    """What stands between the marks that neither quotes nor brackets protect."""
    found = PIECES[mark].findall(whole)
    if mark.join(found) != whole:
        raise RequestError(f"{whole!r} has nothing before, behind or between some {mark!r}")
    return found


def _few(names: Iterable[str]) -> str:
    shown = list(names)
    more = len(shown) - MOST_SHOWN
    return ", ".join(shown[:MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")
