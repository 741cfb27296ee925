"""What the whole of an experiment in conf/experiment holds, as its YAML says, and how long it would take, by the runs of a store.

Nothing is composed, so that a report needs neither torch nor Hydra: settings are those of the grid, then of the experiment, its
protocol, the task's recipe and the task.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import yaml

from conf.groups import find, options
from conf.settings import flat
from reports.kit.parts import Frames
from reports.kit.protocol import TUNED

LENGTH = ("train.steps", "train.batch_size", "task.seq_len")
"""What a training's tokens are the product of."""
SECONDS_IN_HOUR = 3600.0
SHARED_BY = "runs_per_device"
"""The column of a run's environment that says how many runs its device computed at the same time; one where it says nothing."""


def whole_grid(experiment: str) -> pd.DataFrame:
    """One row an arm, task setting and rate of an experiment, of one seed: `task`, `model`, settings by dotted key, `tokens`."""
    written = _read("experiment", experiment)
    protocol = next((each["override /protocol"] for each in _choices(written) if "override /protocol" in each), None)
    above = [written, *([_read("protocol", protocol)] if protocol else [])]
    usual = next((each["override /task"] for each in _choices(*above) if "override /task" in each), None)
    cells = [{"task": usual, **cell} for cell in _cells(written["experiment"]["grid"])]
    known = {task: _defaults(task, above) for task in {cell["task"] for cell in cells}}
    table = pd.DataFrame([{**known[cell["task"]], **cell} for cell in cells])
    return table.assign(tokens=table[list(LENGTH)].astype(float).prod(axis=1))


def model_label(model: str) -> str:
    """What the configuration calls a model; its name where there is none."""
    return str(_read("model", model).get("label", model)) if model in options("model") else model


def _read(group: str, name: str) -> dict[str, Any]:
    return _parsed(find(group, name).read_text(encoding="utf-8"))


@functools.cache
def _parsed(content: str) -> dict[str, Any]:
    """What a file says, which nobody here changes: the grids of a page name the same tasks over and over."""
    return yaml.safe_load(content)


def _choices(*files: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """The choices in the `defaults` of files, the first of which go before."""
    for written in files:
        yield from (each for each in written.get("defaults", ()) if isinstance(each, dict))


def _cells(grid: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of the axes of every entry, but for the seeds."""
    for entry in grid:
        axes = {key: value if isinstance(value, list) else [value] for key, value in entry.items() if key != "seed"}
        yield from (dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))


def _defaults(task: str, above: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings of a task and its training by dotted key, less those that follow from others. above: files, the first wins."""
    layers = [{"train": _read("train", "base")}, {"train": _read("train", task)}, {"task": _read("task", task)}, *reversed(above)]
    found: dict[str, Any] = {}
    for layer in layers:
        chosen = {group: layer[group] for group in ("task", "train") if isinstance(layer.get(group), dict)}
        found |= {key: value for key, value in flat(chosen) if not isinstance(value, list)}
    return {key: value for key, value in found.items() if not str(value).startswith("${")}


def hours(frames: Frames, whole: pd.DataFrame) -> pd.DataFrame:
    """The rows of `whole_grid` with `hours`, and `is_known`, whether such a run is in the frames, whatever its rate and seed.

    A row's hours are the mean of such runs' or, of others, its tokens times the hours a token of the same model on the same
    task, of the same model, or of all models: the first that there is. NaN where no run has its time.
    """
    settings = settings_of(whole)
    times = _timed(frames, whole, settings)
    same = times.groupby([*settings, "model"], dropna=False)["hours"].mean().rename("measured").reset_index()
    found = whole.merge(same, on=[*settings, "model"], how="left")
    measured = found.pop("measured")
    rates = [times.groupby(keys)[["hours", "tokens"]].sum() for keys in (["model", "task"], ["model"])]
    rates = [each["hours"] / each["tokens"] for each in rates]
    by_task = pd.Series(rates[0].reindex(pd.MultiIndex.from_frame(found[["model", "task"]])).to_numpy(), found.index)
    everywhere = times["hours"].sum() / times["tokens"].sum() if len(times) else float("nan")
    rate = by_task.fillna(found["model"].map(rates[1])).fillna(everywhere)
    return found.assign(hours=measured.fillna(rate * found["tokens"]), is_known=measured.notna())


def settings_of(whole: pd.DataFrame) -> list[str]:
    """The columns by which the settings of the whole table are told apart: the task, what varies of it, and the steps."""
    varied = [key for key in whole if key.startswith("task.") and whole.groupby("task")[key].nunique(dropna=False).max() > 1]
    return ["task", *varied, *(key for key in LENGTH if key not in varied)]


def _timed(frames: Frames, whole: pd.DataFrame, settings: Sequence[str]) -> pd.DataFrame:
    """The runs that have the time of their training: `settings`, model, TUNED, hours and tokens, with numbers as in `whole`."""
    runs = frames.runs.reindex(columns=[*dict.fromkeys([*settings, *LENGTH, "model", *TUNED, "run_id"])])
    numbers = {key: pd.to_numeric(runs[key], errors="coerce") for key in [*settings[1:], *LENGTH] if key in whole}
    runs = runs.assign(**numbers, hours=runs["run_id"].map(hours_of_runs(frames)))
    return runs.assign(tokens=runs[list(LENGTH)].prod(axis=1, skipna=False)).dropna(subset=["hours", "tokens"])


def hours_of_runs(frames: Frames) -> pd.Series:
    """The hours of a device that the training of every run took, by run_id; of one that runs shared, each has its part."""
    rows = frames.results
    seconds = rows[(rows["stage"] == "train") & (rows["metric"] == "train_seconds")].set_index("run_id")["value"]
    runs = frames.runs.set_index("run_id")
    shared = pd.to_numeric(runs[SHARED_BY], errors="coerce").fillna(1) if SHARED_BY in runs else pd.Series(1, runs.index)
    return seconds / SECONDS_IN_HOUR / shared.reindex(seconds.index)


def measured_settings(frames: Frames, whole: pd.DataFrame) -> pd.DataFrame:
    """The runs that are in the whole table: its settings, the model and TUNED, once each."""
    keys = [*settings_of(whole), "model", *TUNED]
    runs = frames.runs[frames.runs["status"] == "done"].reindex(columns=keys)
    runs = runs.assign(**{key: pd.to_numeric(runs[key], errors="coerce") for key in keys if key not in ("task", "model")})
    return whole[keys].merge(runs.drop_duplicates(), on=keys)
