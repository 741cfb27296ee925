"""What `run`, `evaluate` and `check` do: the whole request is settled and checked first, then worked off."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
import uuid
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from conf.settings import RequestError
from models.backends import obstacle
from suite.evaluation.stages import planned_stages
from suite.machine.devices import select_device
from suite.plan import Run, check_compute, check_one_place, check_uses, plan_request, planned_task, told_apart
from suite.request.compose import Composer
from suite.request.identity import digest
from suite.request.overrides import read_request
from suite.request.schema import Composed
from suite.running.estimate import Estimate
from suite.running.events import Event, Outlook
from suite.running.execute import FAILED, Command, as_yaml, is_done, missing_stages
from suite.running.launch import launcher_of
from suite.running.pool import count_jobs, work
from suite.running.printing import print_evaluations, print_scores, request_of
from suite.running.progress import ProgressDisplay
from suite.running.sinks import check_sinks
from suite.saved import saved_run, saved_task
from suite.stage import TRAINING, Stage
from suite.store.code_state import age
from suite.store.foreign import check_no_link, counted, say
from suite.store.ids import place, trained_ids
from suite.store.run_directory import Damaged, RunDirectory, as_json
from suite.store.status import Status
from tasks.files import remove_temporaries, write_atomically

SUCCESS, FAILURE, HELD = 0, 1, 3
# Where a saved run's text and its tokenizer lie now.
MOVED = ("data.path", "data.tokenizer")
LOOK_SECONDS, SAY_SECONDS = 1.0, 60.0


def sweep(arguments: Sequence[str]) -> int:
    """Makes every run of a request and prints the scores; returns the exit status."""
    runs, results, status = make_runs(arguments)
    print_scores(runs, results, arguments)
    return status


def make_runs(arguments: Sequence[str]) -> tuple[list[Run], Path, int]:
    """Makes every run of a request; returns them, their store and the exit status."""
    request = read_request(arguments)
    runs = plan_request(request)
    check_sinks(runs)
    launch = launcher_of(request)
    for settings in dict.fromkeys(run.config.task for run in runs):
        planned_task(settings)[0].prepare()
    results = results_folder(runs[0].paths.results)
    write_request(runs, results, arguments)
    if launch is None:
        return runs, results, train_all(runs, results)
    launch(request.cells)
    return runs, results, _summary(runs, {run.run_id: RunDirectory(results, run.run_id) for run in runs}, ())


def train_all(runs: Sequence[Run], results: Path) -> int:
    """Trains and evaluates what is not done of the runs; returns the exit status."""
    return _work_off(runs, results, Command(uuid.uuid4().hex, trains=True, force=False))


def add_evaluations(arguments: Sequence[str]) -> int:
    """Adds evaluations to finished runs, named by run=ID or run=all; trains nothing. force=true makes them again."""
    (ids, forced), cells = _own(arguments, "run", "force")
    if len(ids) != 1:
        bare = next((argument for argument in arguments if "=" not in argument), "")
        hint = f"; did you mean run={bare}?" if bare and not ids else ""
        raise RequestError(f"evaluate takes run=ID (or several, run=ID,ID) or run=all{hint}")
    if forced not in ([], ["true"], ["false"]):
        raise RequestError(f"force={','.join(forced)} is unknown, permitted are true and false")
    request = read_request(cells)
    for override in request.overrides:
        key = override.key_or_group
        if key.split(".")[0] not in ("eval", "paths", "compute") and key not in MOVED:
            permitted = f"eval, paths, compute, {', '.join(MOVED)}"
            raise RequestError(f"{override.input_line!r} can't be changed in a finished run, permitted are {permitted}")
    composer = Composer(request.cells)
    asked = [composer.compose(cell) for cell in request.cells]
    results = Path(asked[0].paths.results)
    for composed in asked:
        check_one_place(asked[0].compute, composed.compute)
    moved = [key.partition(".")[2] for key in MOVED if any(a.startswith(f"{key}=") for a in arguments)]
    places = {"cache": asked[0].paths.cache, **{key: getattr(asked[0].data, key) for key in moved}}
    every = ids == ["all"]
    runs: list[Run] = []
    refused: dict[str, list[str]] = {}
    for run_id in trained_ids(results) if every else ids[0].split(","):
        try:
            runs.append(_with_stages(saved_run(results, run_id, asked[0]), asked, places))
        except ValueError as error:
            if not every:
                raise RequestError(str(error)) from error
            refused.setdefault(str(error), []).append(run_id)
    if not runs:
        raise RequestError(next(iter(refused)) if refused else f"no trained runs under {place(results)}")
    check_uses(request, runs)
    runs = told_apart(runs)
    for reason, run_ids in refused.items():
        say(reason if run_ids[0] in reason else f"{', '.join(run_ids)}: {reason}")
    status = _work_off(runs, results, Command(uuid.uuid4().hex, trains=False, force=forced == ["true"]))
    print_evaluations(runs, results, arguments)
    return FAILURE if refused else status


def _own(arguments: Sequence[str], *keys: str) -> tuple[list[list[str]], list[str]]:
    """What is given for each of a verb's own keys, and the arguments that are of the configuration."""
    pairs = [(argument.partition("="), argument) for argument in arguments]
    given = [[value for (name, _, value), _ in pairs if name == key] for key in keys]
    return given, [argument for (name, _, _), argument in pairs if name not in keys]


