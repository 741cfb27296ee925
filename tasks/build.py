"""From a task's configuration to the task."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any, get_type_hints

from tasks.task import Task


def task_class(type_name: str) -> type[Task]:
    """The class named "module.Class" in this package, e.g. "mqar.MQAR".

    Raises ValueError for anything else: a configuration names a task, it can't name arbitrary code.
    """
    module_name, _, class_name = type_name.rpartition(".")
    if not module_name.isidentifier():
        raise ValueError(f"task type {type_name!r} is not of the form module.Class, e.g. mqar.MQAR")
    try:
        module = importlib.import_module(f"tasks.{module_name}")
    except ModuleNotFoundError as error:
        raise ValueError(f"task type {type_name!r}: there is no module tasks/{module_name}.py") from error
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, Task)) or inspect.isabstract(found):
        raise ValueError(f"task type {type_name!r}: tasks/{module_name}.py has no Task {class_name!r}")
    return found


def task_settings(type_name: str) -> dict[str, Any]:
    """The types of the settings of a task, as its constructor's annotations say. Raises ValueError as `task_class`."""
    return {key: hint for key, hint in get_type_hints(task_class(type_name).__init__).items() if key not in ("seed", "return")}


def build_task(config: Mapping[str, Any], *, seed: int) -> Task:
    """The task of a resolved `task` configuration: `type` names the class, the other keys are its arguments."""
    arguments = {key: value for key, value in config.items() if key not in ("type", "name", "version")}
    return task_class(config["type"])(seed=seed, **arguments)
