"""Some of the runs of a store that holds all kinds: those of one size and length of training, one arm a model."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from reports.kit.parts import Frames, NoData
from reports.kit.render import counted
from suite.metrics import METRICS
from suite.naming import labels, task_label, varying

CELL = ["size", "data", "train_tokens"]
"""What tells apart the cells of a study of language models."""
UNITS = ((10**9, "B"), (10**6, "M"), (10**3, "k"), (1, ""))


@dataclass(frozen=True)
class Cell:
    """The runs of one size, text and number of tokens. title: such as "400M, 15B tokens". place: tokens and then parameters."""

    title: str
    run_ids: tuple[str, ...]
    place: tuple[float, float]


def of_runs(frames: Frames, run_ids: Collection[str], *, facts: Sequence[str] = ()) -> Frames:
    """The frames of these runs alone, their arms named by what tells them apart from one another.

    Examples and curves are read from the files of these runs and no others. facts: what the results repeat of the runs, where
    they do not say it anyway.
    """
    kept = set(run_ids)
    cells = frames.cells[frames.cells["run_id"].isin(kept)]
    names = labels(cells, ("model", "size", "data", *varying(cells), "backend", "group_id"))
    arms = dict(zip(cells["run_id"], names, strict=True))

    def own(table: pd.DataFrame) -> pd.DataFrame:
        table = table[table["run_id"].isin(kept)]
        return table.assign(arm=table["run_id"].map(arms))

    runs, results = own(frames.runs), own(frames.results)
    told = [fact for fact in facts if fact not in results]
    return replace(
        frames,
        cells=cells.assign(arm=names),
        results=results.merge(runs[["run_id", *told]], on="run_id") if told else results,
        runs=runs,
        read_examples=lambda: own(frames.read_examples(kept)),
        read_curves=lambda: own(frames.read_curves(kept)),
    )


def having(frames: Frames, *, stage: str, task: str = "", metric: str = "", models: Sequence[str] = ()) -> pd.DataFrame:
    """The runs that have rows of a stage. Raises NoData where there is none."""
    rows = frames.results
    if len(rows):
        # The ids alone: a stage of thousands of runs is many rows of many columns.
        asked = rows["stage"] == stage
        ids = rows.loc[asked & (rows["metric"] == metric) if metric else asked, "run_id"].unique()
    runs = frames.runs[frames.runs["run_id"].isin(ids)] if len(rows) else frames.runs.iloc[:0]
    runs = runs[runs["task"] == task] if task else runs
    runs = runs[runs["model"].isin(models)] if models else runs
    if runs.empty:
        whose = f" of {task_label(task)}" if task else ""
        raise NoData(f"the store holds no run{whose} with {METRICS[metric].label if metric else 'results'} (stage {stage})")
    return runs


def cells_of(runs: pd.DataFrame) -> Iterator[Cell]:
    """The runs by CELL, the most FLOPs of training first: parameters times tokens."""
    runs = runs.reindex(columns=[*runs.columns, *(name for name in CELL if name not in runs)])
    several = runs["data"].nunique() > 1
    groups = runs.assign(work=_work(runs)).groupby(CELL, dropna=False)
    for (size, data, tokens), own in sorted(groups, key=lambda group: -group[1]["work"].max()):
        told = [size_title(size), *([str(data)] if several else []), f"{amount(tokens)} tokens"]
        known = np.nan_to_num([tokens, pd.to_numeric(own.get("parameters", pd.Series(dtype=float))).max()])
        yield Cell(", ".join(told), tuple(own["run_id"]), (known[0], known[1]))


def size_title(size: str) -> str:
    """The name of a size as the paper writes it: "400M", "1B"; one in words as it stands."""
    return size.upper() if re.fullmatch(r"\d+[mb]", size) else size


def amount(number: float) -> str:
    """A number of tokens in few letters: "15B", "2.46M", "512"."""
    if np.isnan(number):
        return "unknown"
    # What is rounded up to a unit has that unit.
    size, unit = next((each for each in UNITS if number >= 0.9995 * each[0]), UNITS[-1])
    return f"{number / size:.3g}{unit}"


def one_arm_a_model(runs: pd.DataFrame, losses: pd.Series, *, by: str, apart: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """The ids of the runs of one way to set each model, that of the least mean loss, and a note on those of several ways.

    losses: by run_id, see `validation_losses`; behind come ways with a run that diverged, see `with_diverged`, those without a
    loss, and those of fewer seeds. by: what the loss is, in words. apart: settings of which a model may show several values.
    """
    keys = ["model", *(name for name in apart if name in runs)]
    loss = runs["run_id"].map(losses)
    loss = with_diverged(loss, runs["status"], runs["group_id"]) if "status" in runs else loss
    ways = runs.assign(loss=loss).groupby([*keys, "group_id"], dropna=False, as_index=False)
    found = ways.agg(loss=("loss", "mean"), seeds=("run_id", "size"))
    ranked = found.sort_values(["loss", "seeds"], ascending=[True, False], na_position="last", kind="stable")
    best = ranked.drop_duplicates(keys)["group_id"]
    tried = found.assign(ways=found.groupby(keys, dropna=False)["loss"].transform("size")).query("ways > 1")
    names = dict(zip(runs["model"], runs["model_label"].fillna(runs["model"]), strict=True))
    several = {f"{names[row.model]} ({counted(row.ways, 'setting')})": None for row in tried.itertuples()}
    notes = [f"Models of several settings are shown at that of the best {by}: {', '.join(several)}."] if several else []
    return list(runs.loc[runs["group_id"].isin(best), "run_id"]), notes


def with_diverged(losses: pd.Series, status: pd.Series, arms: pd.Series) -> pd.Series:
    """The losses of runs with a number for those that diverged, so large that the mean of an arm with one is above all losses.

    Two of three seeds that are left must not win over three. An arm that has no loss has none: its runs, and all others that
    did not diverge, stay NaN.
    """
    left = losses.notna().groupby(arms).transform("any")
    worst = losses.max() + arms.value_counts().max() * (losses.max() - losses.min() + 1.0)
    return losses.mask(losses.isna() & (status == "diverged") & left, worst)


@functools.lru_cache(maxsize=2)
def validation_losses(frames: Frames, metric: str) -> pd.Series:
    """By run_id the metric on the validation split after training, as a loss: the lower, the better. Figures share it."""
    rows = frames.results
    rows = rows[(rows["stage"] == "train") & (rows["split"] == "validation") & (rows["metric"] == metric) & (rows["slice"] == "")]
    sign = -1.0 if METRICS[metric].better == "higher" else 1.0
    return sign * rows.drop_duplicates("run_id").set_index("run_id")["value"]


def task_setting(cells: pd.DataFrame) -> pd.Series:
    """How the task of every cell is set and on which text, as far as that varies: where it differs, examples of one number do."""
    names = [name for name in cells if name == "data" or name.startswith("task.")]
    differ = [name for name in names if cells[name].nunique(dropna=False) > 1]
    return cells[differ].map(str).agg(", ".join, axis=1) if differ else pd.Series("", index=cells.index)


def of_one_setting(runs: pd.DataFrame, without: Sequence[str] = ()) -> pd.DataFrame:
    """The runs of one size whose task is set in one way but for `without`: the way of the most models, then of the most FLOPs.

    FLOPs: parameters times tokens of training.
    """
    facts = [name for name in runs if name == "size" or (name.startswith("task.") and name not in without)]
    facts = [name for name in facts if runs[name].nunique(dropna=False) > 1]
    if not facts:
        return runs
    groups = [own for _, own in runs.assign(work=_work(runs)).groupby(facts, dropna=False)]
    best = max(groups, key=lambda own: (own["model"].nunique(), own["work"].max()))
    return runs[runs["run_id"].isin(best["run_id"])]


def _work(runs: pd.DataFrame) -> pd.Series:
    """Parameters times tokens of training; 0 where one is not known."""
    known = runs.reindex(columns=["parameters", "train_tokens"])
    # Whole numbers of this size would overflow.
    return known.astype(float).prod(axis=1, skipna=False).fillna(0.0)
