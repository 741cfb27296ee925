"""The page of runs that nobody wrote a report for: its parts follow from what varies between them and from what they measured."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from reports.kit.chosen import judged
from reports.kit.page import Page
from reports.kit.parts import Frames
from reports.kit.rows import BAND, slice_names
from reports.kit.tables import Column
from suite.metrics import METRICS
from suite.naming import fact_label, last_part, task_label, telling, varying

Part = dict[str, Any]
OF_A_RUN = ("parameters", "state_bytes", "flops_per_token")
DRAWN_ELSEWHERE = ("train", "test", "position", "perplexity", "lm_eval", "cost")
"""Stages that other parts of the page show."""
FEW = 4
"""So many values of a second axis have a panel each."""
MOST_AXES = 4
SETTINGS = ("size", "data", "seq_len", "train_steps", "train_tokens", "batch_size", "lr", "backend")


def standard_page(frames: Frames) -> Page:
    """The page for these frames, as a YAML in conf/report says one."""
    return Page.read({"name": "runs", "experiment": "runs", "title": title_of(frames), "parts": list(_named(_parts(frames)))})


def title_of(frames: Frames) -> str:
    """What is compared: "MesaNet and GLA on MQAR, by learning rate"."""
    models = list(dict.fromkeys(frames.cells["model_label"].fillna(frames.cells["model"])))
    tasks = [task_label(task) for task in dict.fromkeys(frames.cells["task"])]
    by = [fact_label(axis) for axis in axes_of(frames.cells)]
    return f"{_listed(models)} on {_listed(tasks)}{f', by {_listed(by)}' if by else ''}"


def axes_of(cells: pd.DataFrame) -> list[str]:
    """The facts and settings that tell the runs of one model apart, but for the seed."""
    return [fact for fact in telling(cells, ("model", "size", "data", *varying(cells), "backend")) if fact != "model"]


def _parts(frames: Frames) -> Iterator[Part]:
    columns, axes = judged(frames), axes_of(frames.cells)
    tuned = next((axis for axis in axes if axis.startswith("train.")), "")
    yield from _tables(frames, columns, tuned)
    for axis in axes[:MOST_AXES]:
        yield from _axis(frames, columns, axis, axes, "" if axis.startswith("train.") else tuned)
    stages = set(frames.results["stage"])
    yield from _by_state(frames, columns, axes)
    if "position" in stages:
        yield from _by_position(frames)
    if "perplexity" in stages:
        yield from _perplexity(frames)
    if "lm_eval" in stages:
        yield from _benchmarks(frames)
    for stage in sorted(stages.difference(DRAWN_ELSEWHERE)):
        # What a kept checkpoint scores is called test@5000.
        name, _, step = stage.partition("@")
        title, asked = f"Evaluation: {name.replace('_', ' ')}", f"eval={name}"
        title, asked = (f"{title} after step {step}", f"{asked} step={step}") if step else (title, asked)
        yield _part(f"stage_{stage}", "tables.stage", title, f"What `{asked}` measured.", stage=stage)
    if len(frames.curves):
        tasks = list(dict.fromkeys(frames.cells["task"]))
        caption = (
            "Training loss by tokens seen, as a running mean over 5 % of the logged steps. The frame leaves out the fall of the "
            "first tenth."
        )
        caption += f" Each model is at its best {fact_label(tuned)}." if tuned else ""
        yield _part("training", "figures.training_curves", "Training", caption, tasks=tasks, smoothing=0.05, chosen=tuned)
    if frames.cells["family"].nunique() > 1 or any(axis.startswith(("size", "model.")) for axis in axes):
        caption = "What every model costs at its trained length, with the ratio to the reference of the comparison in brackets."
        yield _part("matched", "matched.costs", "What was matched, and what is left unequal", caption)
    facts = [*SETTINGS, *(axis for axis in axes if fact_label(axis) not in map(fact_label, SETTINGS))]
    caption = "Per task, the value that all runs share, or the range or list over runs."
    yield _part("settings", "tables.settings", "How the runs were made", caption, facts=facts)


def _named(parts: Iterable[Part]) -> Iterator[Part]:
    """The parts under names that a page takes, each once: stages are called as a store says, and settings may end alike."""
    taken: set[str] = set()
    for part in parts:
        name = first = re.sub(r"[^\w-]", "_", part["name"])
        number = 1
        while name in taken:
            number += 1
            name = f"{first}_{number}"
        taken.add(name)
        yield {**part, "name": name}


def _part(name: str, kind: str, title: str, caption: str, **arguments: Any) -> Part:
    return {"name": name, "type": kind, "title": title, "caption": caption, "arguments": arguments}


def _tables(frames: Frames, columns: Sequence[Column], tuned: str) -> Iterator[Part]:
    """Models side by side: one table where the tasks have arms in common, else one a task."""
    arms = frames.cells.groupby("task")["arm"].agg(set)
    together = len(arms) > 1 and len(set.intersection(*arms)) == len(set.union(*arms))
    groups = [columns] if together or not columns else [[column] for column in columns]
    for group in groups or [[]]:
        task = group[0].task if group else frames.cells["task"].iloc[0]
        wanted = [Column(metric=metric, task=task) for metric in OF_A_RUN]
        # A model that sees a window alone may be far from what others can reach.
        wanted += [each.replace({"bound": "reachable_accuracy"}) if each.metric == "accuracy" else each for each in group]
        wanted.append(Column(metric="tokens_per_second", task=task, stage="train", split="train"))
        floors = {column.metric: list(METRICS[column.metric].floors) for column in group if column.metric in METRICS}
        suffix, on = ("", "") if len(groups) == 1 else (f"_{task}", f": {task_label(task)}")
        arguments = {"columns": [column.plain() for column in wanted], "floors": floors}
        if tuned:
            title = f"Each model at its best {fact_label(tuned)}{on}"
            caption = f"The {fact_label(tuned)} that validation prefers, for every model and task by itself."
            yield _part(f"best{suffix}", "tables.comparison", title, caption, **arguments, chosen=tuned)
        title = f"{'Every run' if tuned else 'Models side by side'}{on}"
        caption = "Every arm that was asked for. The last rows are what is known without training a model."
        yield _part(f"comparison{suffix}", "tables.comparison", title, caption, **arguments)


def _axis(frames: Frames, columns: Sequence[Column], axis: str, axes: Sequence[str], chosen: str) -> Iterator[Part]:
    """The score over one axis: its lines are the models, with a panel for each value of a second axis."""
    of_tasks = [column for column in columns if _values(frames, column.task, axis) > 1]
    others = [other for other in axes if other not in (axis, chosen)]
    several = frames.cells["family"].nunique() > 1
    tasks = [column.task for column in of_tasks]
    by = next((each for each in others if several and all(1 < _values(frames, task, each) <= FEW for task in tasks)), "")
    if of_tasks:
        title = f"The score by {fact_label(axis)}"
        caption = "Every line is a model and what else tells its runs apart."
        arguments = {"columns": [column.plain() for column in of_tasks], "fact": axis, "by": by, "chosen": chosen}
        yield _part(f"by_{last_part(axis)}", "sweep.curves", title, caption, **arguments)


def _values(frames: Frames, task: str, axis: str) -> int:
    """The most values of an axis that one model has on a task."""
    of_task = frames.cells[frames.cells["task"] == task]
    return int(of_task.groupby("family")[axis].nunique(dropna=False).max())


def _by_state(frames: Frames, columns: Sequence[Column], axes: Sequence[str]) -> Iterator[Part]:
    """Accuracy by state, unless what varies leaves every model the state that it has."""
    by_model = frames.runs.groupby(["task", "family"])
    if axes and ("state_bytes" not in frames.runs or (by_model["state_bytes"].nunique() < 2).all()):
        return
    for column in columns:
        runs = frames.runs[frames.runs["task"] == column.task]
        if column.metric == "accuracy" and "state_bytes" in runs and runs["state_bytes"].nunique() > 1:
            place = {"task": column.task, "stage": column.stage, "split": column.split}
            title = f"{task_label(column.task)} against the size of the state"
            caption = "Accuracy against the bytes that a model carries per sequence at the trained length."
            panels = _slice_of(frames, place)
            yield _part(f"{column.task}_by_state", "figures.accuracy_against_state", title, caption, **place, panels=panels)


def _slice_of(frames: Frames, place: dict[str, str]) -> str:
    """The name by which a task slices its accuracy, "num_pairs"; one that there is not where it has no such slice."""
    rows = frames.results[(frames.results["metric"] == "accuracy") & (frames.results["slice"] != "")]
    for key, wanted in place.items():
        rows = rows[rows[key] == wanted]
    named = (slice_names(text) for text in dict.fromkeys(rows["slice"]))
    return next((next(iter(each)) for each in named if len(each) == 1 and not each & {*BAND, "position"}), "whole")


def _by_position(frames: Frames) -> Iterator[Part]:
    rows = frames.results[(frames.results["stage"] == "position") & (frames.results["slice"] != "")]
    for (task, metric, split), own in rows.groupby(["task", "metric", "split"], sort=False):
        if metric in METRICS and METRICS[metric].better and own["arm"].nunique():
            place = {"task": task, "metric": metric, "split": split}
            title = f"{task_label(task)} by position: {METRICS[metric].label}"
            caption = "The score at a position of the sequence, the mean over examples."
            yield _part(f"{task}_{metric}_by_position", "figures.by_position", title, caption, **place)


def _perplexity(frames: Frames) -> Iterator[Part]:
    """The table of texts and lengths; by position the reading that goes furthest, with the state carried where there is one."""
    caption = "Carried: the state goes on from segment to segment. Reset and sliding: windows that begin without a state."
    yield _part("perplexities", "positions.perplexities", "Perplexity by length read", caption)
    rows = frames.results[(frames.results["stage"] == "perplexity") & (frames.results["metric"] == "nll_so_far")]
    if rows.empty:
        return
    # Whole documents have a context of 0.
    furthest = rows.assign(carried=rows["reading"] == "carried", length=rows["context"].replace(0, np.inf))
    reading, context = furthest.sort_values(["carried", "length"])[["reading", "context"]].iloc[-1]
    arguments = {"baseline": "transformer", "reading": reading, "context": int(context)}
    caption = "Documents read to " + (f"{context:,.0f} tokens" if context else "their end")
    if "transformer" in set(rows["model"]) and rows["model"].nunique() > 1:
        title = "The loss by position, less that of the transformer"
        yield _part("perplexity_difference", "positions.difference_by_position", title, f"{caption}.", **arguments)
    shown = f"{caption}: the mean over all tokens up to a position."
    yield _part("perplexity_so_far", "positions.so_far", "The mean loss so far", shown, **arguments)


def _benchmarks(frames: Frames) -> Iterator[Part]:
    models, window = set(frames.cells["model"]), "model.mixer.window"
    sliding = frames.cells.dropna(subset=window) if window in frames.cells else frames.cells.iloc[:0]
    windows = list(dict.fromkeys(sliding.sort_values(window)["model"])) if len(sliding) else []
    arguments = {
        "metrics": ["accuracy_norm", "accuracy", "exact_match", "contains"],
        "windows": windows,
        "full": "transformer",
    }
    caption = "Scores through lm-eval with the standard error over examples; a dotted line is chance."
    yield _part("benchmarks", "benchmarks.scores", "Benchmarks", caption, **arguments)
    if len(windows) > 1 and "transformer" in models:
        caption = "Comparisons are settled by 95 % intervals over examples and seeds: all for global, one against it for local."
        yield _part("split", "benchmarks.verdicts", "Global and local benchmarks", caption, **arguments)


def _listed(words: Sequence[str]) -> str:
    """a, b and c; of more than four how many more."""
    words = [*words[:3], f"{len(words) - 3} more"] if len(words) > 4 else list(words)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
