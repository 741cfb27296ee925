"""Results of one measurement by different versions of its benchmark: lm-eval, its task, or the data that this reads changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from suite.canonical import canonical_json


def measured(stage: Mapping[str, Any]) -> str:
    """What the JSON of a stage's file measured: its stage and its settings without their `version`."""
    return canonical_json([stage["stage"], {key: value for key, value in stage["settings"].items() if key != "version"}])


def superseded(stages: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Per stage file of a run, whether a newer one measured the same by another version.

    `made` is a stage's time of writing (ISO 8601, UTC); those that were written before there was one are the oldest.
    """
    newest: dict[str, tuple[str, int]] = {}
    for i, stage in enumerate(stages):
        name = measured(stage)
        newest[name] = max(newest.get(name, ("", -1)), (str(stage.get("made", "")), i))
    return [stage["settings"].get("version") != stages[newest[measured(stage)][1]]["settings"].get("version") for stage in stages]
