"""Works the runs of a request off, waits for those that others hold, and says what is not done."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from suite.compute.parallel import World
from suite.plan import Run
from suite.running.estimate import Estimate
from suite.running.events import Event, Outlook
from suite.running.execute import Command, is_done, missing_stages
from suite.running.failing import FAILED
from suite.running.pool import count_jobs, work
from suite.running.progress import ProgressDisplay
from suite.stage import TRAINING, Stage
from suite.store.code_state import age
from suite.store.foreign import counted, say
from suite.store.run_directory import Damaged, RunDirectory
from suite.store.status import Status

SUCCESS, FAILURE, HELD = 0, 1, 3
LOOK_SECONDS, SAY_SECONDS = 1.0, 60.0


def work_off(runs: Sequence[Run], results: Path, command: Command, world: World) -> int:
    """Brings the runs to their end, waits for those that others hold, and says what is not done; returns the exit status."""
    directories = {run.run_id: RunDirectory(results, run.run_id) for run in runs}
    left = [run for run in runs if command.force or not is_done(run, directories[run.run_id])]
    workers = count_jobs(left) if left else 1
    for directory in directories.values():
        directory.tidy()
    say(f"{_counted(runs)}, {len(runs) - len(left)} of them done already; results in {results}")
    _print_ages(runs, directories)
    outlooks = [_outlook(run, directories[run.run_id], command) for run in left]
    display = ProgressDisplay(len(left), estimate=Estimate(outlooks, workers))
    ends: dict[str, str] = {}

    def listen(event: Event) -> None:
        if event.kind not in ("pulse", "share", "note"):
            ends[event.run_id] = event.kind
        display(event)

    try:
        while left:
            work(left, results, count_jobs(left), listen, command, world)
            # Nobody here came to these, or they were lost: another process holds them, or did.
            left = [run for run in left if ends.get(run.run_id, "lost") == "lost"]
            if not runs[0].compute.wait:
                break
            _wait(left, results)
    finally:
        display.close()
    return summary(runs, directories, {run_id for run_id, end in ends.items() if end == "failed"})


def _counted(runs: Sequence[Run]) -> str:
    """How many runs there are, and of what: "40 runs (4 models x 10 learning rates)"."""
    if len(runs) == 1:
        return f"1 run ({runs[0].title})"
    # Imported here: pandas takes a while.
    from suite.request.titles import axes

    return f"{len(runs)} runs ({axes([run.config for run in runs])})"


def _outlook(run: Run, directory: RunDirectory, command: Command) -> Outlook:
    """What is left of a run. Its training is worth its tokens times what a token costs: another model has another speed."""
    missing = missing_stages(run, directory)
    trains = TRAINING in missing and command.trains
    work = run.cost.flops_per_token * run.facts["train_tokens"] if trains else 0.0
    stages = run.stages if command.force else [stage for stage in missing if stage != TRAINING]
    return Outlook(run.run_id, run.config.model.name, work, tuple(stage.title for stage in stages))


def _print_ages(runs: Sequence[Run], directories: Mapping[str, RunDirectory]) -> None:
    """Says what of the store was made by other code, or is about benchmarks as they were."""
    ages, older = Counter[str](), 0
    for run in runs:
        directory = directories[run.run_id]
        with contextlib.suppress(Damaged):
            if directory.read_stage(TRAINING) is not None:
                ages[age(directory.read()[0].get("code"))] += 1
        for each in run.stages:
            older += len(directory.other_versions({"stage": each.name, "settings": json.loads(each.settings)}))
    told = {"another": "by another state of the code than today's", "unknown": "by an unknown state of the code"}
    parts = [f"{ages[kind]} {words}" for kind, words in told.items() if ages[kind]]
    if parts:
        say(f"{counted(ages.total(), 'trained run')}, {' and '.join(parts)}; model.version and task.version rename")
    if older:
        say(f"beside them: {counted(older, 'result')} of older versions of these benchmarks or of their data")


def _holder(directory: RunDirectory) -> str | None:
    """Who holds a run, in words; None where nobody does, or where the folder can't be written, which others can't either."""
    with contextlib.suppress(OSError):
        return directory.lock.holder() if directory.path.exists() else None
    return None


def _wait(runs: Sequence[Run], results: Path) -> None:
    """Returns once one of the runs is free; says once a minute what is waited for."""
    spoke = -math.inf
    while runs:
        holders = [_holder(RunDirectory(results, run.run_id)) for run in runs]
        if None in holders:
            return
        if time.monotonic() - spoke >= SAY_SECONDS:
            spoke = time.monotonic()
            more = f", and for {counted(len(runs) - 1, 'more run')}" if len(runs) > 1 else ""
            say(f"waiting for {runs[0].run_id}  {runs[0].title}: {holders[0]}{more}")
        time.sleep(LOOK_SECONDS)


def summary(runs: Sequence[Run], directories: Mapping[str, RunDirectory], failed_now: Collection[str]) -> int:
    """Names what is not done, and why; returns the exit status. failed_now: runs whose end was said already."""
    failed, held = bool(failed_now), False
    for run in runs:
        directory = directories[run.run_id]
        missing = missing_stages(run, directory)
        if run.run_id in failed_now or not missing:
            continue
        holder = _holder(directory)
        held |= holder is not None
        failed |= holder is None
        for reason in _reasons(missing, directory.status()) if holder is None else [f"not done, {holder}"]:
            say(f"{run.run_id}  {run.title}: {reason}")
    return FAILURE if failed else HELD if held else SUCCESS


def _reasons(missing: Sequence[Stage], status: Status) -> list[str]:
    """Why a run is not done: how training ended, or which of its evaluations failed."""
    failures = [status.failures[each.stem] for each in missing if each.stem in status.failures]
    if TRAINING not in missing and failures:
        return [f"{each.get('title')}: {each.get('status')}, {each.get('reason')}" for each in failures]
    name = status.status if status.status in FAILED else "interrupted"
    return [f"{name}, {status.reason or 'its process died'}"]
