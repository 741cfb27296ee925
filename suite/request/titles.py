"""What the runs of one request are called where people watch them: by what differs between them, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from suite.naming import ALIKE, fact_label, fact_text, varying
from suite.request.identity import flat_settings
from suite.request.schema import Config

SECTIONS = ("model", "size", "task", "train")
PLURALS = {"data": "texts", "backend": "backends", **{name: f"{name}s" for name in ("model", "size", "task", "seed")}}


def titles(configs: Sequence[Config]) -> list[str]:
    """A title for each run of a request: the plain one, and what differs between runs of one model, size, task and text."""
    table, told = _table(configs), [[config.title] for config in configs]
    for name in ("data", "backend", *varying(table)):
        groups = table.groupby([each for each in ALIKE if each != name], dropna=False)[name]
        differs = groups.transform("nunique", dropna=False) > 1
        for words, is_told, value in zip(told, differs, table[name].astype(object), strict=True):
            if is_told:
                words.append(fact_text(name, None if pd.isna(value) else value))
    return [", ".join(words) for words in told]


def axes(configs: Sequence[Config]) -> str:
    """What varies within a request and how often, as in "4 models x 10 learning rates"; commas where not all is combined."""
    table = _table(configs)
    kept: dict[str, int] = {}
    for name in ("model", "size", "task", "data", "backend", *varying(table), "seed"):
        count = table[name].nunique(dropna=False)
        # What follows from another axis is none of its own: the text from the task.
        if count > 1 and not any((table.groupby(each, dropna=False)[name].nunique(dropna=False) == 1).all() for each in kept):
            kept[name] = count
    joint = " x " if math.prod(kept.values()) == len(configs) else ", "
    return joint.join(f"{count} {_plural(name)}" for name, count in kept.items())


def _plural(name: str) -> str:
    label = PLURALS.get(name) or fact_label(name)
    regular = label.replace(" ", "").isalpha() and not label.endswith(("s", "x", "y", "up to", "every"))
    return label if name in PLURALS else f"{label}s" if regular else f"values of {label}"


def _table(configs: Sequence[Config]) -> pd.DataFrame:
    """A row a run: its names, its seed, and those settings that are not the same everywhere."""
    cells = _settings(configs)
    first = cells[0]
    others = [cell for cell in {id(cell): cell for cell in cells}.values() if cell is not first]
    # In the order in which settings are declared: that of a set would differ from process to process, and titles with it.
    differing = [key for key in first if any(key not in cell or cell[key] != first[key] for cell in others)]
    differing += dict.fromkeys(key for cell in others for key in cell if key not in first)
    rows = [
        {
            "model": config.model.name,
            "size": config.size.name,
            "task": config.task.name,
            "data": config.data_name,
            "backend": config.backend,
            "seed": config.seed,
            **{key: cell[key] for key in differing if key in cell},
        }
        for config, cell in zip(configs, cells, strict=True)
    ]
    return pd.DataFrame(rows)


def _settings(configs: Sequence[Config]) -> list[dict[str, Any]]:
    """The settings of each run by their dotted keys. Most sections are shared, and each is laid out once."""
    known: dict[tuple[int, ...], dict[str, Any]] = {}
    sections: dict[tuple[str, int], dict[str, Any]] = {}
    found = []
    for config in configs:
        parts = [(name, id(getattr(config, name))) for name in SECTIONS]
        place = tuple(number for _, number in parts)
        if place not in known:
            if any(part not in sections for part in parts):
                whole = flat_settings(config)
                for part in parts:
                    sections[part] = {key: value for key, value in whole.items() if key.startswith(f"{part[0]}.")}
            known[place] = {key: value for part in parts for key, value in sections[part].items()}
        found.append(known[place])
    return found
