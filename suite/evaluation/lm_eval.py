"""Benchmarks of the Language Model Evaluation Harness (lm-eval) on a model of this suite.

The only module that imports lm-eval, which takes seconds: import it where the stage runs.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import datasets
import torch
from lm_eval import evaluator
from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.evaluator_utils import get_sample_size
from lm_eval.tasks import TaskManager

from conf.settings import text
from models.backbone.language_model import LanguageModel
from suite.evaluation.lm_eval_adapter import BackboneLM, TooLong, check_generation
from suite.evaluation.lm_eval_blame import Blame, quiet
from suite.evaluation.lm_eval_data import Reading
from suite.evaluation.lm_eval_names import benchmark_names, data_gaps, is_local, leaves, longest_request, task_manager
from suite.evaluation.lm_eval_rows import answers_of, group_rows, rows_of
from suite.evaluation.settings import Benchmarks
from tasks.paper.needles import measured_by
from tasks.task import Measurement
from tasks.tokenizer import Tokenizer


class TooFewExamples(ValueError):
    """A task has fewer examples than shots are asked for."""


def evaluate_benchmarks(
    model: LanguageModel,
    tokenizer: Tokenizer,
    asked: Benchmarks,
    *,
    device: torch.device | str,
    keep: Callable[[dict[str, Any]], None] = lambda sample: None,
) -> list[Measurement]:
    """Scores of lm-eval tasks, one row per (task, metric), on the split that the task names its test.

    Slices: benchmark, shots, and metric_filter where a task post-processes answers. Beside multiple choice stand `chance` and
    `accuracy_per_token`. A group that says how its tasks are averaged has rows of its own. Under a max_length a row `truncated`
    gives the share of requests that were cut. Documents that the model cannot read even so are left out, and a task whose data
    are not in data_root is not scored: rows `left_out` and `missing_data`, whose slice `missing` says what is missing.
    keep: is given every document with what it was answered.
    Raises ValueError for an unknown task or folder, other data that cannot be read, and requests that cannot be served.
    """
    names = benchmark_names(asked.tasks)
    manager = task_manager(names, asked.include_path)
    gaps = data_gaps(names, manager, asked.data_root, asked.num_fewshot)
    longest = [asked.max_length, *(longest_request(name, manager.task_index) for name in names)]
    max_length = min((each for each in longest if each is not None), default=None)
    lm = BackboneLM(
        model,
        tokenizer,
        batch_size=asked.batch_size,
        max_length=max_length,
        temperature=asked.temperature,
        sample_seed=asked.sample_seed,
        device=device,
    )
    local = bool(asked.data_root) or all(is_local(config) for name in names for _, config in leaves(name, manager.task_index))
    rows = [_gap(leaf, manager, line) for leaf, line in gaps.items()]
    with quiet(), _reading_anew(local), Reading(asked.data_root), measured_by(tokenizer):
        loaded, groups = _load_with_shots(names, manager, asked.num_fewshot, asked.fewshot_seed, gaps)
        scores: dict[str, Mapping[str, Any]] = {}
        # One after another, so that what fails has a name.
        for name, task in loaded.items():
            with Blame(name, "cannot be scored"):
                if asked.repeats is not None and task.OUTPUT_TYPE == "generate_until":
                    task.set_config(key="repeats", value=asked.repeats)
                results, reasons = _scored(lm, name, task, asked)
                scores[name] = results["results"][name]
                rows += rows_of(task, results, lm, reasons)
                for sample in answers_of(task, results, lm):
                    keep(sample)
        return rows + list(group_rows(groups, rows, scores))


def _scored(lm: BackboneLM, name: str, task: Task, asked: Benchmarks) -> tuple[Mapping[str, Any], dict[int, str]]:
    """lm-eval's results, and why documents were left out, by their numbers. Raises TooLong where none can be read."""
    kept: Sequence[int] = range(min(len(task.eval_docs), get_sample_size(task, asked.limit) or sys.maxsize))
    reasons: dict[int, str] = {}
    _check_choices(name, task, len(kept))
    while True:
        given = {"samples": {name: kept}} if reasons else {"limit": asked.limit}
        try:
            return evaluator.evaluate(lm, {"tasks": {name: task}}, bootstrap_iters=0, **given), reasons
        except TooLong as error:
            reasons |= {kept[i]: reason for i, reason in error.reasons.items()}
            kept = [i for i in kept if i not in reasons]
            if not kept:
                raise
            lm.truncated.clear()
            task.set_fewshot_seed(seed=asked.fewshot_seed)


def _check_choices(name: str, task: Task, count: int) -> None:
    """Raises ValueError, naming the document, where one of the first `count` has no choices or a target that is none of them.

    lm-eval counts such a target as answered wrongly, as the hidden ones (-1) of a public test split.
    """
    if task.OUTPUT_TYPE != "multiple_choice":
        return
    # A task with a way of its own to score may keep what is right elsewhere.
    is_own = callable(task.config.process_results) or type(task).process_results is not ConfigurableTask.process_results
    for number, document in enumerate(itertools.islice(task.eval_docs, count)):
        with Blame(name, f"cannot be scored: document {number}"):
            choices = task.doc_to_choice(document)
            if not all(isinstance(choice, str) for choice in choices):
                raise ValueError(f"its choices {text(choices)} are not all text")
            target = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
            permitted = {*choices, *range(len(choices))}
            if not is_own and not permitted.issuperset(target if isinstance(target, list) else [target]):
                raise ValueError(f"its target {text(target)} is none of its {len(choices)} choices")


