"""Results of one measurement by different versions of its benchmark: lm-eval, its task, or the data that this reads changed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from suite.canonical import canonical_json

ANOTHER_SINCE = {"race": (0, 4, 12)}
"""Benchmarks that are another task of the same name since a release of lm-eval. Before 0.4.12 (race 3.0), RACE was asked
without the text of its cloze questions, so that scores from before and after do not belong in one column.
"""


def measured(stage: Mapping[str, Any]) -> str:
    """What the JSON of a stage's file measured: its stage and its settings without their `version`."""
    return canonical_json([stage["stage"], {key: value for key, value in stage["settings"].items() if key != "version"}])


def superseded(stages: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Per stage file of a run, whether a newer one measured the same by another version, or another task has its name by now.

    `made` is a stage's time of writing (ISO 8601, UTC); those that were written before there was one are the oldest.
    """
    newest: dict[str, tuple[str, int]] = {}
    for i, stage in enumerate(stages):
        name = measured(stage)
        newest[name] = max(newest.get(name, ("", -1)), (str(stage.get("made", "")), i))
    latest = [stages[newest[measured(stage)][1]]["settings"].get("version") for stage in stages]
    return [
        stage["settings"].get("version") != version or is_of_another_task(stage)
        for stage, version in zip(stages, latest, strict=True)
    ]


def is_of_another_task(stage: Mapping[str, Any]) -> bool:
    """Whether a stage has scores of a benchmark that by now is another task of the same name."""
    version = tuple(map(int, re.findall(r"\d+", str(stage["settings"].get("version", "")).partition("-")[0])[:3]))
    names = {row.get("slice", {}).get("benchmark") for row in stage.get("rows", ())}
    return any(version < since for name, since in ANOTHER_SINCE.items() if name in names)
