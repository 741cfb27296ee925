"""Runs that stand in a results store, and their trained models. Reads data alone: a stranger's store is safe to open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from conf.extensions import KEY, VARIABLE
from conf.settings import SHOWN, RequestError, text
from models.backbone import Backbone
from models.backends import settle
from models.build import computing_backends, kinds
from suite.compute.interface import interface_of, unfilled_backbone
from suite.plan import Run, task_of
from suite.request.cost import Cost
from suite.request.identity import group_id, identity, run_id
from suite.request.schema import Composed, saved_config
from suite.stage import TRAINING
from suite.store.checkpoint import load_final, load_kept
from suite.store.foreign import parse_yaml, reason_of
from suite.store.ids import the_run, trained_ids
from suite.store.keeping import kept, step_of
from suite.store.run_directory import READING, Damaged, RunDirectory
from tasks.build import task_types
from tasks.language.task import WithoutText
from tasks.task import Task

CLEAN = "clean"
"""The protocol of runs from before there were others."""


ANOTHER = "its text or tokenizer is another one than it was trained on; data.path and data.tokenizer tell where that one lies now"


class Undeclared(RequestError):
    """A saved run has a mixer or a task that neither this package nor a folder of the user's own declares."""


def saved_run(results: Path, beginning: str, here: Composed) -> Run:
    """A run from the beginning of its id, with no evaluations. here: where and how it is computed now.

    Raises RequestError for one that is not there, not trained or not readable.
    """
    directory = RunDirectory(results, the_run(beginning, trained_ids(results), results))
    try:
        directory.read_stage(TRAINING)
        return _read(directory, here)
    except Damaged as error:
        raise RequestError(f"{error}; it is made again by: {directory.command()}") from error


def _read(directory: RunDirectory, here: Composed) -> Run:
    """Raises Damaged where what the folder says of itself does not agree with its name."""
    whole, config_text = directory.read()
    try:
        return described(directory.run_id, whole["facts"], parse_yaml(config_text), here)
    except Undeclared:
        raise
    except READING as error:
        raise Damaged(f"run {directory.run_id} can't be read: {reason_of(error)}") from error


def described(name: str, facts: Mapping[str, Any], written: Mapping[str, Any], here: Composed) -> Run:
    """The run that its facts and its configuration describe, as a store or an export has them.

    Raises Undeclared, and any of READING where they are not what was written, or not those of the run of this name.
    """
    _check_declared(name, written)
    config = saved_config(written)
    named = identity(config, data_fingerprint=facts["data_fingerprint"])
    if run_id(named) != name:
        raise ValueError("its configuration belongs to a run of another name")
    return Run(
        config=config,
        run_id=name,
        group_id=group_id(named),
        data_fingerprint=facts["data_fingerprint"],
        interface=interface_of(facts),
        cost=Cost(facts["parameters"], facts["state_bytes"], facts["flops_per_token"]),
        stages=(),
        compute=here.compute,
        paths=here.paths,
        experiment=None,
        protocol=facts.get("protocol", CLEAN),
        title=config.title,
        written=written,
    )


def _check_declared(run_id: str, written: Mapping[str, Any]) -> None:
    """Raises Undeclared. The folder is the user's to name: a run that named one would have its own code run."""
    model = written["model"]
    asked = [("mixer", model[name]["type"], tuple(kinds())) for name in model["pattern"]]
    for what, name, known in (*asked, ("task", written["task"]["type"], task_types())):
        if name not in known:
            said = f"run {run_id}: its {what} {text(name)[:SHOWN]!r} is not of this package"
            raise Undeclared(f"{said}; give the folder that declares it: {KEY}=FOLDER, or {VARIABLE}=FOLDER in the environment")


def saved_task(run: Run) -> Task:
    """The task that a saved run was trained on; where its text is not here, or another one, a task without text.

    Raises RequestError where its splits, or its tokenizer, are not what they were.
    """
    try:
        task = task_of(run.config)
        reason = "" if task.fingerprint() == run.data_fingerprint else ANOTHER
    except ValueError as error:
        reason = str(error)
    if reason:
        return _without_text(run, f"run {run.run_id}: {reason}")
    if run.config.task.version < task.version:
        name = run.config.task.name
        raise RequestError(f"run {run.run_id}: its splits are those of an older version of {name}, so it can't be scored")
    return task


def _without_text(run: Run, reason: str) -> Task:
    if not hasattr(run.config.task, "data"):
        raise RequestError(reason)
    task = WithoutText(run.config.task, reason=reason)
    if task.vocab_size != run.interface.vocab_size:
        raise RequestError(f"run {run.run_id}: its tokenizer has {run.interface.vocab_size} ids, this one has {task.vocab_size}")
    return task


def new_model(run: Run, device: torch.device) -> Backbone:
    """The run's model with its initial weights, which depend on the seed alone and not on the device."""
    config = run.config
    model = unfilled_backbone(run.interface, config.model, config.size, backend=config.backend, device=device)
    held = {name: x for name, x in (*model.named_parameters(), *model.named_buffers()) if x.is_floating_point()}
    for x in held.values():
        x.detach().fill_(torch.nan)
    model.reset_parameters(config.seed)
    # What is not filled has no values: a mixer that forgets a tensor would train on whatever memory held.
    assert not (unfilled := [name for name, x in held.items() if x.isnan().any()]), f"reset_parameters leaves {unfilled} unfilled"
    return model


def trained_model(run: Run, directory: RunDirectory, device: torch.device, step: int | None = None) -> Backbone:
    """The run's model as training left it, in evaluation mode; with train.steps=0, as it was initialised. Raises Damaged.

    step: after how many steps, where that checkpoint stays; None for the end.
    """
    model = new_model(run, device)
    if step is not None:
        load_kept(directory, model, step)
    elif run.config.train.steps or run.config.train.start_digest is not None:
        # An imported model has weights although it took no step.
        load_final(directory, model)
    return model.eval()


def check_kept(directory: RunDirectory, step: int) -> None:
    """Raises RequestError where no checkpoint of a run stays after so many steps."""
    steps = sorted(step_of(path) for path in kept(directory))
    if step not in steps:
        permitted = ", ".join(map(str, steps)) or "none, since the run was trained without compute.keep_every"
        raise RequestError(f"step={step}: run {directory.run_id} keeps no checkpoint of it, permitted are {permitted}")


def model_of(run: Run, results: Path, device: torch.device, backend: str, step: int | None = None) -> Backbone:
    """The trained model of a saved run, in evaluation mode.

    backend: what computes it here, "auto" the fastest that can. step: after how many steps, where that checkpoint stays; None
    for the end. Raises RequestError for weights that are not there, or not whole.
    """
    settled = settle(backend, computing_backends(run.config.model), device.type)
    run = replace(run, config=replace(run.config, backend=settled))
    directory = RunDirectory(results, run.run_id)
    if step is not None:
        check_kept(directory, step)
    try:
        return trained_model(run, directory, device, step)
    except Damaged as error:
        # A run that is trained makes no kept checkpoint again.
        again = "" if step is not None else f"; it is made again by: {directory.command()}"
        raise RequestError(f"{error}{again}") from error
