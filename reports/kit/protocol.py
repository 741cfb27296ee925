"""The protocol of a benchmark: on which split rates are chosen, which accuracy is reported, and the words that say so."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pandas as pd
import yaml

from conf.groups import find, options
from reports.kit.parts import NoData
from reports.kit.render import counted
from reports.kit.tables import outcome_notes
from suite.metrics import METRICS
from suite.naming import fact_label, task_label

CLEAN = "clean"
"""The protocol of runs from before there were others."""
TUNED = ("train.lr", "train.weight_decay")
"""The settings that a protocol chooses for every arm by itself."""
METRIC = {"micro": "accuracy", "macro": "accuracy_macro"}
"""The metric of every average."""
FEW = 12
"""So many runs that are not done are named one by one."""


@dataclass(frozen=True)
class Protocol:
    """What a file of conf/protocol says of how runs are chosen and averaged.

    source: where it is from, None for this suite's own. select_on: the split on which TUNED are chosen, "validation" or
    "test". average: "micro" or "macro". seeds: runs an arm. deviations: what of the published protocol is not taken over.
    """

    name: str
    source: str | None
    select_on: str
    average: str
    seeds: int
    deviations: tuple[str, ...]

    @property
    def metric(self) -> str:
        return METRIC[self.average]

    @property
    def stage(self) -> str:
        """The stage that scores the split on which is chosen."""
        return "test" if self.select_on == "test" else "train"


def read_protocol(name: str) -> Protocol:
    """The protocol of a name. Raises NoData for one that is not configured here or says too little: stores may be old."""
    if name not in options("protocol"):
        raise NoData(f"protocol {name} of these runs is not known here")
    written: dict[str, Any] = yaml.safe_load(find("protocol", name).read_text(encoding="utf-8"))
    # One that sets settings of runs too has its own words in a section.
    said = written.get("protocol", written)
    missing = [field.name for field in dataclasses.fields(Protocol) if field.name not in said]
    if missing:
        raise NoData(f"protocol {name} does not say its {', '.join(missing)}")
    values = {field.name: said[field.name] for field in dataclasses.fields(Protocol)}
    return Protocol(**values | {"deviations": tuple(values["deviations"])})


def protocol_names(cells: pd.DataFrame) -> pd.Series:
    """The name of the protocol of every run."""
    if "protocol" not in cells:
        return pd.Series(CLEAN, index=cells.index)
    return cells["protocol"].fillna(CLEAN)


def protocol_notes(asked: pd.DataFrame, kept: pd.DataFrame, shown: str) -> list[str]:
    """For every protocol of the runs: its source, the score, how rates were chosen, the seeds; then what became of the runs.

    asked: the runs of all arms, with `protocol` and `metric`; kept: those that are reported. shown: what is drawn of the
    seeds, "lines are medians".
    """
    notes = []
    for name, own in kept.groupby("protocol", sort=False):
        protocol = read_protocol(str(name))
        metrics = " and ".join(METRICS[metric].label for metric in own["metric"].unique())
        notes.append(
            f"Protocol {name} ({protocol.source or 'of this suite'}): {metrics}, on the test split; "
            f"{_choice(protocol, asked[asked['protocol'] == name])}; {_seeds(protocol, own)}; {shown}."
        )
    if (asked["status"] == "diverged").any():
        notes.append("A run that diverged counts as 0 where rates are chosen, and as one that has not succeeded.")
    return [*notes, *outcomes_by_arm(asked)]


def _choice(protocol: Protocol, asked: pd.DataFrame) -> str:
    """What was chosen among what, and by which split."""
    of_arm = asked.groupby(["model", "task"])
    most = {fact: int(of_arm[fact].nunique().max()) for fact in TUNED if fact in asked}
    tried = [counted(count, fact_label(fact)) for fact, count in most.items() if count > 1]
    if not tried:
        return "one learning rate each, so that nothing was chosen"
    where = {
        "validation": "that the validation split prefers",
        "test": "that scores best on the test split itself, as published, which flatters",
    }
    return f"of {' and '.join(tried)} each arm has the one {where[protocol.select_on]}"


def _seeds(protocol: Protocol, kept: pd.DataFrame) -> str:
    """How many seeds there are, and whether the protocol asks for more."""
    seeds = kept.dropna(subset="value").groupby("arm_number")["seed"].nunique()
    least, most = (int(seeds.min()), int(seeds.max())) if len(seeds) else (0, 0)
    told = f"n={counted(most, 'seed')}" if least == most else f"n={least} to {most} seeds"
    return told if least >= protocol.seeds else f"{told} (the protocol asks for {protocol.seeds})"


def outcomes_by_arm(cells: pd.DataFrame) -> list[str]:
    """What was asked and what became of it, the runs that are not done by name; of more than FEW by model and task, or model."""
    whole, *named = outcome_notes(cells)
    if len(named) <= FEW:
        return [whole, *named]
    notes = [whole]
    for status, own in cells[cells["status"] != "done"].groupby("status"):
        counts = own.groupby(["family", "task"], sort=False).size()
        listed = [f"{family} on {task_label(task)} {count}" for (family, task), count in counts.items()]
        if len(listed) > FEW:
            listed = [f"{family} {count}" for family, count in own.groupby("family", sort=False).size().items()]
        by = "model and task" if len(counts) == len(listed) else "model"
        notes.append(f"{str(status).replace('_', ' ')}, by {by}: {', '.join(listed)}.")
    return notes
