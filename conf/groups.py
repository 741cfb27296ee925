"""The groups of the configuration: folders of YAML files beside this module and in the user's own, each file an option."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

from conf.extensions import folders
from conf.settings import RequestError, unknown

CONF = Path(__file__).resolve().parent


def options(group: str) -> list[str]:
    """The names in a configuration group, sorted; a base that only others inherit is left out. Raises RequestError."""
    names = {path.stem for path in (CONF / group).glob("*.yaml") if path.stem != "base"}
    if not names:
        raise RequestError(f"there is no configuration in {CONF / group}; install the suite again, or run it from its checkout")
    return sorted(names | _added(folders()).get(group, {}).keys())


def whole(group: str) -> list[str]:
    """The options of a group that can be composed by their names alone, since they leave no value to whoever types them."""
    return [name for name in options(group) if "???" not in find(group, name).read_text(encoding="utf-8")]


def find(group: str, name: str) -> Path:
    """The YAML file of an option."""
    return _added(folders()).get(group, {}).get(name, CONF / group / f"{name}.yaml")


def search_path() -> tuple[Path, ...]:
    """The user's own folders of groups, beside this one. Raises RequestError for an option that is there already."""
    _added(folders())
    return tuple(folder / "conf" for folder in folders() if (folder / "conf").is_dir())


@functools.cache
def groups() -> tuple[str, ...]:
    return tuple(sorted({path.parent.name for path in CONF.glob("*/*.yaml")}))


@functools.cache
def _added(own: tuple[Path, ...]) -> Mapping[str, Mapping[str, Path]]:
    """By group and name the options in the user's own folders."""
    found: dict[Path, Path] = {}
    for folder in own:
        for path in sorted((folder / "conf").rglob("*.yaml")):
            place = path.relative_to(folder / "conf")
            if place.parts[0] not in groups():
                raise RequestError(f"{path}: {unknown('group', place.parts[0], groups())}")
            # The package's own option never gives way in silence.
            if (there := found.setdefault(place, path)) != path or (there := CONF / place).exists():
                raise RequestError(f"{path}: {place.parts[0]}={place.stem} is there already, {there}; give it another name")
    by_group: dict[str, dict[str, Path]] = {}
    for place, path in found.items():
        if len(place.parts) == 2 and place.stem != "base":
            by_group.setdefault(place.parts[0], {})[place.stem] = path
    return by_group
