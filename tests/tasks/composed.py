"""Tasks from their YAML in conf/task, with some values changed."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import yaml

from tasks.build import build_task, read_task
from tasks.task import Task

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "task").glob("*.yaml"))


def composed(name: str, **changes: Any) -> dict[str, Any]:
    """The values of a task's YAML."""
    return {**copy.deepcopy(_written(name)), **changes}


@functools.cache
def _written(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONF / "task" / f"{name}.yaml").read_text())


def settings(name: str, **changes: Any) -> Task.Settings:
    return read_task(composed(name, **changes))


def build(name: str, *, seed: int = 0, **changes: Any) -> Task:
    return build_task(settings(name, **changes), seed=seed)
