"""Where a store and its reports lie, read without composing a configuration: who only reads results needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import yaml

from conf.groups import CONF
from conf.paths import UserPath
from conf.settings import RequestError, Settings, unknown

PLACES = ("results", "reports")


class Paths(Settings, kw_only=True):
    """Where things lie. cache: of tokenised text."""

    results: UserPath
    reports: UserPath
    cache: UserPath


def read_places(overrides: Iterable[str]) -> dict[str, UserPath]:
    """paths.results and paths.reports from overrides of them; those of conf/config.yaml otherwise. Raises RequestError."""
    written = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))["paths"]
    typed: dict[str, str] = {}
    for override in overrides:
        key, _, value = override.partition("=")
        if key in typed:
            raise RequestError(f"{key} is given twice, permitted is once")
        if key not in (permitted := [f"paths.{name}" for name in PLACES]):
            raise unknown("key", key, permitted)
        typed[key] = value.strip("'\"")
    places = {}
    for name in PLACES:
        value = typed.get(f"paths.{name}", written[name])
        try:
            places[name] = UserPath.of(value)
        except ValueError as error:
            raise RequestError(f"paths.{name}={value}: {error}, permitted are {UserPath.words}") from error
    return places


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands without a key, such as the name of a report, and the overrides."""
    return [each for each in arguments if "=" not in each], [each for each in arguments if "=" in each]
