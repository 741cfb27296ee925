"""From a task's settings to the task: a class is found by the `type` that it declares, wherever its file lies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tasks
from conf.declared import declared
from conf.settings import Refusal, RequestError, unknown
from tasks.task import Task


def task_types() -> tuple[str, ...]:
    """Every `type` that a class in this package or in the user's own folders declares, sorted."""
    return tuple(_classes())


def task_class(type_name: str) -> type[Task]:
    """The class that declares this `type`, e.g. "parity.Parity". Raises RequestError where none does."""
    if type_name not in _classes():
        raise unknown("task.type", type_name, task_types())
    return _classes()[type_name]


def read_task(values: Mapping[str, Any], key: str = "task") -> Task.Settings:
    """The typed settings of a `task` configuration at the place `key`. Raises RequestError."""
    permitted = ", ".join(task_types())
    if "type" not in values:
        raise RequestError(f"{key}.type is needed: give {key}.type=VALUE, permitted are {permitted}")
    if not isinstance(type_name := values["type"], str):
        raise Refusal(f"{key}.type", type_name, permitted)
    return task_class(type_name).Settings.read(values, key)


def build_task(settings: Task.Settings, *, seed: int) -> Task:
    """The task of these settings. Raises ValueError for data that can't be read."""
    return task_class(settings.type)(settings, seed=seed)


def _classes() -> dict[str, type[Task]]:
    # Benchmarks for lm-eval are read by libraries that take long to import.
    return declared(tasks, Task, "type", without=("tasks.offline.", "tasks.paper."))