def _gap(task: str, manager: TaskManager, line: str) -> Measurement:
    """The row of a task that was not scored. line: why."""
    shots = (manager.task_index[task].cfg or {}).get("num_fewshot") or 0
    return Measurement("missing_data", 1.0, "test", {"benchmark": task, "shots": shots, "missing": line}, 1)


@functools.cache
def check_shots(
    name: str, version: str, include_path: str | None, num_fewshot: int | None, seed: int, data_root: str | None = None
) -> None:
    """Raises ValueError for a benchmark whose data lie here and have fewer examples than it asks for shots.

    Whatever else is wrong with it, its stage says. version: of `task_versions`; the same one is read once.
    """
    manager = task_manager([name], include_path)
    configurations = [config for _, config in leaves(name, manager.task_index)]
    shots = [config.get("num_fewshot") for config in configurations]
    here = data_root or all(is_local(config) or "custom_dataset" in config for config in configurations)
    if here and any(own != 0 and (num_fewshot or own) for own in shots):
        try:
            with quiet(), _reading_anew(True), Reading(data_root):
                gaps = data_gaps([name], manager, data_root, num_fewshot)
                _load_with_shots([name], manager, num_fewshot, seed, gaps)
        except ValueError as error:
            if isinstance(error.__cause__, TooFewExamples):
                raise


def check_answers(name: str, include_path: str | None, repeats: int | None) -> None:
    """Raises ValueError for a benchmark that asks for answers in a way that there is none of here, or for more than it reads."""
    for leaf, config in leaves(name, task_manager([name], include_path).task_index):
        if config is None or config.get("output_type", "generate_until") != "generate_until":
            continue
        with Blame(leaf, "cannot be scored"):
            check_generation(config.get("generation_kwargs") or {})
            if (repeats or 1) > 1 and not config.get("filter_list"):
                raise ValueError(f"eval.repeats={repeats}, but it has no filter and reads the first answer alone; permitted is 1")


def _load_with_shots(
    names: Sequence[str], manager: TaskManager, num_fewshot: int | None, seed: int, gaps: Mapping[str, str]
) -> tuple[dict[str, Task], dict[str, Group]]:
    """The tasks by name, and the groups of which all are there."""
    found = [_load(manager, name, gaps) for name in names]
    loaded = {name: task for each in found for name, task in each["tasks"].items()}
    groups = {name: group for each in found for name, group in each["groups"].items()}
    for name, task in loaded.items():
        with Blame(name, "cannot be loaded"):
            _set_shots(task, num_fewshot, seed)
    return loaded, groups


def _load(manager: TaskManager, name: str, gaps: Mapping[str, str]) -> Mapping[str, Any]:
    """The tasks of a name but for those that are missing, and its groups where none is."""
    found = {leaf: config for leaf, config in leaves(name, manager.task_index) if leaf in manager.task_index}
    members = [leaf for leaf in found if leaf != name]
    if gaps.keys() & found.keys():
        if changed := [leaf for leaf, config in found.items() if config != manager.task_index[leaf].cfg]:
            raise ValueError(f"{next(iter(gaps.values()))}, and the group {name!r} has its own {changed[0]!r}: ask for its tasks")
        return {"tasks": {leaf: manager.load([leaf])["tasks"][leaf] for leaf in found if leaf not in gaps}, "groups": {}}

    def blame_member(kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for member in members if error else []:
            with Blame(member, "cannot be loaded"):
                manager.load([member])

    with Blame(name, "cannot be loaded"), contextlib.ExitStack() as stack:
        stack.push(blame_member)
        return manager.load([name])


@contextlib.contextmanager
def _reading_anew(local: bool) -> Iterator[None]:
    """Nothing that datasets kept counts: it tells local files by path and time alone, and functions by their names."""
    caching, cache = datasets.is_caching_enabled(), datasets.config.HF_DATASETS_CACHE
    with tempfile.TemporaryDirectory() as folder:
        datasets.disable_caching()
        # What came from the hub is not to come again.
        datasets.config.HF_DATASETS_CACHE = Path(folder) if local else cache
        try:
            yield
        finally:
            datasets.config.HF_DATASETS_CACHE = cache
            if caching:
                datasets.enable_caching()


def _set_shots(task: Task, num_fewshot: int | None, seed: int) -> None:
    """As lm-eval's own command line does: a task that fixes 0 shots keeps them, one that says nothing has 0."""
    configured = task.get_config("num_fewshot")
    if num_fewshot is not None and configured != 0:
        task.set_config(key="num_fewshot", value=num_fewshot)
    elif configured is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=seed)
    shots, examples = task.get_config("num_fewshot"), task.fewshot_docs()
    if shots and examples is not None and shots > (count := len(list(examples))):
        raise TooFewExamples(f"num_fewshot={shots} asks for more than its {count} examples")
