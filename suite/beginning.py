"""What a training begins with besides its settings: another run's trained weights, or the steps that another run has taken.

train.start_from names a run whose trained weights are the initial ones. What they are decides the numbers, so their digest is in
the new run's name, and which run they came from is not. train.continue_from names a run that has taken the same first steps, such
as a shorter one. It decides no number and is in no name: its kept checkpoint saves the steps up to it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conf.settings import Refusal, RequestError, flat, text
from suite.compute.interface import Interface, unfilled_backbone
from suite.compute.optimization import learning_rate
from suite.compute.settings import Train
from suite.request.identity import identity
from suite.request.schema import Config, saved_config
from suite.store.checkpoint import FINAL, final_weights, load_final
from suite.store.foreign import checked_line, parse_line, parse_yaml, read_lines
from suite.store.ids import the_run, trained_ids
from suite.store.keeping import Shared, kept, step_of
from suite.store.run_directory import READING, Damaged, RunDirectory

# What only decides the rates of later steps, and how many of these there are.
LATER = ("steps", "schedule", "decay_steps", "decay_share", "decay_shape", "final_lr", "final_lr_fraction", "tokens", "flops")


MAY_DIFFER = "differ in train.steps and in the rates of later steps alone"


def settled(config: Config, results: Path, *, interface: Interface, data_fingerprint: str) -> Config:
    """The configuration with the digest of the weights that it starts from. Raises RequestError for what it can't begin with."""
    train = config.train
    if train.start_from is not None and train.continue_from is not None:
        raise Refusal("train.continue_from", train.continue_from, "null with train.start_from")
    if train.start_from is None and train.start_digest is not None:
        raise Refusal("train.start_digest", train.start_digest, "null without train.start_from, of which it is told")
    if train.start_from is not None:
        return dataclasses.replace(config, train=_started(config, results, interface))
    if train.continue_from is not None:
        directory = _run("continue_from", train.continue_from, results)
        if not shared(config, results, data_fingerprint=data_fingerprint).steps:
            raise RequestError(_no_checkpoint(config, directory, data_fingerprint))
    return config


def _run(key: str, beginning: str, results: Path) -> RunDirectory:
    try:
        return RunDirectory(results, the_run(beginning, trained_ids(results), results))
    except RequestError as error:
        raise RequestError(f"train.{key}={beginning}: {error}") from error


def _started(config: Config, results: Path, interface: Interface) -> Train:
    train, typed = config.train, str(config.train.start_from)
    if train.steps == 0:
        raise Refusal("train.start_from", typed, "null with train.steps=0")
    directory = _run("start_from", typed, results)
    try:
        digest, shapes = final_weights(directory)
    except Damaged as error:
        raise RequestError(f"train.start_from={typed}: {error}; it is made again by: {directory.command()}") from error
    model = unfilled_backbone(interface, config.model, config.size, backend=config.backend, device=torch.device("meta"))
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in sorted(own.keys() | shapes.keys()):
        if own.get(name) != shapes.get(name):
            there, here = (list(found[name]) if name in found else "not there" for found in (shapes, own))
            raise RequestError(
                f"train.start_from={typed}: {name} is {there} in that run and {here} in this one; permitted are equals"
            )
    if train.start_digest not in (None, digest):
        raise Refusal("train.start_digest", train.start_digest, f"{digest}, the digest of run {directory.run_id}'s weights")
    return train.replace({"start_from": directory.run_id, "start_digest": digest})


def fill_first(config: Config, results: Path, model: nn.Module) -> None:
    """Gives a new model the weights that the run starts from, if they are another run's. Raises Damaged."""
    if config.train.start_from is None:
        return
    directory = RunDirectory(results, config.train.start_from)
    if final_weights(directory)[0] != config.train.start_digest:
        raise Damaged(f"checkpoint/{FINAL} of run {directory.run_id} is not what this run was to start from")
    load_final(directory, model)


def shared(config: Config, results: Path, *, data_fingerprint: str) -> Shared:
    """The kept checkpoints of train.continue_from that this run would come by. Raises RequestError where the runs differ.

    They are those after steps whose rates were equal up to there; all else that decides numbers has to be equal.
    """
    directory = _run("continue_from", str(config.train.continue_from), results)
    other, fingerprint = _config_of(directory)
    here, there = (dict(flat(_way(*each))) for each in ((config, data_fingerprint), (other, fingerprint)))
    for key in sorted(here.keys() | there.keys()):
        if here.get(key) != there.get(key):
            values = f"{text(there.get(key))} in that run and {text(here.get(key))} in this one"
            raise RequestError(f"train.continue_from={directory.run_id}: {key} is {values}; permitted are runs that {MAY_DIFFER}")
    common = _common_rates(other.train, config.train)
    validates = config.train.validate_steps
    # The last validation of the other run, where only its end made it due, has no part in this one.
    extra = other.train.steps if validates is not None and other.train.steps % validates else -1
    steps = (step_of(path) for path in kept(directory))
    return Shared(directory, tuple(step for step in steps if step <= common and step < config.train.steps and step != extra))


def _config_of(directory: RunDirectory) -> tuple[Config, str]:
    try:
        whole, written = directory.read()
        return saved_config(parse_yaml(written)), str(whole["facts"]["data_fingerprint"])
    except (Damaged, *READING) as error:
        raise RequestError(f"train.continue_from={directory.run_id}: {error}") from error


def _way(config: Config, data_fingerprint: str) -> dict[str, Any]:
    """What decides the numbers of every step but the rates of the later ones."""
    whole = identity(config, data_fingerprint=data_fingerprint, neutral=True)
    whole["train"] = {key: value for key, value in whole["train"].items() if key not in LATER}
    return whole


def _common_rates(one: Train, other: Train) -> int:
    """How many steps have the same rate in both trainings."""
    steps = min(one.steps, other.steps)
    return next((step for step in range(steps) if learning_rate(step, one) != learning_rate(step, other)), steps)


def _no_checkpoint(config: Config, directory: RunDirectory, data_fingerprint: str) -> str:
    steps = sorted(step_of(path) for path in kept(directory))
    said = f"train.continue_from={directory.run_id}"
    if not steps:
        return f"{said}: it keeps no checkpoint, permitted are runs that were trained with compute.keep_every"
    common = min(_common_rates(_config_of(directory)[0].train, config.train), config.train.steps - 1)
    return f"{said}: it keeps checkpoints after {text(steps)} steps, permitted are up to {common}, as far as both runs are equal"


def copied_log(source: RunDirectory, directory: RunDirectory, step: int) -> None:
    """Begins a run's log with the lines of another's up to a step; a line that is not whole is left out."""
    lines: list[Mapping[str, Any]] = []
    with contextlib.suppress(OSError, ValueError):
        for line in read_lines(source.path / "metrics.jsonl", source.root):
            with contextlib.suppress(ValueError):
                lines.append(parse_line(line, source.run_id))
    told = "".join(checked_line(line, directory.run_id) for line in lines if line["step"] <= step)
    if told and not os.path.lexists(directory.path / "metrics.jsonl"):
        with contextlib.suppress(OSError):
            directory.append("metrics.jsonl", told)
