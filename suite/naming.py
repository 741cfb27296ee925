"""What runs are called where several stand side by side: by what differs between them, in words. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from suite.metrics import axis_label

ALIKE = ["model", "size", "task", "data"]
TELLING = ("size", "train", "model", "task")
"""The groups of settings in the order in which they name a run: the size of a head before the key size that follows from it."""
UNTOLD = re.compile(r"paths\.|model\.lr\.|(.*\.)?(label|path|paths|include_path|seed)$")
"""Settings that name no run: words about it, paths, and a model's table of default learning rates."""
LATE = re.compile(r"(.*\.)?(version|mlp_dim)$")
"""Settings that name a run only where nothing else does: matching makes the one, and a change of the code the other."""
TABLE = yaml.safe_load(Path(__file__).with_name("naming.yaml").read_text(encoding="utf-8"))


def varying(table: pd.DataFrame) -> list[str]:
    """The settings (columns with dotted names) that differ between runs of one model, size, task and text.

    TELLING orders them, those that are LATE behind all others. A setting of a size or a mixer that repeats an earlier one of
    the size is left out, such as the key size of a mixer where the size of heads is told.
    """
    alike = table.groupby(ALIKE, dropna=False).ngroup().to_numpy()
    # Where there are more pairs of a kind of run and a value than kinds, one of these has several values.
    kinds = len(np.unique(alike))
    differ = []
    for name in (name for name in table if "." in name and not UNTOLD.match(name)):
        value = pd.factorize(table[name])[0]
        # Most settings have one value in all runs.
        if value.size and (value != value[0]).any() and len(np.unique(alike * (value.max() + 2) + value)) > kinds:
            differ.append(name)
    rank = {group: i for i, group in enumerate(TELLING)}
    ordered = sorted(differ, key=lambda name: (bool(LATE.match(name)), rank.get(name.partition(".")[0], len(rank))))
    told: list[str] = []
    for name in ordered:
        sizes = [other for other in told if other.startswith("size.") and name.startswith(("size.", "model."))]
        if not any((table[name].isna() | (table[name] == table[other])).all() for other in sizes):
            told.append(name)
    return told


def labels(cells: pd.DataFrame, facts: Sequence[str]) -> pd.Series:
    """One label a cell: the model's label and, in this order, those facts that tell two cells of a task apart.

    A fact is named in every task that has the same value of it: language and recall of one size share a label.
    """
    return _labelled(cells, facts)[0]


def telling(cells: pd.DataFrame, facts: Sequence[str]) -> list[str]:
    """The facts that `labels` names of any cell, in their order: the axes of a sweep."""
    return _labelled(cells, facts)[1]


def _labelled(cells: pd.DataFrame, facts: Sequence[str]) -> tuple[pd.Series, list[str]]:
    named = []
    label = cells["model_label"].fillna(cells["model"]).astype(str).tolist()
    begun = cells[[name for name in cells if "." in name]].notna().any(axis=1).tolist()
    for fact in facts:
        known = cells[fact].astype(object).where(cells[fact].notna(), None)
        # A setting that is null is named too; a run that was never begun may have nothing that is known.
        told = [fact_text(fact, value) if there or "." not in fact else "" for value, there in zip(known, begun, strict=True)]
        of_task: dict[tuple[str, Any], set[str]] = {}
        for each, task, text in zip(label, cells["task"], told, strict=True):
            of_task.setdefault((each, task), set()).add(text)
        apart = {(each, text) for (each, _), texts in of_task.items() if len(texts) > 1 for text in texts if text}
        label = [f"{each}, {text}" if (each, text) in apart else each for each, text in zip(label, told, strict=True)]
        named += [fact] if apart else []
    return pd.Series(label, index=cells.index, dtype=str), named


def natural(label: object) -> list[tuple[float, str]]:
    """What sorts labels as people do: "window 9" before "window 15"."""
    parts = enumerate(re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", str(label)))
    return [(float(part), "") if i % 2 else (-1.0, part) for i, part in parts]


def task_label(task: str) -> str:
    """A task's name for people: an acronym in capitals, anything else in words."""
    return "MQAR" if task == "mqar" else task.replace("_", " ")


def last_part(name: str) -> str:
    """What a dotted name ends in: "lr" of "train.lr", but "solver" of "model.mixer.solver.name"."""
    return _setting(name).rpartition(".")[2]


def _setting(name: str) -> str:
    return re.sub(r"\.(name|type)$", "", name)


def _mixer(name: str) -> str:
    """Which of several mixers a setting is of, in front of its words: "attention " of "model.attention.window"."""
    found = re.match(r"model\.(?!mixer\.)(\w[\w-]*)\.", _setting(name))
    return f"{found[1]} " if found else ""


def fact_label(name: str) -> str:
    """A fact or setting of a run for axes and headers; one without words has its metric's label, or its own name."""
    return _mixer(name) + (TABLE["words"].get(last_part(name)) or axis_label(last_part(name)))


def fact_text(name: str, value: object) -> str:
    """A fact or setting within a label: "small", "head size 8", "implicit gradient", "no output gate" where it is none."""
    label = fact_label(name)
    if value is None or value is False or value == "none":
        without = TABLE["without"].get(last_part(name))
        return "" if "." not in name else f"{_mixer(name)}{without}" if without else f"no {label}"
    if value is True:
        return label
    if isinstance(value, Real):
        return f"{label} {value:g}"
    if "." not in name:
        return str(value)
    return f"{label} {value}" if str(value).startswith("[") else f"{value} {label}"
