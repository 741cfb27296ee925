"""The commands that make the runs of a page again, wherever they are to land."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any


def commands_of(request: Mapping[str, Any]) -> list[str]:
    """One `run` line for each request behind a page; none for a page of whatever a store held."""
    if request.get("where"):
        return []
    experiment = [f"experiment={request['experiment']}"] if request["experiment"] else []
    lines = request.get("requests") or [request["overrides"]]
    return [suite_command("run", [*experiment, *without_places(line)]) for line in lines]


def without_places(line: Sequence[str]) -> list[str]:
    return [override for override in line if not override.startswith(("experiment=", "paths."))]


def drawing_of(request: Mapping[str, Any]) -> str:
    """The command that draws the page again."""
    if request.get("where"):
        asked = [] if request.get("is_of_page") else [f"where={request['where']}"]
        return suite_command("report", [*filter(None, [request["page"]]), *asked])
    if request.get("requests"):
        return suite_command("report", [request["experiment"]])
    experiment = [f"experiment={request['experiment']}"] if request["experiment"] else []
    return suite_command("report", [*experiment, *without_places(request["overrides"])])


def suite_command(verb: str, line: Sequence[str]) -> str:
    """A command line that a shell reads as it is meant."""
    return shlex.join(["python", "-m", "suite", verb, *line])
