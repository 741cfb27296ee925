"""From the cells of a request to runs that are settled, checked and named; nothing is written."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from models.backends import settle
from suite.cost import Cost, model_cost
from suite.evaluations import Evaluation, planned_evaluations
from suite.identity import canonical_json, group_id, identity, run_id
from suite.match import match
from suite.request import RequestError, compose_config, expand
from tasks.build import build_task
from tasks.task import Task


@dataclass(frozen=True)
class Run:
    """One run to be made: its settled configuration, its names, what it costs, and what to evaluate afterwards."""

    config: dict[str, Any]
    run_id: str
    group_id: str
    data_fingerprint: str
    vocab_size: int
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
        }

    @property
    def facts(self) -> dict[str, Any]:
        """What stands beside every result of the run."""
        c, train = self.config, self.config["train"]
        return {
            **{key: value for key, value in self.cell.items() if key not in ("run_id", "group_id")},
            "backend": c["backend"],
            "data_fingerprint": self.data_fingerprint,
            "vocab_size": self.vocab_size,
            "parameters": self.cost.parameters,
            "state_bytes": self.cost.state_bytes,
            "flops_per_token": self.cost.flops_per_token,
            "seq_len": c["task"]["seq_len"],
            "train_steps": train["steps"],
            "batch_size": train["batch_size"],
            "train_tokens": train["steps"] * train["batch_size"] * c["task"]["seq_len"],
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
        known = runs.get(run.run_id)
        evaluations = (*known.evaluations, *run.evaluations) if known else run.evaluations
        runs[run.run_id] = replace(run, evaluations=tuple(dict.fromkeys(evaluations)))
    return list(runs.values())


def plan_cell(overrides: Sequence[str]) -> Run:
    """One run from its overrides: backend and sizes settled, every value checked, the model built on the meta device."""
    composed = compose_config(overrides)
    composed.backend = settle(composed.backend)
    check_values(composed)
    task = task_of(OmegaConf.to_container(composed, resolve=True))
    if composed.match.by != "none":
        composed = match(composed, _reference(composed, overrides), vocab_size=task.vocab_size)
    return settled_run(OmegaConf.to_container(composed, resolve=True), task)


def settled_run(config: dict[str, Any], task: Task) -> Run:
    """The run of a configuration in which nothing is left to settle."""
    try:
        cost = model_cost(config, vocab_size=task.vocab_size)
    except TypeError as error:
        raise RequestError(f"model={config['model']['name']}: {error}") from error
    fingerprint = task.fingerprint()
    whole = identity(config, data_fingerprint=fingerprint)
    evaluations = planned_evaluations(config["eval"], task)
    return Run(config, run_id(whole), group_id(whole), fingerprint, task.vocab_size, cost, evaluations)


def _reference(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The configuration that `match` measures against: the same request with the reference's model."""
    others = [o for o in overrides if not o.startswith(("model=", "model."))]
    reference = compose_config([*others, f"model={config.match.reference}"])
    reference.backend = config.backend
    return reference


def check_values(config: DictConfig) -> None:
    """Checks every number of a request that is not a model's or a task's own, and makes floats of them.

    Raises RequestError for one outside its range, naming it and what is permitted.
    """
    for key in ("size.d_model", "size.num_blocks", "size.mlp_dim", "task.seq_len", "train.steps", "train.batch_size"):
        _check_whole(config, key, low=1)
    for key in ("compute.threads", "eval.batch_size"):
        _check_whole(config, key, low=1)
    _check_whole(config, "seed", low=0, high=2**32 - 1)
    _check_whole(config, "train.warmup_steps", low=0, high=config.train.steps)
    if config.compute.jobs != "auto":
        _check_whole(config, "compute.jobs", low=1)
    for key, low in (("limit", 1), ("max_length", 2), ("num_fewshot", 0)):
        if config.eval[key] is not None:
            _check_whole(config, f"eval.{key}", low=low)
    for key in ("train.lr", "train.eps", "train.gradient_clip", "size.norm_eps", "size.logit_soft_cap"):
        _check_number(config, key, low=0.0, above=True)
    for key in (
        "train.weight_decay",
        "train.final_lr_fraction",
        "match.tolerance",
        "compute.log_seconds",
        "compute.checkpoint_seconds",
    ):
        _check_number(config, key, low=0.0, above=False)
    betas = config.train.betas
    if not (OmegaConf.is_list(betas) and len(betas) == 2 and all(isinstance(b, float) and 0 <= b < 1 for b in betas)):
        raise RequestError(f"train.betas={betas} is out of range, permitted are two numbers from 0 to below 1")
    if config.train.autocast not in ("none", "bfloat16"):
        raise RequestError(f"train.autocast={config.train.autocast} is unknown, permitted are none, bfloat16")
    if config.compute.device not in ("auto", "cpu", "cuda"):
        raise RequestError(f"compute.device={config.compute.device} is unknown, permitted are auto, cpu, cuda")
    if config.compute.device == "cuda" and not torch.cuda.is_available():
        raise RequestError("compute.device=cuda, but there is no CUDA device here; permitted are auto, cpu")
    if not config.model.pattern:
        raise RequestError("model.pattern is empty, permitted is a list of one mixer or more")


def _check_whole(config: DictConfig, key: str, *, low: int, high: int | None = None) -> None:
    value = OmegaConf.select(config, key)
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        permitted = f"from {low}" if high is None else f"from {low} to {high}"
        raise RequestError(f"{key}={value} is out of range, permitted are whole numbers {permitted}")


def _check_number(config: DictConfig, key: str, *, low: float, above: bool) -> None:
    value = OmegaConf.select(config, key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or value < low or (above and value == low):
        raise RequestError(f"{key}={value} is out of range, permitted are numbers {'above' if above else 'from'} {low:g}")
    # 1 and 1.0 are one number, and must give a run one name.
    OmegaConf.update(config, key, float(value))
