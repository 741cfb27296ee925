"""From the cells of a request to runs that are settled, checked and named; nothing is written."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from models.backends import settle
from models.build import computing_backends
from suite.cost import Cost, model_cost
from suite.devices import select_device
from suite.evaluations import Evaluation, planned_evaluations
from suite.identity import canonical_json, group_id, identity, run_id
from suite.interface import Interface
from suite.match import match
from suite.ranges import check_values
from suite.request import RequestError, compose_config, expand, parse, values
from tasks.build import build_task
from tasks.efficiency import Efficiency
from tasks.task import Task

# What an experiment may vary in a mixer, and where its configuration has it.
MIXER_FACTS = {
    "forget_gate_init": "forget_gate_init",
    "forget_cap": "forget_cap",
    "regularizer_floor": "regularizer_floor",
    "solver_max_steps": "solver.max_steps",
    "solver_tolerance": "solver.tolerance",
    "solver_gradient": "solver.gradient",
    "random_steps": "random_steps",
}
# The same of a task.
TASK_FACTS = ("noise", "drift", "segment_len")


@dataclass(frozen=True)
class Run:
    """One run to be made: its settled configuration, its names, what it costs, and what to evaluate afterwards."""

    config: dict[str, Any]
    run_id: str
    group_id: str
    data_fingerprint: str
    interface: Interface
    cost: Cost
    evaluations: tuple[Evaluation, ...]

    @property
    def title(self) -> str:
        c = self.config
        return f"{c['model']['name']} {c['size']['name']} {c['task']['name']} seed {c['seed']}"

    @property
    def cell(self) -> dict[str, Any]:
        """The columns by which a result is found again."""
        c = self.config
        return {
            "run_id": self.run_id,
            "group_id": self.group_id,
            "model": c["model"]["name"],
            "model_label": c["model"]["label"],
            "size": c["size"]["name"],
            "task": c["task"]["name"],
            "data": c["task"]["data"]["name"] if "data" in c["task"] else "synthetic",
            "seed": c["seed"],
            "head_dim": c["size"]["head_dim"],
            "lr": c["train"]["lr"],
            "backend": c["backend"],
            **mixer_facts(c["model"]),
            **{fact: c["task"].get(fact) for fact in TASK_FACTS},
        }

    @property
    def facts(self) -> dict[str, Any]:
        """What stands beside every result of the run."""
        c, train = self.config, self.config["train"]
        return {
            **{key: value for key, value in self.cell.items() if key not in ("run_id", "group_id")},
            "data_fingerprint": self.data_fingerprint,
            **dataclasses.asdict(self.interface),
            "parameters": self.cost.parameters,
            "state_bytes": self.cost.state_bytes,
            "state_counted": "as held",
            "flops_per_token": self.cost.flops_per_token,
            "seq_len": c["task"]["seq_len"],
            "train_steps": train["steps"],
            "batch_size": train["batch_size"],
            "train_tokens": train["steps"] * train["batch_size"] * c["task"]["seq_len"],
        }


def mixer_facts(model: Mapping[str, Any]) -> dict[str, Any]:
    """The MIXER_FACTS of a model, each from the first mixer of its pattern that has it; None where none has."""
    mixers = [OmegaConf.create(model[name]) for name in model["pattern"]]
    return {
        name: next((value for mixer in mixers if (value := OmegaConf.select(mixer, key)) is not None), None)
        for name, key in MIXER_FACTS.items()
    }


@functools.cache
def _task(canonical: str, seed: int) -> Task:
    return build_task(json.loads(canonical), seed=seed)


def task_of(config: Mapping[str, Any]) -> Task:
    """The task of a settled configuration; built once, since reading its text takes seconds."""
    try:
        return _task(canonical_json(config["task"]), config["seed"])
    except (TypeError, OSError) as error:
        raise RequestError(f"task={config['task']['name']}: {error}") from error


def plan(arguments: Sequence[str]) -> list[Run]:
    """The runs of a request, each once, in the order of its cells.

    Raises RequestError, before any run is written.
    """
    runs: dict[str, Run] = {}
    for cell in expand(arguments):
        try:
            run = plan_cell(cell)
        except ValueError as error:
            # What is known only where a model or a task is built: a head that does not divide, a text that is too short.
            raise RequestError(str(error)) from error
        except (TypeError, OverflowError, MemoryError, RuntimeError) as error:
            # A size that no memory holds or no tensor counts.
            raise RequestError(f"{' '.join(cell)} can't be built: {(str(error) or 'out of memory').splitlines()[0]}") from error
        known = runs.get(run.run_id)
        if known:
            check_one_place(known.config["compute"], run.config["compute"])
        evaluations = (*known.evaluations, *run.evaluations) if known else run.evaluations
        runs[run.run_id] = replace(run, evaluations=tuple(dict.fromkeys(evaluations)))
    check_uses(arguments, list(runs.values()))
    return list(runs.values())


def check_uses(arguments: Sequence[str], runs: Sequence[Run]) -> None:
    """Raises RequestError for a text or an evaluation that was typed and that no run of the request has a use for."""
    first, stages = runs[0].title, {evaluation.name for run in runs for evaluation in run.evaluations}
    for override in parse(arguments):
        group, _, key = override.key_or_group.partition(".")
        # What is the default may always be said.
        if group == "data" and override.input_line != "data=stdlib" and not any("data" in run.config["task"] for run in runs):
            raise RequestError(f"{override.input_line}: no run reads a text, not {first}; permitted with it is data=stdlib")
        for value in values(override) if group == "eval" and key in ("", "stages") else ():
            asked = compose_config([f"{override.key_or_group}={value}"]).eval.stages
            idle = [stage for stage in asked if stage not in stages]
            if idle and len(idle) == len(asked):
                raise RequestError(f"{override.key_or_group}={value}: {idle[0]} does not apply to any run, not to {first}")


def check_one_place(compute: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Raises RequestError where two cells of one run ask for two devices or numbers of threads: it is computed once."""
    for key in ("device", "threads"):
        if compute[key] != other[key]:
            raise RequestError(f"compute.{key} is {compute[key]} and {other[key]} for one run, permitted is one value a request")


