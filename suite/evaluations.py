"""What can be measured on a trained model, each a stage of its own that can be added to a finished run later."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from models.backbone import Backbone
from models.mesa_layers import mesa_layers
from suite.identity import canonical_json, digest
from suite.request import RequestError
from suite.scoring import score_split, to_device
from suite.studies import decode, efficiency, internals, least_squares, length, repeats, solver
from suite.studies.subject import Subject
from tasks.language import Language
from tasks.task import Measurement, Task


@dataclass(frozen=True)
class Evaluation:
    """One stage: `name` says what is measured, `settings` (canonical JSON) everything that decides its numbers.

    options (canonical JSON) is what changes speed or place alone.
    """

    name: str
    settings: str
    options: str

    @property
    def file_name(self) -> str:
        return f"{self.name}-{digest(self.settings, 8)}.json"


STUDIES = {
    "solver": solver,
    "internals": internals,
    "length": length,
    "decode": decode,
    "repeats": repeats,
    "least_squares": least_squares,
    "efficiency": efficiency,
}
NAMES = ("cost", "position", "test", "lm_eval", *STUDIES)

# Validation examples on which the cost of a solver that stops early is measured.
COST_EXAMPLES = 16


def planned_evaluations(config: Mapping[str, Any], task: Task) -> tuple[Evaluation, ...]:
    """The stages that the `eval` of a run's configuration asks for and that apply to the run, each once.

    `cost` applies to all, `position` and `lm_eval` to language, `test` to a task with a test split; a study says so
    itself. lm_eval is one stage a name in eval.tasks, and a study one an entry of its list, so that adding another one
    later repeats nothing. Raises RequestError for a stage or benchmark that is unknown, and ValueError for an entry that
    a study does not permit.
    """
    asked = config["eval"]["stages"] or ()
    for name in asked:
        if name not in NAMES:
            raise RequestError(f"eval.stages has {name!r}, permitted are {', '.join(NAMES)}")
    applies = {"cost": True, "position": isinstance(task, Language), "test": "test" in task.splits}
    settings = {"task_version": task.version}
    stages = [_stage(name, settings, {}) for name in applies if name in asked and applies[name]]
    if "lm_eval" in asked and isinstance(task, Language):
        stages += _lm_eval_stages(config["eval"])
    shared = {**settings, "tokens": config["eval"]["study_tokens"]}
    for name, study in STUDIES.items():
        if name in asked:
            stages += [_stage(name, {**shared, **own}, {}) for own in study.planned(config, task)]
    return tuple(dict.fromkeys(stages))


def _stage(name: str, settings: Mapping[str, Any], options: Mapping[str, Any]) -> Evaluation:
    return Evaluation(name, canonical_json(settings), canonical_json(options))


def _lm_eval_stages(config: Mapping[str, Any]) -> list[Evaluation]:
    # Imported here: lm-eval takes seconds to import, and most requests do without it.
    from suite.lm_eval import check_shots
    from suite.lm_eval_names import task_versions

    versions = task_versions(config["tasks"] or "", config["include_path"])
    for name, version in versions.items():
        check_shots(name, version, config["include_path"], config["num_fewshot"], config["fewshot_seed"])
    options = {"include_path": config["include_path"], "batch_size": config["batch_size"]}
    shared = {key: config[key] for key in ("num_fewshot", "fewshot_seed", "limit", "max_length")}
    return [_stage("lm_eval", {"tasks": name, "version": version, **shared}, options) for name, version in versions.items()]


def evaluate(
    evaluation: Evaluation,
    model: Backbone,
    task: Task,
    config: Mapping[str, Any],
    *,
    batch_size: int,
    device: torch.device,
) -> Sequence[Measurement]:
    """Runs one stage on a trained model that stands on `device` in evaluation mode; task and config are its run's."""
    settings, options = json.loads(evaluation.settings), json.loads(evaluation.options)
    if evaluation.name in STUDIES:
        return STUDIES[evaluation.name].measure(Subject(model, task, config, device), settings)
    if evaluation.name == "cost" and not mesa_layers(model):
        # Only a solver that stops early depends on what it reads.
        flops = model.forward_flops_per_token(task.seq_len)
        return [Measurement("measured_flops_per_token", flops, "validation", {}, task.seq_len)]
    if evaluation.name == "cost":
        count = min(COST_EXAMPLES, task.num_examples("validation"))
        batch = to_device(task.batch("validation", range(count)), device)
        flops = model.measured_flops_per_token(batch.tokens, starts=batch.starts)
        return [Measurement("measured_flops_per_token", flops, "validation", {}, count * task.seq_len)]
    if evaluation.name == "position":
        scored = score_split(model, task, "validation", batch_size=batch_size, device=device)
        return task.measure_positions("validation", scored)
    if evaluation.name == "test":
        return [
            *task.measure("test", score_split(model, task, "test", batch_size=batch_size, device=device)),
            *task.references("test", reach=model.reach),
        ]
    from suite.lm_eval import evaluate_benchmarks
    from suite.lm_eval_names import task_versions

    name, include_path = settings["tasks"], options["include_path"]
    measurements = evaluate_benchmarks(
        model,
        task.tokenizer,
        tasks=name,
        include_path=include_path,
        num_fewshot=settings["num_fewshot"],
        limit=settings["limit"],
        batch_size=options["batch_size"],
        max_length=settings["max_length"],
        device=device,
        seed=settings["fewshot_seed"],
    )
    if task_versions(name, include_path)[name] != settings["version"]:
        raise ValueError(f"lm-eval task {name!r} changed since this command began; the same command evaluates it as it is now")
    return measurements
