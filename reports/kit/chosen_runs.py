"""The runs that a benchmark reports: of every arm those at the rates that its protocol prefers, and where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from conf.settings import unknown
from reports.kit.parts import Frames, NoData
from reports.kit.protocol import METRIC, TUNED, protocol_names, protocol_notes, read_protocol
from reports.kit.tables import outcomes
from suite.naming import ALIKE, fact_label, fact_text, labels, natural, task_label, varying

NUMBERED = {"num_pairs": "pairs", "task.num_train": "training examples", "state_bytes": "bytes"}
"""What is counted along an axis, by the name of a slice, setting or fact; any other is called as everywhere."""
SUCCESS = 0.99
"""The accuracy from which a run has learnt its task, where nothing else is asked."""
SETTING = "setting"
"""The place of a run by how its task is set, in words."""
IN_WORDS = ("task", SETTING)
"""Places that are no number, which stand as they come."""


@dataclass(frozen=True)
class Chosen:
    """cells: one row a run that is reported, with `protocol`, its `metric`, and its `value` on the test split, NaN where it
    has none; `arm_number` tells arms apart. asked: the same of all arms.
    """

    cells: pd.DataFrame
    asked: pd.DataFrame

    def notes(self, shown: str) -> tuple[str, ...]:
        """See `protocol_notes`."""
        return tuple(protocol_notes(self.asked, self.cells, shown))


def chosen_runs(frames: Frames, tasks: Sequence[str]) -> Chosen:
    """The runs of every arm at those TUNED settings whose mean over seeds is best on the split that its protocol chooses by.

    They stand in the order of `tasks`, whatever that of the store is.
    Raises NoData where no run of the tasks was asked for, or none has a score on the test split.
    """
    asked = frames.cells[frames.cells["task"].isin(tasks)]
    order = asked["task"].map(list(dict.fromkeys(tasks)).index)
    asked = asked.loc[order.sort_values(kind="stable").index].reset_index(drop=True)
    if asked.empty:
        raise NoData(f"no run of {', '.join(tasks)} was asked for")
    asked = _scored(frames, asked.assign(protocol=protocol_names(asked)))
    if asked["value"].isna().all():
        raise NoData(f"no run of {', '.join(map(task_label, tasks))} has an accuracy on its test split (stage test)")
    own = [fact for fact in varying(asked) if fact not in TUNED]
    asked["arm_number"] = asked.groupby([*ALIKE, "backend", "protocol", *own], dropna=False, sort=False).ngroup()
    tuned = [fact for fact in TUNED if fact in asked]
    candidate = asked.groupby(["arm_number", *tuned], dropna=False, sort=False).ngroup()
    preferred = asked.assign(candidate=candidate).groupby(["arm_number", "candidate"], sort=False)["preferred"].mean()
    ranked = preferred.sort_values(ascending=False, kind="stable", na_position="last").reset_index()
    best = ranked.drop_duplicates("arm_number")["candidate"]
    return Chosen(asked[candidate.isin(best)].reset_index(drop=True), asked)


def _scored(frames: Frames, cells: pd.DataFrame) -> pd.DataFrame:
    """The cells with `metric`, `value` on the test split, and `preferred`, what they are chosen by.

    A task that has no mean over targets is judged by its share of right answers.
    """
    rows = frames.results
    rows = rows[(rows["slice"] == "") & rows["metric"].isin(METRIC.values()) & rows["run_id"].isin(cells["run_id"])]
    place = pd.MultiIndex.from_frame(rows[["metric", "stage", "split", "run_id"]])
    values = pd.Series(rows["value"].to_numpy(dtype=float), place).dropna()
    parts = []
    for name, own in cells.groupby("protocol", sort=False):
        protocol = read_protocol(str(name))
        has = own["run_id"].isin(rows.loc[rows["metric"] == protocol.metric, "run_id"])
        by_task = has.groupby(own["task"]).transform("any")
        own = own.assign(metric=np.where(by_task, protocol.metric, "accuracy"))
        for column, stage, split in (("value", "test", "test"), ("preferred", protocol.stage, protocol.select_on)):
            asked = pd.MultiIndex.from_arrays([own["metric"], [stage] * len(own), [split] * len(own), own["run_id"]])
            own[column] = values.reindex(asked).to_numpy()
        # One of three seeds that is left must not win over three.
        own["preferred"] = own["preferred"].where(own["status"] != "diverged", 0.0)
        parts.append(own)
    return pd.concat(parts).sort_index()


def placed(frames: Frames, cells: pd.DataFrame, *names: str) -> pd.DataFrame:
    """The cells with a column for each of the names: SETTING, a fact or setting of a run, or a slice of its test scores.

    A slice makes a row of every value that it has, which replaces the `value` of the whole split. Raises RequestError for a
    name that none of them has.
    """
    for name in filter(None, names):
        if name == SETTING:
            cells = cells.assign(**{SETTING: setting_labels(cells)})
        elif name not in cells:
            cells = _sliced(frames, cells, name)
    return cells


def _sliced(frames: Frames, cells: pd.DataFrame, name: str) -> pd.DataFrame:
    rows = frames.results
    rows = rows[rows["slice"].str.startswith(f"{name}=") & ~rows["slice"].str.contains(",")]
    rows = rows[(rows["stage"] == "test") & (rows["split"] == "test")]
    if rows.empty:
        slices = {text.partition("=")[0] for text in frames.results["slice"].unique()} - {""}
        raise unknown("fact or slice", name, [*(each for each in cells if "." in each), *sorted(slices)])
    told = cells.drop(columns="value").merge(rows[["run_id", "metric", name, "value"]], on=["run_id", "metric"], how="left")
    # A run without scores has those slices that others have whose task is set alike.
    alike = [fact for fact in told if fact == "task" or (fact.startswith("task.") and told[fact].nunique(dropna=False) > 1)]
    setting = told.groupby(alike, dropna=False).ngroup()
    slices = told.dropna(subset=name)[name].groupby(setting).agg(lambda values: tuple(dict.fromkeys(values)))
    bare = told[name].isna()
    filled = told[bare].assign(**{name: setting[bare].map(slices)}).explode(name)
    return pd.concat([told[~bare], filled.astype({name: float})], ignore_index=True).dropna(subset=name)


def setting_labels(cells: pd.DataFrame) -> pd.Series:
    """How the task of every cell is set, as far as that differs from most others of the task: "vocab size 32", or "baseline"."""
    label = pd.Series("", index=cells.index)
    for _, own in cells.groupby("task", sort=False):
        facts = [name for name in own if name.startswith("task.") and own[name].nunique(dropna=False) > 1]
        settings = own[facts].drop_duplicates()
        for fact in facts:
            values = own[fact].astype(object).where(own[fact].notna(), None)
            counts = values[settings.index].value_counts(dropna=False)
            told = values.unique() if counts.iloc[0] <= len(settings) / 2 else values[values != counts.index[0]].unique()
            words = {value: f", {fact_text(fact, value)}" for value in told}
            label[own.index] += values.map(words).fillna("")
    return label.str.removeprefix(", ").replace("", "baseline")


def line_labels(cells: pd.DataFrame, *without: str) -> pd.Series:
    """The label of every cell: its model and what else tells it apart, less TUNED, how the task is set, what `without` says,
    and what follows from these, such as a head that is as wide as the model, or the steps that a setting takes.
    """
    told = [fact for fact in varying(cells) if fact not in TUNED]
    given = [fact for fact in told if fact in without or fact.startswith("task.")]
    groups = cells.groupby(["model", "task", *given], dropna=False)
    own = [fact for fact in told if fact not in given and groups[fact].nunique(dropna=False).max() > 1]
    return labels(cells, ["model", "size", "data", *own, "backend", *(["protocol"] if "protocol" in cells else [])])


def check_one_setting(cells: pd.DataFrame, keys: Sequence[str]) -> None:
    """Raises NoData where runs that are no seeds of one another, of `chosen_runs`, have the same value of the keys."""
    groups = cells.groupby(list(keys), dropna=False)
    number, mixed = groups.ngroup(), groups["arm_number"].transform("nunique") > 1
    if mixed.any():
        first = cells[number == number[mixed].iloc[0]]
        facts = [name for name in first if "." in name and name not in TUNED and first[name].nunique(dropna=False) > 1]
        told = ", ".join(dict.fromkeys(map(fact_label, varying(first[[*ALIKE, *facts]]) or facts)))
        raise NoData(f"runs of {first['family'].iloc[0]} differ in {told}: which of them are compared?")


def over_seeds(cells: pd.DataFrame, keys: Sequence[str], threshold: float) -> pd.DataFrame:
    """One row a value of the keys: median, q1 and q3 (quartiles, interpolated), n, each, succeeded, counted, share, runs.

    succeeded: how many of the `counted` runs reach the threshold; counted are those with a value and those that diverged.
    without: what became of the others.
    """
    told = cells.assign(
        succeeded=cells["value"] >= threshold,
        diverged=cells["value"].isna() & (cells["status"] == "diverged"),
        number=cells.groupby(list(keys), sort=False, dropna=False).ngroup(),
    )
    groups = told.groupby("number", sort=True)
    values = groups["value"]
    table = groups[[*keys, "metric"]].first().assign(median=values.median(), q1=values.quantile(0.25), q3=values.quantile(0.75))
    table = table.assign(n=values.count(), succeeded=groups["succeeded"].sum(), counted=values.count() + groups["diverged"].sum())
    table["share"] = (table["succeeded"] / table["counted"]).where(table["counted"] > 0)
    without = told[told["value"].isna()].groupby("number")["status"].agg(outcomes)
    known = told.dropna(subset="value").groupby("number")["value"].agg(tuple)
    table["without"] = without.reindex(table.index).fillna("")
    table["each"] = [each if isinstance(each, tuple) else () for each in known.reindex(table.index)]
    table["runs"] = groups["run_id"].agg(lambda ids: " ".join(dict.fromkeys(ids)))
    return table.reset_index(drop=True)


def place_label(name: str) -> str:
    """What an axis shows: "number of pairs", "d_model"."""
    return f"number of {NUMBERED[name]}" if name in NUMBERED else fact_label(name)


def place_text(name: str, value: object) -> str:
    """A value of it: "8 pairs", "d_model 64", a task's name."""
    if name in NUMBERED:
        return f"{value:,g} {NUMBERED[name]}"
    if name == "task":
        return task_label(str(value)).removeprefix("mad ")
    return str(value) if name == SETTING else fact_text(name, value)


def in_order(values: pd.Series) -> list[Any]:
    """The different values as people sort them, those of tasks and settings as they come."""
    different = list(dict.fromkeys(values.dropna()))
    return different if values.name in IN_WORDS else sorted(different, key=natural)
