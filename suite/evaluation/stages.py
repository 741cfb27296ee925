"""What can be measured on a trained model, each a stage of its own that can be added to a finished run later.

A study is a module of suite/evaluation/studies with `planned` and `measure`, found there by its name.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

from conf.settings import Settings, fields, unknown, with_neutral
from models.mesa.layers import mesa_layers
from suite.compute.scoring import score_split, to_device
from suite.compute.settings import Compute
from suite.evaluation import studies
from suite.evaluation.settings import Asked, Benchmarks, Eval
from suite.evaluation.studies.subject import Subject
from suite.request.schema import Config
from suite.stage import Stage
from tasks.task import Measurement, Task

# Validation examples on which the cost of a solver that stops early is measured.
COST_EXAMPLES = 16
# Examples scored at once; the scores agree to rounding for any number.
BATCH_SIZE = 64


@functools.cache
def studies_by_name() -> dict[str, ModuleType]:
    """The studies, by the names of their modules."""
    names = sorted(module.name for module in pkgutil.iter_modules(studies.__path__))
    modules = {name: importlib.import_module(f"{studies.__name__}.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "planned") and hasattr(module, "measure")}


def read_eval(values: Mapping[str, Any]) -> tuple[Eval, dict[str, Settings]]:
    """The settings in conf/eval: what all evaluations share, and by study its own. Raises RequestError."""
    kinds = {name: getattr(module, "Settings", Settings) for name, module in studies_by_name().items()}
    owner = {field: name for name, kind in kinds.items() for field in fields(kind)}
    known = {*fields(Eval), *owner}
    for key in values:
        if key not in known:
            raise unknown("key", f"eval.{key}", [f"eval.{each}" for each in sorted(known)])
    shared = Eval.read({key: value for key, value in values.items() if key in fields(Eval)}, "eval")
    for name in shared.stages:
        if name not in stage_names():
            raise unknown("evaluation in eval.stages", name, stage_names())
    own = {
        name: kind.read({key: value for key, value in values.items() if owner.get(key) == name}, "eval")
        for name, kind in kinds.items()
        if name in shared.stages or any(owner.get(key) == name for key in values)
    }
    return shared, own


@functools.cache
def stage_names() -> tuple[str, ...]:
    """The permitted names of eval.stages."""
    return (*STAGES, *studies_by_name())


def planned_stages(config: Config, compute: Compute, values: Mapping[str, Any], task: Task) -> tuple[Stage, ...]:
    """The stages that the `eval` section of a request asks for and that apply to the run, each once.

    lm_eval is one stage a name in eval.tasks, and a study one an entry of its list, so that adding another one later
    repeats nothing. Raises RequestError for a stage or benchmark that is unknown, and ValueError for an entry that a study
    does not permit.
    """
    shared, own = read_eval(values)
    settings, stages = {"task_version": task.version}, []
    for name, (applies, _) in STAGES.items():
        if name in shared.stages and applies(task):
            planned = _benchmarks(shared) if name == "lm_eval" else [({}, {})]
            stages += [Stage.of(name, {**settings, **each}, options) for each, options in planned]
    settings["tokens"] = shared.study_tokens
    for name, study in studies_by_name().items():
        if name in shared.stages:
            asked = Asked(config, compute, task, shared.study_tokens, own[name])
            # What changes place or speed alone, of a study that has such.
            aside: Callable[[Asked, Mapping[str, Any]], dict[str, Any]] = getattr(study, "options", lambda asked, planned: {})
            stages += [Stage.of(name, {**settings, **each}, aside(asked, each)) for each in study.planned(asked)]
    return tuple(dict.fromkeys(stages))


def _benchmarks(shared: Eval) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The settings and the options of a stage for every benchmark that is asked for."""
    # Imported here: lm-eval takes seconds to import, and most requests do without it.
    from suite.evaluation.lm_eval import check_answers, check_shots
    from suite.evaluation.lm_eval_names import check_data, task_versions

    places = shared.include_path, shared.data_root
    check_data(shared.tasks, *places, shared.num_fewshot)
    versions = task_versions(shared.tasks, *places, shared.num_fewshot)
    for name, version in versions.items():
        check_answers(name, shared.include_path, shared.repeats)
        check_shots(name, version, shared.include_path, shared.num_fewshot, shared.fewshot_seed, shared.data_root)
    options = {"include_path": shared.include_path, "data_root": shared.data_root, "batch_size": shared.batch_size}
    asked = {key: getattr(shared, key) for key in ("num_fewshot", "fewshot_seed", "limit", "max_length")}
    # Stages that were measured before these keys existed keep their names.
    named = shared.named(neutral=False)
    asked |= {key: named[key] for key in ("temperature", "repeats", "sample_seed") if key in named}
    for name, version in versions.items():
        yield {"tasks": name, "version": version, **asked}, options