def _with_stages(run: Run, asked: Sequence[Composed], places: Mapping[str, str]) -> Run:
    """A saved run with the evaluations asked for; where things lie and how they are computed is this command's to say."""
    config = run.config
    if hasattr(config.task, "data"):
        config = replace(config, task=config.task.replace({"data": {**config.task.data.plain(), **places}}))
    here = replace(run, config=config)
    # A run is evaluated by what it was trained with, or its numbers would not be of one thing.
    reason = obstacle(config.backend, select_device(run.compute.device).type)
    if reason is not None:
        raise RequestError(f"run {run.run_id} has backend={config.backend!r}, which can't run here: {reason}")
    task, stages = saved_task(here), []
    for each in asked:
        check_compute(config, each.compute)
        stages += planned_stages(config, each.compute, each.evaluation, task)
    return replace(here, stages=tuple(dict.fromkeys(stages)))


def _work_off(runs: Sequence[Run], results: Path, command: Command) -> int:
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
            work(left, results, count_jobs(left), listen, command)
            # Nobody here came to these, or they were lost: another process holds them, or did.
            left = [run for run in left if ends.get(run.run_id, "lost") == "lost"]
            if not runs[0].compute.wait:
                break
            _wait(left, results)
    finally:
        display.close()
    return _summary(runs, directories, {run_id for run_id, end in ends.items() if end == "failed"})


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
    ages, older = Counter(), 0
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


def _summary(runs: Sequence[Run], directories: Mapping[str, RunDirectory], failed_now: Collection[str]) -> int:
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


def results_folder(path: str) -> Path:
    """The store of a request, made where it is missing. Raises RequestError for a place that can't be written."""
    results = Path(path)
    try:
        (results / "runs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"paths.results={path} can't be written: {error.strerror}") from error
    if not os.access(results / "runs", os.W_OK):
        raise RequestError(f"paths.results={path} can't be written")
    return results


def write_request(runs: Sequence[Run], results: Path, arguments: Sequence[str]) -> None:
    """Records what an experiment asked for, so that its report can say what is missing."""
    if runs[0].experiment is None:
        return
    request = request_of(runs, arguments)
    folder = results.resolve() / "experiments"
    check_no_link(folder, results.resolve())
    write_atomically(folder / f"{runs[0].experiment}-{digest(request['cells'], 8)}.json", as_json(request))
    remove_temporaries(folder)


def print_plan(arguments: Sequence[str]) -> int:
    """Prints what every run of a request would be; trains and writes nothing. show=config: its whole configuration."""
    (shown,), others = _own(arguments, "show")
    if shown not in ([], ["config"]):
        raise RequestError(f"show={','.join(shown)} is unknown, permitted is show=config")
    request = read_request(others)
    launcher_of(request)
    runs = plan_request(request)
    check_sinks(runs)
    for run in runs:
        if shown:
            print(f"# run {run.run_id}\n{as_yaml(run.written)}")
            continue
        facts = run.facts
        directory = RunDirectory(Path(run.paths.results), run.run_id)
        print(
            f"{run.run_id}  {run.title}: {facts['parameters']:,} parameters, {facts['state_bytes']:,} state bytes and "
            f"{facts['flops_per_token']:,.0f} forward FLOPs per token at T={facts['seq_len']}, backend {facts['backend']}, "
            f"{facts['train_tokens']:,} training tokens, lr {facts['lr']:g}, {directory.status().status}"
        )
    return SUCCESS
