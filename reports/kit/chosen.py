"""The arms of a sweep along one setting, and those that validation prefers among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real

import numpy as np
import pandas as pd

from conf.settings import unknown
from reports.kit.narrow import with_diverged
from reports.kit.parts import Frames, NoData
from reports.kit.protocol import TUNED
from reports.kit.tables import Column, rows_of, scored_cells, summarise
from suite.metrics import METRICS
from suite.naming import fact_label, fact_text, labels, natural, varying
from suite.scores import main_scores


def validated(frames: Frames, column: Column) -> dict[str, float]:
    """By arm the mean score on validation, as a loss: of the column's metric where training wrote it, else the column itself.

    An arm of which a seed diverged comes behind all arms without one, see `with_diverged`.
    """
    on_validation = column.replace({"stage": "train", "split": "validation", "slice": "", "bound": ""})
    cells = scored_cells(frames, on_validation)
    cells = cells if cells["value"].notna().any() else scored_cells(frames, column)
    sign = -1.0 if METRICS[column.metric].better == "higher" else 1.0
    losses = with_diverged(sign * cells["value"], cells["status"], cells["arm"])
    return losses.groupby(cells["arm"]).mean().dropna().to_dict()


def line_labels(cells: pd.DataFrame, *without: str) -> pd.Series:
    """The label of every cell less what some facts say of it."""
    facts = ("model", "size", "data", *varying(cells), "backend")
    return labels(cells, [fact for fact in facts if fact not in without])


def along(frames: Frames, column: Column, fact: str, *, by: str = "", chosen: str = "") -> pd.DataFrame:
    """One row an arm of the column: its `summarise`, the value of the fact, and the `line` that it is a point of.

    line: the label of the arm less what the fact, `by` and `chosen` say. place: where the value stands on the x axis, the
    value itself or, of text, its rank. by: a second fact, whose value each row has. chosen: a fact of whose values each
    point of a line keeps the one with the best score on validation. best: the point of its line that validation prefers.
    A run that has no such fact is left out, unless the fact is text somewhere. Raises RequestError for a fact that no run has.
    """
    for name in filter(None, (fact, by, chosen)):
        if name not in frames.cells:
            raise unknown("fact", name, [each for each in frames.cells if "." in each])
    cells = rows_of(frames.cells, column)
    values = places(cells.drop_duplicates("arm").set_index("arm")[fact])
    if values.empty:
        return pd.DataFrame(columns=["arm", "family", "line", "place", "best", fact])
    told = cells.assign(line=line_labels(cells, fact, by, chosen)).drop_duplicates("arm").set_index("arm")
    summary = summarise(frames, column).merge(values.reset_index(), on="arm")
    summary = summary.join(told[["line", *([by] if by and by != fact else [])]], on="arm")
    point = ["line", "place", *([by] if by else [])]
    summary["selected_by"] = summary["arm"].map(validated(frames, column)).fillna(np.inf)
    if chosen:
        summary = summary.join(told[chosen], on="arm") if chosen not in summary else summary
        summary = summary.sort_values("selected_by", kind="stable").drop_duplicates(point).sort_index()
    least = summary.groupby([name for name in point if name != "place"], dropna=False)["selected_by"].transform("min")
    summary["best"] = np.isfinite(summary["selected_by"]) & (summary["selected_by"] == least)
    return summary.reset_index(drop=True)


def at_preferred(cells: pd.DataFrame, keys: Sequence[str], losses: Mapping[str, float]) -> pd.DataFrame:
    """The cells of one `arm` for every value of the keys, of several that differ in TUNED settings the one of the least loss.

    cells: of `scored_cells`. losses: by arm, see `validated`. chosen: those settings in words, empty where there is nothing to
    choose. Two rates are no two seeds. Raises NoData where runs differ in anything else, and where none of several has a loss.
    """
    parts = []
    for _, own in cells.groupby(list(keys), sort=False, dropna=False):
        scored = own.dropna(subset="value")
        differ = [
            fact for fact in ("size", "task", "data", "backend", *varying(scored)) if scored[fact].nunique(dropna=False) > 1
        ]
        if others := [fact for fact in differ if fact not in TUNED]:
            told = ", ".join(map(fact_label, others))
            raise NoData(f"runs of {own['family'].iloc[0]} differ in {told}: which of them are compared?")
        best = min((arm for arm in own["arm"].unique() if arm in losses), key=lambda arm: losses[arm], default=None)
        if differ and best is None:
            told = ", ".join(map(fact_label, differ))
            raise NoData(f"runs of {own['family'].iloc[0]} differ in {told}, and none has a score on validation to choose by")
        own = own if best is None else own[own["arm"] == best]
        parts.append(own.assign(chosen=", ".join(fact_text(fact, own[fact].iloc[0]) for fact in differ)))
    return pd.concat(parts).sort_index()


def places(values: pd.Series) -> pd.DataFrame:
    """The values of a fact by arm and `place`, a number for each: the value itself where all are numbers, else its rank."""
    known = values.dropna()
    if known.map(lambda value: isinstance(value, Real) and not isinstance(value, bool)).all():
        numbers = pd.to_numeric(known).astype(float)
        return pd.DataFrame({values.name: numbers, "place": numbers})
    texts = values.map(lambda value: "null" if pd.isna(value) else str(value))
    ranks = {text: float(i) for i, text in enumerate(sorted(set(texts), key=natural))}
    return pd.DataFrame({values.name: texts, "place": texts.map(ranks)})


def judged(frames: Frames) -> list[Column]:
    """Per task the score by which most of its runs are judged, see `suite.scores`; a task without scores has none."""
    tasks = frames.cells.drop_duplicates("run_id").set_index("run_id")["task"]
    scores = main_scores(frames.results).join(tasks.rename("task"))
    columns = []
    for task in dict.fromkeys(frames.cells["task"]):
        found = scores[scores["task"] == task].groupby(["metric", "stage", "split"]).size()
        if len(found):
            metric, stage, split = found.idxmax()
            columns.append(Column(task=task, metric=metric, stage=stage, split=split))
    return columns


def at_best(frames: Frames, setting: str) -> tuple[Frames, list[str]]:
    """The frames of those arms alone that have the value of a setting which validation prefers, and what was chosen.

    The score by which a task is `judged` decides. A task without one keeps all its arms.
    """
    columns = {column.task: column for column in judged(frames)}
    cells = frames.cells.assign(line=line_labels(frames.cells, setting))
    kept, chosen = [], []
    for task, of_task in cells.groupby("task", sort=False):
        losses = validated(frames, columns[task]) if task in columns else {}
        for line, own in of_task.groupby("line", sort=False):
            scored = own[own["arm"].isin(losses)]
            best = min(scored["arm"], key=lambda arm: losses[arm], default=None)
            taken = own if best is None else own[own["arm"] == best]
            kept.append(taken)
            if best is not None and own["arm"].nunique() > 1:
                chosen.append(f"{line}, {task}: {fact_text(setting, taken[setting].iloc[0])}")
    taken = pd.concat(kept).sort_index()
    arms = taken.set_index("run_id")["line"]

    def of_chosen(table: pd.DataFrame) -> pd.DataFrame:
        table = table[table["run_id"].isin(arms.index)]
        return table.assign(arm=table["run_id"].map(arms))

    return (
        replace(
            frames,
            cells=taken.assign(arm=taken["line"]).drop(columns="line"),
            results=of_chosen(frames.results),
            runs=of_chosen(frames.runs),
            read_examples=lambda: of_chosen(frames.examples),
            read_curves=lambda: of_chosen(frames.curves),
        ),
        chosen,
    )
