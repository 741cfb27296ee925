"""One colour and marker per model in every figure, the words for settings, and the look of the figures: see style.yaml."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import pandas as pd
import yaml

from suite.metrics import axis_label


@dataclass(frozen=True)
class Style:
    """How a model is drawn: colour, marker, width of its line in points and dash pattern."""

    color: str
    marker: str
    width: float = 1.3
    dashes: str = "-"


TABLE = yaml.safe_load(Path(__file__).with_name("style.yaml").read_text(encoding="utf-8"))
STYLES = {model: Style(**style) for model, style in TABLE["models"].items()}


def style_of(model: str) -> Style:
    """The style of a model; one that is not listed gets a dashed style that depends on nothing but its name."""
    if model in STYLES:
        return STYLES[model]
    digest = hashlib.sha256(model.encode()).digest()
    color, marker = (known[byte % len(known)] for byte, known in zip(digest, TABLE["spare"].values(), strict=False))
    return Style(color, marker, dashes="--")


def backend_dashes(backend: str) -> str:
    """The dash pattern of a backend, in figures that show more than one."""
    return TABLE["backends"].get(backend, ":")


def line_style(model: str, marker: float = 0.0) -> dict[str, str | float]:
    """The arguments of a line of this model; with its marker, so many times as large as usual, where that is above 0."""
    style = style_of(model)
    look = {"color": style.color, "linewidth": style.width, "linestyle": style.dashes}
    # A star needs more points to look as large as the others.
    return look | ({"marker": style.marker, "markersize": marker * (9.0 if style.marker == "*" else 5.5)} if marker else {})


def arms_in_order(rows: pd.DataFrame, label: str = "arm") -> list[tuple[str, str]]:
    """The (label, model) pairs of a frame: models in the order of STYLES, others by name, then by label as `natural` sorts."""
    rank = {model: i for i, model in enumerate(STYLES)}
    pairs = rows[[label, "model"]].drop_duplicates().itertuples(index=False, name=None)
    return sorted(pairs, key=lambda pair: (rank.get(pair[1], len(rank)), pair[1], natural(pair[0])))


def natural(label: object) -> list[tuple[float, str]]:
    """What sorts labels as people do: "window 9" before "window 15"."""
    parts = enumerate(re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", str(label)))
    return [(float(part), "") if i % 2 else (-1.0, part) for i, part in parts]


def task_label(task: str) -> str:
    """A task's name for people: an acronym in capitals, anything else in words."""
    return "MQAR" if task == "mqar" else task.replace("_", " ")


def last_part(name: str) -> str:
    """What a dotted name ends in: "lr" of "train.lr", but "solver" of "model.mixer.solver.name"."""
    return re.sub(r"\.(name|type)$", "", name).rpartition(".")[2]


def fact_label(name: str) -> str:
    """A fact or setting of a run for axes and headers; one without words has its metric's label, or its own name."""
    return TABLE["words"].get(last_part(name)) or axis_label(last_part(name))


def fact_text(name: str, value: object) -> str:
    """A fact or setting within a label: "small", "head size 8", "implicit gradient"; None is a setting that is null."""
    label = fact_label(name)
    if value is None or value is False:
        return TABLE["without"].get(last_part(name), f"no {label}") if "." in name else ""
    if value is True:
        return label
    if isinstance(value, Real):
        return f"{label} {value:g}"
    if "." not in name:
        return str(value)
    return f"{label} {value}" if str(value).startswith("[") else f"{value} {label}"


def plain(label: str) -> str:
    """A label that matplotlib prints as it stands: no mathematics, not hidden by a leading _, at most 40 characters."""
    label = label if len(label) <= 40 else f"{label[:39]}…"
    label = f" {label[1:]}" if label.startswith("_") else label
    return label.replace("$", r"\$")
