"""One colour and marker per model in every figure, and the look of the figures.

Colours are Paul Tol's muted scheme, made to be told apart by colour-blind readers, with the vermilion and orange of
Okabe & Ito for the two models with a Mesa layer. Softmax attention is grey: the wider its window, the darker.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from numbers import Real

import pandas as pd

from suite.metrics import axis_label


@dataclass(frozen=True)
class Style:
    """How a model is drawn: colour, marker, width of its line in points and dash pattern."""

    color: str
    marker: str
    width: float = 1.3
    dashes: str = "-"


STYLES = {
    "transformer": Style("#000000", "o", 1.8),
    "swa4": Style("#bdbdbd", "p", 1.1),
    "swa16": Style("#a0a0a0", "d", 1.1),
    "swa64": Style("#838383", "h", 1.1),
    "swa256": Style("#666666", "8", 1.1),
    "swa1024": Style("#4a4a4a", "H", 1.1),
    "linear_attention": Style("#999933", "v"),
    "gla": Style("#44aa99", "<"),
    "gla_original": Style("#99d5ca", r"$\triangleleft$"),
    "mamba2": Style("#117733", ">"),
    "mamba2_original": Style("#70b586", r"$\triangleright$"),
    "mlstm": Style("#aa4499", "P"),
    "deltanet": Style("#88ccee", "s"),
    "gated_deltanet": Style("#332288", "D"),
    "longhorn": Style("#cc6677", r"$\spadesuit$"),
    "gated_kalmanet": Style("#ddcc77", r"$\clubsuit$"),
    "hawk": Style("#882255", "^"),
    "hawk_mesa": Style("#e69f00", "X"),
    "mesanet": Style("#d55e00", "*", 2.4),
    "mesanet_signed": Style("#0072b2", r"$\pm$", 2.4),
}
BACKEND_DASHES = {"triton": "-", "fla": "--", "mamba_ssm": "-.", "torch": ":"}
SPARE_COLORS = ("#6699cc", "#004488", "#997700", "#994455", "#225555")
SPARE_MARKERS = ("1", "2", "3", "4", "+", "x")
LOOK = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.solid_capstyle": "round",
    "svg.hashsalt": "linear-rnn-suite",
}


def style_of(model: str) -> Style:
    """The style of a model; one that is not listed gets a dashed style that depends on nothing but its name."""
    if model in STYLES:
        return STYLES[model]
    digest = hashlib.sha256(model.encode()).digest()
    return Style(SPARE_COLORS[digest[0] % len(SPARE_COLORS)], SPARE_MARKERS[digest[1] % len(SPARE_MARKERS)], 1.3, "--")


def backend_dashes(backend: str) -> str:
    """The dash pattern of a backend, in figures that show more than one."""
    return BACKEND_DASHES.get(backend, ":")


def line_style(model: str, marker: float = 0.0) -> dict[str, str | float]:
    """The arguments of a line of this model; with its marker, so many times as large as usual, where that is above 0."""
    style = style_of(model)
    look = {"color": style.color, "linewidth": style.width, "linestyle": style.dashes}
    # A star needs more points to look as large as the others.
    return look | ({"marker": style.marker, "markersize": marker * (9.0 if style.marker == "*" else 5.5)} if marker else {})


def arms_in_order(rows: pd.DataFrame, label: str = "arm") -> list[tuple[str, str]]:
    """The (label, model) pairs of a frame: models in the order of STYLES, the others behind them by name, then by label."""
    rank = {model: i for i, model in enumerate(STYLES)}
    pairs = rows[[label, "model"]].drop_duplicates().itertuples(index=False, name=None)
    return sorted(pairs, key=lambda pair: (rank.get(pair[1], len(rank)), pair[1], pair[0]))


def task_label(task: str) -> str:
    """A task's name for people: an acronym in capitals, anything else in words."""
    return "MQAR" if task == "mqar" else task.replace("_", " ")


WORDS = {
    "head_dim": "head size",
    "lr": "learning rate",
    "forget_gate_init": "initial gamma",
    "regularizer_floor": "Lambda floor",
    "max_steps": "solver steps",
    "random_steps": "random steps up to",
    "segment_len": "W redrawn every",
}
"""Nicer words for the last part of a setting's name, or for a fact; any other stands for itself."""
WITHOUT = {"random_steps": "steps not random", "segment_len": "W not redrawn"}
"""What a label says of a setting that is null; of any other, that there is none."""


def last_part(name: str) -> str:
    """What a dotted name ends in: "lr" of "train.lr", but "solver" of "model.mixer.solver.name"."""
    return re.sub(r"\.(name|type)$", "", name).rpartition(".")[2]


def fact_label(name: str) -> str:
    """A fact or setting of a run for axes and headers; one without words has its metric's label, or its own name."""
    return WORDS.get(last_part(name)) or axis_label(last_part(name))


def fact_text(name: str, value: object) -> str:
    """A fact or setting within a label: "small", "head size 8", "implicit gradient"; None is a setting that is null."""
    label = fact_label(name)
    if value is None or value is False:
        return WITHOUT.get(last_part(name), f"no {label}") if "." in name else ""
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
