"""The groups of the configuration: folders of YAML files beside this module, each file an option."""

from __future__ import annotations

import functools
from pathlib import Path

from conf.settings import RequestError

CONF = Path(__file__).resolve().parent


def options(group: str) -> list[str]:
    """The names in a configuration group, sorted; a base that only others inherit is left out."""
    names = sorted(path.stem for path in (CONF / group).glob("*.yaml") if path.stem != "base")
    if not names:
        raise RequestError(f"there is no configuration in {CONF / group}; install the suite again, or run it from its checkout")
    return names


@functools.cache
def groups() -> tuple[str, ...]:
    return tuple(sorted({path.parent.name for path in CONF.glob("*/*.yaml")}))
