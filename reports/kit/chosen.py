"""The arms of a sweep that validation prefers, among those that one setting alone tells apart."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from reports.kit.parts import Frames
from reports.kit.tables import Column, scored_cells
from suite.metrics import METRICS
from suite.naming import fact_text, labels, varying
from suite.scores import main_scores


def validated(frames: Frames, column: Column) -> dict[str, float]:
    """By arm the mean score on validation, as a loss: of the column's metric where training wrote it, else the column itself."""
    on_validation = column.replace({"stage": "train", "split": "validation", "slice": "", "bound": ""})
    scored = scored_cells(frames, on_validation).dropna(subset="value")
    scored = scored if len(scored) else scored_cells(frames, column).dropna(subset="value")
    sign = -1.0 if METRICS[column.metric].better == "higher" else 1.0
    return (sign * scored.groupby("arm")["value"].mean()).to_dict()


def line_labels(cells: pd.DataFrame, *without: str) -> pd.Series:
    """The label of every cell less what some facts say of it."""
    facts = ("model", "size", "data", *varying(cells), "backend")
    return labels(cells, [fact for fact in facts if fact not in without])


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
