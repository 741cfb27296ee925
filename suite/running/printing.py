"""What a command prints once its runs are worked off: their scores, and what to type next. Imports reports only then."""

from __future__ import annotations

import datetime
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suite.evaluation.stages import studies_by_name
from suite.plan import Run
from suite.request.identity import SCHEMA

if TYPE_CHECKING:
    from reports.kit.parts import Frames, Table


def request_of(runs: Sequence[Run], arguments: Sequence[str]) -> dict[str, Any]:
    """What was asked for, as the store keeps it and a report reads it."""
    return {
        "schema": SCHEMA,
        "experiment": runs[0].experiment,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "overrides": list(arguments),
        # The files of the studies: experiments that share a run may ask the same study otherwise.
        "cells": [{**run.cell, "studies": [each.stem for each in run.stages if each.name in studies_by_name()]} for run in runs],
    }


def print_scores(runs: Sequence[Run], results: Path, arguments: Sequence[str]) -> None:
    """The scores of a request's runs, a table a task, and the command that draws them."""
    frames = _frames(results, request_of(runs, arguments))
    if frames is None:
        return
    from reports.terminal import score_tables

    for title, table in score_tables(frames):
        _print_table(title, table)
    # A report knows neither Hydra's keys nor where texts lie.
    typed = [each for each in arguments if not each.startswith(("hydra", "paths.cache="))]
    typed = typed or [f"model={runs[0].config.model.name}"]
    print(f"draw them: {shlex.join(['python', '-m', 'suite', 'report', *typed])}")


def print_evaluations(runs: Sequence[Run], results: Path, arguments: Sequence[str]) -> None:
    """What the evaluations that were asked for wrote, a table a stage, and the command that shows a run whole."""
    frames = _frames(results, request_of(runs, arguments))
    if frames is None:
        return
    from reports.terminal import stage_tables

    for title, table in stage_tables(frames, list(dict.fromkeys(each.name for run in runs for each in run.stages))):
        _print_table(title, table)
    place = [argument for argument in arguments if argument.startswith("paths.results=")]
    print(f"all of a run: {shlex.join(['python', '-m', 'suite', 'show', f'run={runs[0].run_id}', *place])}")


def _frames(results: Path, request: Mapping[str, Any]) -> Frames | None:
    """None where not one of the runs has begun."""
    from reports.kit.parts import frames_of

    if not any((results / "runs" / cell["run_id"] / "run.json").exists() for cell in request["cells"]):
        return None
    return frames_of(results, request)


def _print_table(title: str, table: Table) -> None:
    from reports.kit.text import to_text

    print(f"{title}\n{to_text(table, terminal_width())}")


def terminal_width() -> int:
    """Columns of the terminal; where something else reads along, no line is too long."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
