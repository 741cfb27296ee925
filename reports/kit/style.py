"""One colour and marker per model in every figure, and the look of the figures: see style.yaml."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from suite.naming import natural


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


def plain(label: str) -> str:
    """A label that matplotlib prints as it stands: no mathematics, not hidden by a leading _, at most 40 characters."""
    label = label if len(label) <= 40 else f"{label[:39]}…"
    label = f" {label[1:]}" if label.startswith("_") else label
    return label.replace("$", r"\$")
