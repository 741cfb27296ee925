"""The classes of a package and of the user's own folders by the names that they declare, wherever their files lie."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType

from conf.extensions import Module, modules
from conf.settings import RequestError


def declared(package: ModuleType, base: type, attribute: str, *, without: tuple[str, ...]) -> dict[str, type]:
    """The classes below `base` in all modules of a package, by the `attribute` that each declares itself, sorted by it.

    without: how the names of modules begin that are not imported. Raises RequestError for a file of the user's own that
    declares what is declared already.
    """
    return _declared(package, base, attribute, without, tuple(modules(package.__name__)))


@functools.cache
def _declared(
    package: ModuleType, base: type, attribute: str, without: tuple[str, ...], own: tuple[Module, ...]
) -> dict[str, type]:
    found: dict[str, type] = {}
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.startswith(without):
            for name, each in _classes(module.name, base, attribute):
                assert found.setdefault(name, each) is each, f"{each} and {found[name]} declare one {attribute}"
    for module_name, file in own:
        for name, each in _classes(module_name, base, attribute):
            if found.setdefault(name, each) is not each:
                there = inspect.getfile(found[name])
                raise RequestError(f"{file}: {attribute} = {name!r} is declared already, in {there}; give it another")
    return dict(sorted(found.items()))


def _classes(module: str, base: type, attribute: str) -> Iterator[tuple[str, type]]:
    for each in vars(importlib.import_module(module)).values():
        if isinstance(each, type) and issubclass(each, base) and attribute in vars(each) and not inspect.isabstract(each):
            yield vars(each)[attribute], each
