"""From the cells of a request to runs that are settled, checked and named; nothing is written."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from conf.settings import RequestError
from models.backends import settle
from models.build import NO_MIXERS, Model, computing_backends
from suite.beginning import settled
from suite.compute.interface import Interface
from suite.compute.settings import Compute, check_one_place
from suite.evaluation.stages import planned_stages
from suite.machine.devices import select_device
from suite.request.compose import Composer, compose_one
from suite.request.cost import Cost, model_cost
from suite.request.identity import flat_settings, group_id, identity, run_id
from suite.request.length import steps_of_flops
from suite.request.match import match
from suite.request.overrides import Request, read_request, values, whose
from suite.request.places import Paths
from suite.request.pretrained import settled as as_saved
from suite.request.rates import DefaultRate, told
from suite.request.recipes import hint
from suite.request.schema import Composed, Config
from suite.stage import Stage
from suite.store.foreign import say
from tasks.build import build_task
from tasks.task import Task

# What planning finds out of the runs that a training begins with.
SETTLED = ("start_from", "start_digest")


@dataclass(frozen=True)
class Run:
    """One run to be made: its settled configuration, its names, what it costs, and what to evaluate afterwards.

    compute, paths, experiment, protocol: what the request asks besides. written: the whole as its config.yaml holds it.
    title: what it is called beside the other runs of its request.
    """

    config: Config
    run_id: str
    group_id: str
    data_fingerprint: str
    interface: Interface
    cost: Cost
    stages: tuple[Stage, ...]
    compute: Compute
    paths: Paths
    experiment: str | None
    protocol: str
    title: str
    written: Mapping[str, Any] = dataclasses.field(repr=False)

    @property
    def names(self) -> dict[str, Any]:
        """What a run is called by."""
        c = self.config
        return {
            "run_id": self.run_id,
            "group_id": self.group_id,
            "model": c.model.name,
            "model_label": c.model.label,
            "size": c.size.name,
            "task": c.task.name,
            "data": c.data_name,
            "seed": c.seed,
            "backend": c.backend,
            "protocol": self.protocol,
        }

    @property
    def cell(self) -> dict[str, Any]:
        """The columns by which a result is found again: names and every setting."""
        return self.names | flat_settings(self.config)

    @property
    def facts(self) -> dict[str, Any]:
        """What stands beside every result of the run."""
        c, train, matched = self.config, self.config.train, self.written["match"]
        return {
            **{key: value for key, value in self.names.items() if key not in ("run_id", "group_id")},
            "head_dim": c.size.head_dim,
            "lr": train.lr,
            "data_fingerprint": self.data_fingerprint,
            **dataclasses.asdict(self.interface),
            "parameters": self.cost.parameters,
            "state_bytes": self.cost.state_bytes,
            "state_counted": "as held",
            "flops_per_token": self.cost.flops_per_token,
            "seq_len": c.task.seq_len,
            "train_steps": train.steps,
            "batch_size": train.batch_size,
            "train_tokens": train.steps * train.batch_size * c.task.seq_len,
            "matched_by": matched["by"],
            "match_reference": matched["reference"],
            "match_tolerance": matched["tolerance"],
        }


def task_of(config: Config) -> Task:
    """The task of a configuration; built once, since reading a text takes seconds. Raises RequestError."""
    return _task(config.task, config.seed)


@functools.cache
def _task(settings: Task.Settings, seed: int) -> Task:
    try:
        return build_task(settings, seed=seed)
    except (TypeError, OSError) as error:
        raise RequestError(f"task={settings.name}: {error}") from error


@functools.cache
def planned_task(settings: Task.Settings) -> tuple[Task, str]:
    """A task for what planning asks, which no seed decides, and the fingerprint of its data. Raises ValueError."""
    task = _task(settings, 0)
    task.check()
    return task, task.fingerprint()


def plan(arguments: Sequence[str]) -> list[Run]:
    """The runs of a command line, each once, in the order of its cells. Raises RequestError, before any run is written."""
    return plan_request(read_request(arguments))


def plan_request(request: Request) -> list[Run]:
    """The runs of a request, as `plan`. Says which rate models take that have none, and which recipe a size is meant for."""
    runs: dict[str, Run] = {}
    planner = _Planner(Composer(request.cells))
    for cell in request.cells:
        try:
            run = planner.run(cell)
        except ValueError as error:
            # What is known only where a model or a task is built: a head that does not divide, a text that is too short.
            raise RequestError(f"{error}{whose(str(error), cell, request)}") from error
        except (TypeError, OverflowError, MemoryError, RuntimeError) as error:
            # A size that no memory holds or no tensor counts.
            raise RequestError(f"{' '.join(cell)} can't be built: {(str(error) or 'out of memory').splitlines()[0]}") from error
        known = runs.get(run.run_id)
        if known:
            check_one_place(known.compute, run.compute)
        stages = (*known.stages, *run.stages) if known else run.stages
        runs[run.run_id] = replace(run, stages=tuple(dict.fromkeys(stages)))
    check_uses(request, list(runs.values()))
    for line in (*planner.hints, *told(planner.default_rates)):
        say(line)
    return told_apart(list(runs.values()))


def cell_runs(request: Request) -> list[Run]:
    """The run of every cell of a request that `plan_request` has planned, in order."""
    planner = _Planner(Composer(request.cells))
    return [planner.run(cell) for cell in request.cells]


def told_apart(runs: Sequence[Run]) -> list[Run]:
    """The runs of one request, each with what varies within the request in its title."""
    if len(runs) == 1:
        return list(runs)
    # Imported here: pandas takes a while, and a single run has nothing to be told from.
    from suite.request.titles import titles

    return [replace(run, title=title) for run, title in zip(runs, titles([run.config for run in runs]), strict=True)]


def check_uses(request: Request, runs: Sequence[Run]) -> None:
    """Raises RequestError for a text, an evaluation or a value of a mixer that was typed and that no run has a use for."""
    first, stages = runs[0].title, {stage.evaluation for run in runs for stage in run.stages}
    reads_text = any(run.config.data_name != "synthetic" for run in runs)
    for override in request.overrides:
        group, _, key = override.key_or_group.partition(".")
        # What is the default may always be said.
        if group == "data" and override.input_line != "data=stdlib" and not reads_text:
            raise RequestError(f"{override.input_line}: no run reads a text, not {first}; permitted with it is data=stdlib")
        mixer = key.partition(".")[0] if group == "model" else ""
        if mixer not in NO_MIXERS and not any(mixer in run.config.model.pattern for run in runs):
            raise RequestError(f"{override.input_line}: no run has {mixer} in its pattern, not {first}")
        for value in values(override) if group == "eval" and key in ("", "stages") else ():
            asked = compose_one([f"{override.key_or_group}={value}"]).evaluation["stages"]
            idle = [stage for stage in asked if stage not in stages]
            if idle and len(idle) == len(asked):
                raise RequestError(f"{override.key_or_group}={value}: {idle[0]} does not apply to any run, not to {first}")


def check_compute(config: Config, compute: Compute) -> None:
    """Raises RequestError for a device that is not here, and a CUDA graph of steps that differ, or of a CPU's."""
    if compute.device == "cuda" and not torch.cuda.is_available():
        raise RequestError("compute.device=cuda, but there is no CUDA device here; permitted are auto, cpu")
    if config.train.optimizer == "muon" and compute.parallel == "fsdp":
        raise RequestError("compute.parallel=fsdp, permitted with train.optimizer=muon are none and ddp: it needs whole matrices")
    if compute.cuda_graph is not True:
        return
    if config.train.optimizer == "muon":
        raise RequestError("compute.cuda_graph=true, permitted with train.optimizer=muon are auto and false")
    for key in (name for mixer in config.model.mixers for name in mixer.drawn_by_step):
        raise RequestError(f"compute.cuda_graph=true, permitted with {key} are auto and false: steps differ")
    if select_device(compute.device).type != "cuda":
        raise RequestError("compute.cuda_graph=true, permitted on a CPU are auto and false")


