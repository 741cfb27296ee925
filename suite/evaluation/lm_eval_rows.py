"""Rows from what lm-eval says of a task: its metrics and those beside them, the scores of groups, and every answer by itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm_eval.api.group import Group
from lm_eval.api.task import Task

from suite.evaluation.lm_eval_adapter import BackboneLM
from tasks.task import Measurement

METRIC_NAMES = {"acc": "accuracy", "acc_norm": "accuracy_norm"}
"""From lm-eval's names to ours; a metric that is not listed keeps its name."""
PER_TOKEN = "accuracy_per_token"
"""The choice whose log-likelihood, divided by its number of tokens, is greatest (MesaNet, arXiv 2506.05233, App. L)."""


def rows_of(task: Task, results: Mapping[str, Any], lm: BackboneLM, reasons: Mapping[int, str]) -> Iterator[Measurement]:
    """A row a metric. results: of lm-eval for this task. reasons: why documents were left out, by their numbers.

    Documents that were left out are NaN among the examples, so that those behind them keep their numbers.
    """
    name = task.task_name
    where = {"benchmark": name, "shots": int(task.get_config("num_fewshot"))}
    samples = results["samples"][name]
    documents = {sample["doc_id"]: sample["doc"] for sample in samples}
    numbers = range(len(documents) + len(reasons))
    for key, value in results["results"][name].items():
        metric, _, chosen = key.partition(",")
        if not chosen or metric.endswith("_stderr"):
            continue
        if not isinstance(value, int | float) or math.isnan(value):
            raise ValueError(f"its metric {key!r} is {value!r}, not a number")
        scores = {sample["doc_id"]: sample[metric] for sample in samples if sample["filter"] == chosen and metric in sample}
        piece = where if chosen == "none" else {**where, "metric_filter": chosen}
        count = len(scores) or len(documents)
        yield Measurement(METRIC_NAMES.get(metric, metric), float(value), "test", piece, count, _examples(scores, value, numbers))
    if scores := per_token(task, samples, lm):
        mean = sum(scores.values()) / len(scores)
        yield Measurement(PER_TOKEN, mean, "test", where, len(scores), _examples(scores, mean, numbers))
    if task.OUTPUT_TYPE == "multiple_choice":
        chances = [1 / len(task.doc_to_choice(doc)) for doc in documents.values()]
        yield Measurement("chance", sum(chances) / len(chances), "test", where, len(chances))
    if lm.max_length is not None:
        count = len(task.instances)
        cut = sum(task_name == name for task_name, *_ in lm.truncated)
        yield Measurement("truncated", cut / count, "test", where, count)
    if reasons:
        first, count = min(reasons), len(documents) + len(reasons)
        missing = f"{len(reasons)} of {count} documents, the first is number {first}: {reasons[first]}"
        yield Measurement("left_out", len(reasons) / count, "test", {**where, "missing": missing}, count)


def per_token(task: Task, samples: Sequence[Mapping[str, Any]], lm: BackboneLM) -> dict[int, float]:
    """By number of a document of multiple choice whether the right choice has the greatest log-likelihood per token.

    What is right the task itself decides, from log-likelihoods that are divided before it compares them. Nothing for a task
    that has no accuracy, or more than one filter.
    """
    if task.OUTPUT_TYPE != "multiple_choice" or len({sample["filter"] for sample in samples}) != 1:
        return {}
    made = {}
    for sample in samples:
        answers = zip(sample["arguments"], sample["filtered_resps"], strict=True)
        divided = [(total / lm.num_tokens[given], is_greedy) for given, (total, is_greedy) in answers]
        made[sample["doc_id"]] = task.process_results(sample["doc"], divided).get("acc")
    return {number: float(each) for number, each in made.items()} if None not in made.values() else {}


def group_rows(
    groups: Mapping[str, Group], rows: Sequence[Measurement], results: Mapping[str, Mapping[str, Any]]
) -> Iterator[Measurement]:
    """The scores of groups as lm-eval aggregates them, for those that say how.

    A group that averages accuracies averages them per token too, where members have choices; a member without enters it with
    its accuracy, as the paper's averages have it. rows: of the tasks. results: of lm-eval by task.
    """
    divided = {row.slice["benchmark"]: row.value for row in rows if row.metric == PER_TOKEN}
    shots = {row.slice["benchmark"]: row.slice["shots"] for row in rows}
    scores: dict[str, dict[str, Any]] = {}
    for name, each in results.items():
        alike = divided.get(name, each.get("acc,none"))
        scores[name] = dict(each) if alike is None else {**each, f"{PER_TOKEN},none": alike}
    for group in groups.values():
        members = [task.task_name for task in group.get_all_tasks()]
        asked = list(group.aggregate_metric_list or [])
        if divided.keys() & set(members):
            averaged = [each for each in asked if each.metric == "acc"]
            asked += [dataclasses.replace(each, metric=PER_TOKEN, filter_list=["none"]) for each in averaged[:1]]
        whole = dataclasses.replace(group, aggregate_metric_list=asked).aggregate(scores)
        common = {shots[name] for name in members}
        where = {"benchmark": group.name, **({"shots": common.pop()} if len(common) == 1 else {})}
        for key, count in whole.get("sample_count", {}).items():
            metric, _, chosen = key.partition(",")
            piece = where if chosen == "none" else {**where, "metric_filter": chosen}
            yield Measurement(METRIC_NAMES.get(metric, metric), float(whole[key]), "test", piece, count)


def answers_of(task: Task, results: Mapping[str, Any], lm: BackboneLM) -> Iterator[dict[str, Any]]:
    """Every document with its target, its scores and what was answered, a choice or a repeated answer each, as JSON holds it."""
    name = task.task_name
    for sample in results["samples"][name]:
        scores = {metric: sample[metric] for metric in sample["metrics"] if isinstance(sample[metric], int | float)}
        asked = zip(sample["arguments"], sample["resps"], strict=True)
        yield {
            "benchmark": name,
            "document": sample["doc_id"],
            "prompt_hash": sample["prompt_hash"],
            "target": sample["target"] if isinstance(sample["target"], str | int) else str(sample["target"]),
            "filter": sample["filter"],
            "scores": {metric: _finite(value) for metric, value in scores.items()},
            "answers": [_answer(given, answer, lm) for given, every in asked for answer in every],
        }


def _answer(given: tuple[Any, ...], answer: Any, lm: BackboneLM) -> dict[str, Any]:
    if isinstance(answer, str):
        return {"text": answer}
    if not isinstance(answer, tuple):
        return {"log_likelihood": _finite(answer)}
    total, is_greedy = answer
    return {"text": given[1], "tokens": lm.num_tokens[given], "log_likelihood": _finite(total), "is_greedy": is_greedy}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _examples(scores: Mapping[int, Any], value: float, numbers: range) -> tuple[float, ...] | None:
    """The scores of the documents of these numbers, NaN where there is none, where the value is their mean.

    A perplexity or a corpus score has none.
    """
    if not scores or not all(isinstance(score, (int, float)) for score in scores.values()):
        return None
    is_mean = math.isclose(math.fsum(scores.values()) / len(scores), value, rel_tol=1e-9, abs_tol=1e-12)
    return tuple(float(scores.get(number, math.nan)) for number in numbers) if is_mean else None
