"""What `run`, `evaluate` and `check` do: the whole request is settled and checked first, then worked off."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from conf.settings import RequestError
from models.backends import obstacle
from suite.compute.parallel import World, alone
from suite.compute.settings import check_one_place
from suite.evaluation.stages import planned_stages
from suite.machine.devices import select_device
from suite.machine.peaks import named
from suite.plan import Run, check_compute, check_uses, plan_request, planned_task, told_apart
from suite.request.compose import Composer, compose_one
from suite.request.identity import digest
from suite.request.overrides import Request, read_request, values
from suite.request.schema import Composed
from suite.running.execute import Command, as_yaml
from suite.running.launch import launcher_of
from suite.running.plans import plan_lines, total_line
from suite.running.printing import print_evaluations, print_scores, request_of
from suite.running.sinks import check_sinks
from suite.running.slurm import check_scheduler, launch_of, script, submit
from suite.running.together import check_ranks, follow_command, lead, plan_together, ranks
from suite.running.working import FAILURE, SUCCESS, summary, work_off
from suite.saved import check_kept, saved_run, saved_task
from suite.store.foreign import check_no_link, say
from suite.store.ids import place, trained_ids
from suite.store.run_directory import RunDirectory, as_json
from tasks.files import remove_temporaries, write_atomically

CPU = torch.device("cpu")
# Where a saved run's text and its tokenizer lie now.
MOVED = ("data.path", "data.validation_path", "data.tokenizer")


def sweep(arguments: Sequence[str]) -> int:
    """Makes every run of a request and prints the scores; returns the exit status."""
    with ranks() as world:
        if not world.is_first:
            return follow_command(world, lambda: plan_request(read_request(arguments)))
        return lead(world, lambda: _sweep(arguments, world))


def _sweep(arguments: Sequence[str], world: World) -> int:
    runs, results, status = _make_runs(arguments, world)
    print_scores(runs, results, arguments)
    return status


def make_runs(arguments: Sequence[str]) -> tuple[list[Run], Path, int]:
    """Makes every run of a request; returns them, their store and the exit status."""
    return _make_runs(arguments, alone(CPU))


def _make_runs(arguments: Sequence[str], world: World) -> tuple[list[Run], Path, int]:
    request = read_request(arguments)
    runs = plan_request(request)
    check_sinks(runs)
    launch, jobs = launcher_of(request), launch_of(request)
    if jobs is None:
        check_ranks(runs, launches=launch is not None)
    else:
        check_scheduler(jobs)
    for settings in dict.fromkeys(run.config.task for run in runs):
        planned_task(settings)[0].prepare()
    results = results_folder(runs[0].paths.results)
    plan_together(world, runs)
    write_request(runs, results, arguments)
    if launch is None and jobs is None:
        return runs, results, train_all(runs, results, world)
    if jobs is not None:
        submit(jobs, request, runs[0].compute, results)
        if not jobs.wait:
            return runs, results, SUCCESS
    if launch is not None:
        launch(request.cells)
    return runs, results, summary(runs, {run.run_id: RunDirectory(results, run.run_id) for run in runs}, ())


def train_all(runs: Sequence[Run], results: Path, world: World) -> int:
    """Trains and evaluates what is not done of the runs; returns the exit status."""
    return work_off(runs, results, Command(uuid.uuid4().hex, trains=True, force=False), world)


def add_evaluations(arguments: Sequence[str]) -> int:
    """Adds evaluations to finished runs, named by run=ID or run=all; trains nothing. force=true makes them again.

    step=N,M: of the checkpoints after so many steps, where they stay.
    """
    (ids, forced, after), cells = _own(arguments, "run", "force", "step")
    if len(ids) != 1:
        bare = next((argument for argument in arguments if "=" not in argument), "")
        hint = f"; did you mean run={bare}?" if bare and not ids else ""
        raise RequestError(f"evaluate takes run=ID (or several, run=ID,ID) or run=all{hint}")
    if forced not in ([], ["true"], ["false"]):
        raise RequestError(f"force={','.join(forced)} is unknown, permitted are true and false")
    steps = _steps(after)
    request = read_request(cells)
    for override in request.overrides:
        key = override.key_or_group
        if key.split(".")[0] not in ("eval", "paths", "compute") and key not in MOVED:
            permitted = f"eval, paths, compute, {', '.join(MOVED)}"
            raise RequestError(f"{override.input_line!r} can't be changed in a finished run, permitted are {permitted}")
    of_these = read_request([each for each in cells if each.partition("=")[0] not in MOVED]).cells
    composer = Composer(of_these)
    asked = [composer.compose(cell) for cell in of_these]
    results = Path(asked[0].paths.results)
    for composed in asked:
        check_one_place(asked[0].compute, composed.compute)
    places = {"cache": asked[0].paths.cache, **_moved(request)}
    every = ids == ["all"]
    runs: list[Run] = []
    refused: dict[str, list[str]] = {}
    for run_id in trained_ids(results) if every else ids[0].split(","):
        try:
            run = _with_stages(saved_run(results, run_id, asked[0]), asked, places)
            for step in steps:
                check_kept(RunDirectory(results, run.run_id), step)
            runs.append(replace(run, stages=tuple(each.after(step) for step in steps for each in run.stages)) if steps else run)
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
    status = work_off(runs, results, Command(uuid.uuid4().hex, trains=False, force=forced == ["true"]), alone(CPU))
    print_evaluations(runs, results, arguments)
    return FAILURE if refused else status


def _moved(request: Request) -> dict[str, Any]:
    """Where the text and the tokenizer of a run lie now, by the keys of its data. Raises RequestError."""
    typed = {each.key_or_group: each for each in request.overrides if each.key_or_group in MOVED}
    for key, override in typed.items():
        if len(values(override)) > 1:
            raise RequestError(f"{override.input_line}: permitted is one value; several files are a list, '{key}=[A,B]'")
    # What kind of text it is the run says itself: any that is read from files takes these keys.
    lines = {"data.path": "data.path=text.txt"} | {key: override.input_line for key, override in typed.items()}
    data = compose_one(["data=text", *lines.values()]).data
    return {name: getattr(data, name) for name in (key.partition(".")[2] for key in typed)}


def _own(arguments: Sequence[str], *keys: str) -> tuple[list[list[str]], list[str]]:
    """What is given for each of a verb's own keys, and the arguments that are of the configuration."""
    pairs = [(argument.partition("="), argument) for argument in arguments]
    given = [[value for (name, _, value), _ in pairs if name == key] for key in keys]
    return given, [argument for (name, _, _), argument in pairs if name not in keys]


def _steps(given: Sequence[str]) -> list[int]:
    """The steps in step=N,M. Raises RequestError."""
    typed = [each for value in given for each in value.split(",")]
    for each in typed:
        if not re.fullmatch(r"[1-9]\d{0,8}", each):
            raise RequestError(f"step={each} is out of range, permitted are whole numbers from 1")
    return [int(each) for each in typed]


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
    """Prints what every run of a request would be and take, and the script of its jobs; trains and writes nothing.

    show=config: its whole configuration. on=h100x8: how long it takes on other devices than those here.
    """
    (shown, on), others = _own(arguments, "show", "on")
    if shown not in ([], ["config"]):
        raise RequestError(f"show={','.join(shown)} is unknown, permitted is show=config")
    devices = named(",".join(on)) if on else None
    request = read_request(others)
    launcher_of(request)
    jobs = launch_of(request)
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
        print("\n".join(plan_lines(run, devices)))
    if not shown and len(runs) > 1:
        print(total_line(runs, devices))
    if jobs is not None and jobs.to == "slurm":
        print(script(jobs))
    return SUCCESS