class _Planner:
    """Plans the cells of one request; what several cells share is worked out once."""

    def __init__(self, composer: Composer) -> None:
        self._composer = composer
        self.default_rates: list[DefaultRate] = []
        self.hints: dict[str, None] = {}
        self._sizes: dict[Any, Mapping[str, int]] = {}
        self._stages: dict[Any, tuple[Stage, ...]] = {}

    def run(self, cell: Sequence[str]) -> Run:
        """One run from its overrides: backend and sizes settled, every value checked, the model built on the meta device."""
        composed = self._composer.compose(cell)
        if composed.default_rate is not None:
            self.default_rates.append(composed.default_rate)
        check_compute(composed.config, composed.compute)
        config = composed.config
        if line := hint(cell, config):
            self.hints[line] = None
        backend = _settled(config.backend, config.model, select_device(composed.compute.device).type)
        task, fingerprint = planned_task(config.task)
        composed = as_saved(replace(composed, config=replace(config, backend=backend)), task)
        sizes = {} if composed.match.by == "none" else self._matched(composed, cell, task)
        steps = None if composed.flops is None else self._steps(composed.flops, cell, sizes, backend, task)
        if sizes or steps is not None:
            composed = self._composer.compose(cell, sizes, steps=steps)
        # A task numbers itself where its settings decide; a configuration with a greater number renames.
        version = max(config.task.version, task.version)
        numbered = config.task if version == config.task.version else config.task.replace({"version": version})
        config = replace(composed.config, backend=backend, task=numbered)
        config = settled(config, Path(composed.paths.results), interface=task.interface, data_fingerprint=fingerprint)
        whole = identity(config, data_fingerprint=fingerprint)
        return Run(
            config=config,
            run_id=run_id(whole),
            group_id=group_id(whole),
            data_fingerprint=fingerprint,
            interface=task.interface,
            cost=model_cost(config, interface=task.interface),
            stages=self._planned_stages(replace(composed, config=config), task),
            compute=composed.compute,
            paths=composed.paths,
            experiment=composed.experiment,
            protocol=composed.protocol.name,
            title=config.title,
            written={
                **composed.written,
                "backend": backend,
                "task": {**composed.written["task"], "version": version},
                "train": {**composed.written["train"], **{key: getattr(config.train, key) for key in SETTLED}},
            },
        )

    def _steps(self, flops: float, cell: Sequence[str], sizes: Mapping[str, int], backend: str, task: Task) -> int:
        """The steps of a cell that cost so many FLOPs with its model of these sizes."""
        config = replace(self._composer.compose(cell, sizes).config, backend=backend)
        per_token = model_cost(config, interface=task.interface).flops_per_token
        per_step = config.train.batch_size * config.task.seq_len
        return steps_of_flops(flops, tokens_per_step=per_step, flops_per_token=per_token)

    def _matched(self, composed: Composed, cell: Sequence[str], task: Task) -> Mapping[str, int]:
        """The sizes that match the cell to the same request with the reference's model."""
        config, match_ = composed.config, composed.match
        key = config.model, config.size, config.task, config.train.autocast, config.backend, match_
        if key not in self._sizes:
            others = [each for each in cell if not each.startswith(("model=", "model.", "+model."))]
            reference = self._composer.compose([*others, f"model={match_.reference}"]).config
            # Every backend has the same cost, and not every backend computes the reference.
            cost = model_cost(replace(reference, backend="torch"), interface=task.interface)
            resized = functools.partial(self._composer.compose, cell)
            self._sizes[key] = match(composed, cost, interface=task.interface, resized=resized)
        return self._sizes[key]

    def _planned_stages(self, composed: Composed, task: Task) -> tuple[Stage, ...]:
        config, asked = composed.config, repr(composed.evaluation)
        key = config.model, config.size, config.task, config.train.autocast, config.backend, composed.compute, asked
        if key not in self._stages:
            self._stages[key] = planned_stages(config, composed.compute, composed.evaluation, task)
        return self._stages[key]


@functools.cache
def _settled(backend: str, model: Model, device: str) -> str:
    return settle(backend, computing_backends(model), device)