def plan_cell(overrides: Sequence[str]) -> Run:
    """One run from its overrides: backend and sizes settled, every value checked, the model built on the meta device."""
    composed = compose_config(overrides)
    check_values(composed)
    model = OmegaConf.to_container(composed, resolve=True)["model"]
    composed.backend = settle(composed.backend, computing_backends(model), select_device(composed.compute.device).type)
    task = task_of(OmegaConf.to_container(composed, resolve=True))
    # A task numbers itself where its settings decide; a configuration with a greater number renames.
    composed.task.version = max(composed.task.version, task.version)
    if composed.train.steps == 0 and not isinstance(task, Efficiency):
        raise RequestError(f"train.steps=0 is out of range, permitted with task={composed.task.name} are whole numbers from 1")
    if composed.match.by != "none":
        composed = match(composed, _reference(composed, overrides), interface=task.interface)
    return settled_run(OmegaConf.to_container(composed, resolve=True), task)


def settled_run(config: dict[str, Any], task: Task) -> Run:
    """The run of a configuration in which nothing is left to settle."""
    cost = model_cost(config, interface=task.interface)
    fingerprint = task.fingerprint()
    whole = identity(config, data_fingerprint=fingerprint)
    evaluations = planned_evaluations(config, task)
    return Run(config, run_id(whole), group_id(whole), fingerprint, task.interface, cost, evaluations)


def _reference(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The configuration that `match` measures against: the same request with the reference's model."""
    others = [o for o in overrides if not o.startswith(("model=", "model."))]
    reference = compose_config([*others, f"model={config.match.reference}"])
    check_values(reference)
    # What it costs is the same on every backend, and not every backend computes it.
    reference.backend = "torch"
    return reference