def evaluate(stage: Stage, subject: Subject) -> Sequence[Measurement]:
    """Runs one stage on a trained model that stands on its device in evaluation mode.

    What is measured after a step of the training says so in its slices.
    """
    name = stage.evaluation
    measure = STAGES[name][1] if name in STAGES else studies_by_name()[name].measure
    measured = measure(subject, json.loads(stage.settings) | json.loads(stage.options))
    if stage.step is None:
        return measured
    return [dataclasses.replace(each, slice={**each.slice, "step": stage.step}) for each in measured]


def _cost(subject: Subject, settings: Mapping[str, Any]) -> list[Measurement]:
    model, task = subject.model, subject.task
    if not mesa_layers(model):
        # Only a solver that stops early depends on what it reads.
        flops = model.forward_flops_per_token(task.seq_len)
        return [Measurement("measured_flops_per_token", flops, "validation", {}, task.seq_len)]
    count = min(COST_EXAMPLES, task.num_examples("validation"))
    batch = to_device(task.batch("validation", range(count)), subject.device)
    flops = model.measured_flops_per_token(batch.tokens, starts=batch.starts)
    return [Measurement("measured_flops_per_token", flops, "validation", {}, count * task.seq_len)]


def _position(subject: Subject, settings: Mapping[str, Any]) -> list[Measurement]:
    scored = score_split(subject.model, subject.task, "validation", batch_size=BATCH_SIZE, device=subject.device)
    return subject.task.measure_positions("validation", scored)


def _test(subject: Subject, settings: Mapping[str, Any]) -> list[Measurement]:
    model, task = subject.model, subject.task
    scored = score_split(model, task, "test", batch_size=BATCH_SIZE, device=subject.device)
    return [*task.measure("test", scored), *task.references("test", reach=model.reach)]


def _lm_eval(subject: Subject, settings: Mapping[str, Any]) -> Sequence[Measurement]:
    from suite.evaluation.lm_eval import evaluate_benchmarks
    from suite.evaluation.lm_eval_names import task_versions

    name, given = settings["tasks"], {key: settings[key] for key in fields(Benchmarks) if key in settings}
    asked = Benchmarks.read(with_neutral(Benchmarks, given), "eval")
    measurements = evaluate_benchmarks(
        subject.model, subject.task.tokenizer, asked, device=subject.device, keep=subject.samples.append
    )
    if task_versions(name, asked.include_path, asked.data_root, asked.num_fewshot)[name] != settings["version"]:
        raise ValueError(f"lm-eval task {name!r} changed since this command began; the same command evaluates it as it is now")
    return measurements


STAGES: dict[str, tuple[Callable[[Task], bool], Callable[[Subject, Mapping[str, Any]], Sequence[Measurement]]]] = {
    "cost": (lambda task: True, _cost),
    "position": (lambda task: task.measures_positions, _position),
    "test": (lambda task: "test" in task.splits, _test),
    "lm_eval": (lambda task: task.tokenizer is not None, _lm_eval),
}
"""Evaluations of every model: whether each applies to a task, and what it measures."""
