"""Accuracy by length beyond the trained one, of tasks that ask about all tokens so far."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from conf.settings import Count
from reports.kit.arguments import Task
from reports.kit.chosen_runs import SUCCESS, check_one_setting, chosen_runs, line_labels, over_seeds
from reports.kit.medians import SHOWN, accuracy_axis, median_lines, small_multiples
from reports.kit.panels import with_legend
from reports.kit.parts import Drawing, Frames, NoData
from suite.naming import task_label

BY_LENGTH = ("position", "length")
"""Slices of a test split that say how long what was asked about is: a place in the sequence, from 0, or a number of tokens."""


def accuracy_by_length(frames: Frames, *, tasks: Sequence[Task], window: Count) -> Drawing:
    """Accuracy on the test split by the number of tokens so far, a panel a task, with the trained length and chance.

    window: the tokens over which the accuracy of a task that asks at every position is averaged.
    """
    present = [task for task in tasks if (frames.cells["task"] == task).any()]
    chosen = chosen_runs(frames, present or tasks)
    cells = chosen.cells.assign(arm=line_labels(chosen.cells))
    scored = length_scores(frames.results, cells, window=window)
    keys = ["task", "arm", "model", "family", "length"]
    check_one_setting(scored, keys)
    data = over_seeds(scored, keys, SUCCESS)
    present = [task for task in present if (data["task"] == task).any()]
    figure, drawn = small_multiples(len(present))
    for axes, task in zip(drawn, present, strict=True):
        own, trained = data[data["task"] == task], cells.loc[cells["task"] == task, "task.seq_len"].min()
        median_lines(axes, own, "length", marker=0.0)
        axes.axvline(trained, color="black", linewidth=1.0, linestyle="--", label="trained length")
        chance = _chance(frames.results, task, cells["run_id"])
        if chance is not None:
            axes.axhline(chance, color="#666666", linestyle=":", linewidth=1.2, label="chance")
        axes.set(title=f"{task_label(task)}, trained to {trained:,.0f}", xlabel="length [tokens]")
        axes.margins(x=0.01)
        accuracy_axis(axes, own["metric"].iloc[0])
    averaged = f"Where a task asks at every token, a point is the mean over {window} lengths."
    return with_legend(data, figure, *chosen.notes(SHOWN), averaged, better="higher")


def length_scores(results: pd.DataFrame, cells: pd.DataFrame, *, window: int) -> pd.DataFrame:
    """The cells with a row for every `length`, and its mean accuracy as `value`: by windows of positions, or by bands of length.

    Raises NoData where no run is scored by length.
    """
    rows = results[(results["stage"] == "test") & (results["split"] == "test") & results["run_id"].isin(cells["run_id"])]
    parts = []
    for name in BY_LENGTH:
        if name not in rows:
            continue
        own = rows[rows["slice"].str.startswith(f"{name}=") & ~rows["slice"].str.contains(",")]
        own = own[["run_id", "metric", "value", name]].rename(columns={name: "length"})
        if name == "position":
            own["length"] = window * (own["length"] // window) + (window + 1) / 2
        parts.append(own.groupby(["run_id", "metric", "length"], as_index=False)["value"].mean())
    merged = cells.drop(columns=["value", "metric"]).merge(pd.concat(parts), on="run_id") if parts else pd.DataFrame()
    merged = merged[merged["metric"] == "accuracy"] if len(merged) else merged
    if merged.empty:
        raise NoData("no run has its accuracy by position or by length (stage test)")
    return merged.sort_values("length", kind="stable", ignore_index=True)


def _chance(results: pd.DataFrame, task: str, run_ids: pd.Series) -> float | None:
    rows = results[(results["task"] == task) & (results["metric"] == "chance") & (results["stage"] == "test")]
    rows = rows[(rows["slice"] == "") & rows["run_id"].isin(run_ids)]
    return float(rows["value"].mean()) if len(rows) else None
