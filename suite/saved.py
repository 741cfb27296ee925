"""Runs that stand in a results store, and their trained models. Reads data alone: a stranger's store is safe to open."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import torch

from models.backbone import Backbone
from models.backends import settle
from models.build import computing_backends
from suite.request.cost import Cost
from suite.store.foreign import parse_yaml, reason_of
from suite.request.identity import group_id, identity, run_id, with_neutral
from suite.compute.interface import interface_of
from suite.plan import Run, task_of
from suite.request.overrides import RequestError, unknown
from suite.store.run_directory import READING, Damaged, RunDirectory
from suite.running.train import trained_model
from tasks.language import WithoutText
from tasks.task import Task


def saved_run(results: Path, beginning: str) -> Run:
    """A run from the beginning of its id, with no evaluations.

    Raises RequestError for one that is not there, not trained or not readable.
    """
    known = trained_ids(results)
    matching = [name for name in known if beginning and name.startswith(beginning)]
    if not known:
        raise RequestError(f"no trained runs under {results}")
    if len(matching) != 1:
        raise unknown("run", beginning, known)
    directory = RunDirectory(results, matching[0])
    try:
        directory.read_stage(None)
        return _read(directory)
    except Damaged as error:
        raise RequestError(f"{error}; it is made again by: {directory.command()}") from error


def _read(directory: RunDirectory) -> Run:
    """Raises Damaged where what the folder says of itself does not agree with its name."""
    whole, written = directory.read()
    try:
        config, facts = with_neutral(parse_yaml(written)), whole["facts"]
        named = identity(config, data_fingerprint=facts["data_fingerprint"])
        if run_id(named) != directory.run_id:
            raise ValueError("its configuration belongs to a run of another name")
        return Run(
            config=config,
            run_id=directory.run_id,
            group_id=group_id(named),
            data_fingerprint=facts["data_fingerprint"],
            interface=interface_of(facts),
            cost=Cost(facts["parameters"], facts["state_bytes"], facts["flops_per_token"]),
            evaluations=(),
        )
    except READING as error:
        raise Damaged(f"run {directory.run_id} can't be read: {reason_of(error)}") from error


def trained_ids(results: Path) -> list[str]:
    folders = (path.parent.name for path in (results / "runs").glob("*/train.json"))
    return sorted(name for name in folders if re.fullmatch(r"[0-9a-f]{12}", name))


def saved_task(run: Run) -> Task:
    """The task that a saved run was trained on; where its text is not here, or another one, a task without text.

    Raises RequestError where its splits, or its tokenizer, are not what they were.
    """
    try:
        task = task_of(run.config)
        reason = (
            "" if task.fingerprint() == run.data_fingerprint else "its text or tokenizer is another one than it was trained on"
        )
    except ValueError as error:
        reason = str(error)
    if reason:
        return _without_text(run, f"run {run.run_id}: {reason}")
    if run.config["task"]["version"] < task.version:
        raise RequestError(f"run {run.run_id}: its splits are those of an older version of {task.name}, so it can't be scored")
    return task


def _without_text(run: Run, reason: str) -> Task:
    settings = run.config["task"]
    if "data" not in settings:
        raise RequestError(reason)
    task = WithoutText(seq_len=settings["seq_len"], data=settings["data"], reset_at_bos=settings["reset_at_bos"], reason=reason)
    if task.vocab_size != run.interface.vocab_size:
        raise RequestError(f"run {run.run_id}: its tokenizer has {run.interface.vocab_size} ids, this one has {task.vocab_size}")
    return task


def load_model(beginning: str, results: str | Path = "results", device: str = "cpu", backend: str = "auto") -> Backbone:
    """The trained model of a run (or of the beginning of its id), in evaluation mode.

    backend: what computes it here, "auto" the fastest that can, whatever it was trained with: the weights are the same.
    Raises RequestError, a ValueError, for a run that is not there or not trained; ValueError for a backend that can't run.
    """
    run = saved_run(Path(results), beginning)
    settled = settle(backend, computing_backends(run.config["model"]), torch.device(device).type)
    run = replace(run, config={**run.config, "backend": settled})
    directory = RunDirectory(Path(results), run.run_id)
    try:
        return trained_model(run, directory, torch.device(device))
    except Damaged as error:
        raise RequestError(f"{error}; it is made again by: {directory.command()}") from error
