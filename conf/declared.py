"""The classes of a package by the names that they declare, wherever their files lie."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType


def declared(package: ModuleType, base: type, attribute: str, *, without: tuple[str, ...]) -> dict[str, type]:
    """The classes below `base` in all modules of a package, by the `attribute` that each declares itself, sorted by it.

    without: how the names of modules begin that are not imported.
    """
    found: dict[str, type] = {}
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.startswith(without):
            for each in vars(importlib.import_module(module.name)).values():
                if isinstance(each, type) and issubclass(each, base) and attribute in vars(each) and not inspect.isabstract(each):
                    name = vars(each)[attribute]
                    assert found.setdefault(name, each) is each, f"{each} and {found[name]} declare one {attribute}"
    return dict(sorted(found.items()))
