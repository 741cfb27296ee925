"""What `run`, `evaluate` and `check` do: the whole request is settled and checked first, then worked off."""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from models.backends import obstacle
from suite.devices import select_device
from suite.evaluations import STUDIES, planned_evaluations
from suite.execute import FAILED, is_done, missing_stages
from suite.identity import digest
from suite.launch import launcher_of
from suite.plan import Run, check_one_place, plan
from suite.pool import count_jobs, work
from suite.progress import ProgressDisplay
from suite.ranges import check_graph, check_values
from suite.request import RequestError, compose_config, expand, parse
from suite.saved import saved_run, saved_runs, saved_task
from suite.store import RunDirectory, write_json

SUCCESS, FAILURE = 0, 1


def sweep(arguments: Sequence[str]) -> int:
    """Makes every run of a request; returns the exit status."""
    runs = plan(arguments)
    launch = launcher_of(arguments)
    results = results_folder(runs[0].config["paths"]["results"])
    write_request(runs, results, arguments)
    if launch is not None:
        launch(expand(arguments))
        return _summary(runs, results)
    return _work_off(runs, results)


def add_evaluations(arguments: Sequence[str]) -> int:
    """Adds evaluations to finished runs, named by run=ID or run=all; trains nothing."""
    named = [argument.partition("=")[2] for argument in arguments if argument.startswith("run=")]
    if len(named) != 1:
        raise RequestError("evaluate takes run=ID (or several, run=ID,ID) or run=all")
    cells = [argument for argument in arguments if not argument.startswith("run=")]
    asked = [compose_config(cell) for cell in _evaluation_cells(cells)]
    results = Path(asked[0].paths.results)
    finished = saved_runs(results) if named[0] == "all" else [saved_run(results, run_id) for run_id in named[0].split(",")]
    try:
        for config in asked:
            check_values(config)
            check_one_place(asked[0].compute, config.compute)
        runs = [_with_evaluations(run, asked) for run in finished]
    except ValueError as error:
        raise RequestError(str(error)) from error
    return _work_off(runs, results)


def _with_evaluations(run: Run, asked: Sequence[DictConfig]) -> Run:
    """A saved run with the evaluations asked for; where things lie and how they are computed is this command's to say."""
    config = {**run.config, "compute": OmegaConf.to_container(asked[0].compute)}
    if "data" in config["task"]:
        config["task"] = {**config["task"], "data": {**config["task"]["data"], "cache": asked[0].paths.cache}}
    here = replace(run, config=config)
    # A run is evaluated by what it was trained with, or its numbers would not be of one thing.
    reason = obstacle(config["backend"], select_device(config["compute"]["device"]).type)
    if reason is not None:
        raise RequestError(f"run {run.run_id} has backend={config['backend']!r}, which can't run here: {reason}")
    task = saved_task(here)
    cells = [
        {**config, **{key: OmegaConf.to_container(each[key], resolve=True) for key in ("eval", "compute")}} for each in asked
    ]
    for cell in cells:
        check_graph(cell)
    evaluations = [evaluation for cell in cells for evaluation in planned_evaluations(cell, task)]
    return replace(here, evaluations=tuple(dict.fromkeys(evaluations)))


def _evaluation_cells(arguments: Sequence[str]) -> list[list[str]]:
    for override in parse(arguments):
        if override.key_or_group.split(".")[0] not in ("eval", "paths", "compute"):
            raise RequestError(
                f"{override.input_line!r} can't be changed in a finished run, permitted are eval, paths and compute"
            )
    return expand(arguments)


def _work_off(runs: Sequence[Run], results: Path) -> int:
    left = [run for run in runs if not is_done(run, RunDirectory(results, run.run_id))]
    print(f"{len(runs)} runs, {len(runs) - len(left)} of them done already; results in {results}", file=sys.stderr)
    if left:
        display = ProgressDisplay(len(left))
        try:
            work(left, results, count_jobs(left), display)
        finally:
            display.close()
    return _summary(runs, results)


def _summary(runs: Sequence[Run], results: Path) -> int:
    """Names what is not done, and why; returns the exit status."""
    failed = False
    for run in runs:
        directory = RunDirectory(results, run.run_id)
        if not missing_stages(run, directory):
            continue
        status = directory.status()
        holder = directory.lock.holder() if directory.path.exists() else None
        if holder is not None:
            print(f"{run.run_id}  {run.title}: skipped, {holder} works on it", file=sys.stderr)
            continue
        failed = True
        reason = status["reason"].splitlines()[0] if status["reason"] else "its process died"
        name = status["status"] if status["status"] in FAILED else "interrupted"
        print(f"{run.run_id}  {run.title}: {name}, {reason}", file=sys.stderr)
    return FAILURE if failed else SUCCESS


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
    experiment = runs[0].config["experiment"]["name"]
    if experiment is None:
        return
    request: dict[str, Any] = {
        "schema": 1,
        "experiment": experiment,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "overrides": list(arguments),
        "cells": [{**run.cell, "studies": _studies(run)} for run in runs],
    }
    name = f"{experiment}-{digest(request['cells'], 8)}.json"
    write_json(results / "experiments" / name, request)


def _studies(run: Run) -> list[str]:
    """The names of the files of the studies asked for: experiments that share a run may ask the same study otherwise."""
    return [Path(each.file_name).stem for each in run.evaluations if each.name in STUDIES]


def print_plan(arguments: Sequence[str]) -> int:
    """Prints what every run of a request would be; trains and writes nothing."""
    for run in plan(arguments):
        facts = run.facts
        directory = RunDirectory(Path(run.config["paths"]["results"]), run.run_id)
        print(
            f"{run.run_id}  {run.title}: {facts['parameters']:,} parameters, {facts['state_bytes']:,} state bytes and "
            f"{facts['flops_per_token']:,.0f} forward FLOPs per token at T={facts['seq_len']}, backend {facts['backend']}, "
            f"{facts['train_tokens']:,} training tokens, lr {facts['lr']:g}, {directory.status()['status']}"
        )
    return SUCCESS
