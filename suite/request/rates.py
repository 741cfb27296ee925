"""Which learning rate a run takes whose model has none for its task and size."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from conf.groups import find, options, search_path

FROM_TABLE = re.compile(r"\$\{oc\.select:model\.lr\.(\w+)\.\$\{size\.name\},(.+)\}")
"""How a recipe in conf/train takes a rate from the model's table, with the task that it asks for and its default."""


@dataclass(frozen=True)
class DefaultRate:
    """The rate that conf/train/TASK.yaml or a recipe takes for a model that has none for this task and size.

    task: the row of the model's table that was asked, which for a recipe of its own rates is no task, such as language_50b.
    """

    model: str
    task: str
    size: str
    rate: str


def default_rate(model: Mapping[str, Any], train: Mapping[str, Any], size: str) -> DefaultRate | None:
    """The default that a cell takes, None where its model has a rate or the request gives one.

    model, train: the sections as they stand before interpolations are resolved.
    """
    asked = FROM_TABLE.fullmatch(str(train["lr"]))
    if asked is None or size in (model.get("lr") or {}).get(asked[1], {}):
        return None
    return DefaultRate(model["name"], asked[1], size, asked[2])


def told(taken: Iterable[DefaultRate]) -> list[str]:
    """A line for each task and size whose models take the default; none for a task of which no model has any rate."""
    models: dict[tuple[str, str, str], dict[str, None]] = {}
    for each in taken:
        if each.task in _with_rates(search_path()):
            models.setdefault((each.task, each.size, each.rate), {})[each.model] = None
    return [
        f"{', '.join(names)} {'has' if len(names) == 1 else 'have'} no rate for {task} at size {size}: "
        f"{rate}, the default of {f'conf/train/{task}.yaml' if task in options('train') else 'the recipe'}"
        for (task, size, rate), names in models.items()
    ]


@functools.cache
def _with_rates(own: tuple[Path, ...]) -> frozenset[str]:
    """The tasks for which some model has a rate. own: the user's own folders, with models of theirs."""
    written = (yaml.safe_load(find("model", name).read_text(encoding="utf-8")) for name in options("model"))
    return frozenset(task for model in written for task in model.get("lr") or {})
