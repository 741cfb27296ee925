"""Benchmarks of the Language Model Evaluation Harness (lm-eval) on a model of this suite.

The only module that imports lm-eval, which takes seconds: import it where the stage runs.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.metadata
import io
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import Task
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from models.backbone import LanguageModel
from suite.continuation import Prompt, continue_greedily, score_continuations
from tasks.task import Measurement
from tasks.tokenizer import Tokenizer

OFFLINE_TASKS = Path(__file__).resolve().parent.parent / "tasks" / "offline"

METRIC_NAMES = {"acc": "accuracy", "acc_norm": "accuracy_norm"}
"""From lm-eval's names to ours; a metric that is not listed keeps its name."""


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Tokens of the context, BOS in front, and of the continuation.

    lm-eval's convention: both are encoded as one text and cut after the tokens of the context alone, whose trailing
    spaces belong to the continuation.
    """
    stripped = context.rstrip()
    prefix = tokenizer.encode(stripped)
    return [tokenizer.bos, *prefix], tokenizer.encode(context + continuation)[len(prefix) :]


class BackboneLM(LM):
    """lm-eval's interface to a LanguageModel; decoding is greedy and ends at BOS, which also separates documents.

    max_length: tokens of a request that the model reads at most, the earliest are left out; None for no bound.
    truncated: per task, how many requests were cut to that.
    """

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, *, batch_size: int, max_length: int | None, device: torch.device | str
    ) -> None:
        super().__init__()
        self.model, self.tokenizer = model.eval(), tokenizer
        self.batch_size, self.max_length, self._device = batch_size, max_length, torch.device(device)
        self.truncated: Counter[str | None] = Counter()

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Per request (context, continuation): ln p(continuation | context), and whether greedy decoding gives it."""
        pairs = []
        for request in requests:
            context, continuation = encode_pair(self.tokenizer, *request.args)
            # The last token is only predicted, so the model reads one token less than there are.
            kept = self._truncate(context + continuation[:-1], request)
            if len(kept) < len(continuation):
                raise ValueError(
                    f"max_length={self.max_length} is below the {len(continuation)} tokens of an answer in {request.task_name!r}"
                )
            pairs.append((kept, continuation))
        return score_continuations(self.model, pairs, batch_size=self.batch_size, device=self.device)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Per request (text,): ln p(text), in lm-eval's windows of max_length tokens, the first of which begins with BOS."""
        pairs, owners = [], []
        for i, request in enumerate(requests):
            tokens = self.tokenizer.encode(request.args[0])
            length = self.max_length or max(1, len(tokens))
            windows = get_rolling_token_windows(tokens, prefix_token=self.tokenizer.bos, max_seq_len=length, context_len=1)
            for context, continuation in map(make_disjoint_window, windows):
                pairs.append((context + continuation[:-1], continuation))
                owners.append(i)
        scores = score_continuations(self.model, pairs, batch_size=self.batch_size, device=self.device)
        totals = [0.0] * len(requests)
        for i, (log_likelihood, _) in zip(owners, scores, strict=True):
            totals[i] += log_likelihood
        return totals

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Per request (context, settings): the greedy continuation up to `until`, at most `max_gen_toks` tokens.

        Raises ValueError for a request that samples.
        """
        prompts = [self._prompt(request) for request in requests]
        return continue_greedily(self.model, self.tokenizer, prompts, batch_size=self.batch_size, device=self.device)

    def _prompt(self, request: Instance) -> Prompt:
        context, settings = request.args
        settings = normalize_gen_kwargs(settings)
        if settings["do_sample"]:
            raise ValueError(f"task {request.task_name!r} asks for sampling ({settings}); only greedy decoding is supported")
        tokens = self._truncate([self.tokenizer.bos, *self.tokenizer.encode(context)], request)
        return Prompt(tokens, [stop for stop in settings["until"] if stop], settings["max_gen_toks"])

    def _truncate(self, tokens: list[int], request: Instance) -> list[int]:
        if self.max_length is None or len(tokens) <= self.max_length:
            return tokens
        self.truncated[request.task_name] += 1
        return tokens[-self.max_length :]


def evaluate_benchmarks(
    model: LanguageModel,
    tokenizer: Tokenizer,
    *,
    tasks: str | Sequence[str],
    include_path: str | None,
    num_fewshot: int | None,
    limit: int | None,
    batch_size: int,
    max_length: int | None,
    device: torch.device | str,
    seed: int,
) -> list[Measurement]:
    """Scores of lm-eval tasks, one row per (task, metric), on the split that the task names its test.

    tasks: names of tasks, groups or tags; a string is split at its commas.
    include_path: a folder of further task YAMLs. num_fewshot: in place of the task's own, unless that is fixed at 0.
    limit: the first documents only. max_length: see BackboneLM; with it, a row `truncated` gives the share of requests cut.
    seed: draws the few-shot examples (lm-eval's own default is 1234).
    Slices: benchmark, shots, and metric_filter where a task post-processes answers. `chance` stands beside multiple choice.
    Raises ValueError for an unknown task or folder, data that cannot be read, and requests that cannot be served.
    """
    if batch_size < 1 or (max_length is not None and max_length < 1):
        raise ValueError(f"batch_size={batch_size} and max_length={max_length} must be at least 1")
    names = benchmark_names(tasks)
    manager = _task_manager(names, include_path)
    lm = BackboneLM(model, tokenizer, batch_size=batch_size, max_length=max_length, device=device)
    with _quiet():
        loaded = _load(manager, names)
        for task in loaded["tasks"].values():
            _set_shots(task, num_fewshot, seed)
        results = evaluator.evaluate(lm, loaded, limit=limit, bootstrap_iters=0)
    return [row for name, task in loaded["tasks"].items() for row in _measurements(name, task, results, lm)]


def task_versions(tasks: str | Sequence[str], include_path: str | None) -> dict[str, str]:
    """Per name asked for, what decides the meaning of its scores: lm-eval's version and a digest of its tasks' YAML.

    The YAML holds the tasks' own versions. Folders are left out, so that the digest is the same on every machine.
    Reads no data. Raises ValueError like evaluate_benchmarks.
    """
    names = benchmark_names(tasks)
    index = _task_manager(names, include_path).task_index
    versions = {}
    for name in names:
        configurations = json.dumps(list(_leaves(name, index)), sort_keys=True, default=str)
        digest = hashlib.sha256(re.sub(r'"/[^"]*/', '"', configurations).encode()).hexdigest()
        versions[name] = f"{importlib.metadata.version('lm_eval')}-{digest[:8]}"
    return versions


def benchmark_names(tasks: str | Sequence[str]) -> list[str]:
    """The names in a comma list or a sequence. Raises ValueError when there are none."""
    given = tasks.split(",") if isinstance(tasks, str) else tasks
    names = [name.strip() for name in given if name.strip()]
    if not names:
        raise ValueError(f"eval.tasks={tasks!r} names no benchmark; e.g. eval.tasks=offline")
    return names


def _task_manager(names: Sequence[str], include_path: str | None) -> TaskManager:
    """Knows the built-in tasks and include_path; lm-eval's own too, 10 s to index, when a name is in neither."""
    if include_path is not None and not Path(include_path).is_dir():
        raise ValueError(f"eval.include_path={include_path!r} is not a folder of lm-eval task YAMLs")
    folders = [OFFLINE_TASKS, *([Path(include_path)] if include_path else [])]
    for include_defaults in (False, True):
        with _quiet():
            manager = TaskManager(include_path=folders, include_defaults=include_defaults)
        leaves = [leaf for name in names for leaf in _leaves(name, manager.task_index)]
        if all(leaf in manager.task_index for leaf, _ in leaves):
            return manager
    missing = [leaf for leaf, config in leaves if config is None]
    if not missing:
        return manager
    near = difflib.get_close_matches(missing[0], manager.all_tasks) or ["offline"]
    raise ValueError(f"unknown lm-eval task {missing[0]!r}; nearest: {', '.join(near)}")


def _leaves(member: str | Mapping[str, Any], index: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """The tasks below a task, group or tag, each with its configuration; None for a name that the index lacks.

    A member of a group may be a mapping: a name with overrides, or a task or group that the index lacks, defined in place.
    """
    overrides = {} if isinstance(member, str) else dict(member)
    name = overrides.get("group") or overrides.get("task") or member
    entry = index.get(name)
    kind = entry.kind.name if entry else None
    if kind == "TAG":
        children = sorted(entry.tags)
    elif kind == "GROUP" or "group" in overrides:
        children = overrides.get("task") or entry.cfg["task"]
    else:
        yield name, ({**(entry.cfg if entry else {}), **overrides} or None)
        return
    for child in children:
        yield from _leaves(child, index)


def _load(manager: TaskManager, names: Sequence[str]) -> dict[str, Any]:
    loaded = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in names:
        try:
            found = manager.load([name])
        except (OSError, LookupError, TypeError, ImportError) as error:
            # Data that cannot be reached or read; a split, a setting or a function that the YAML names and that is not there.
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise ValueError(f"lm-eval task {name!r} cannot be loaded ({reason}); `offline` needs no download") from error
        for part, entries in found.items():
            loaded[part] |= entries
    return loaded


def _set_shots(task: Task, num_fewshot: int | None, seed: int) -> None:
    """As lm-eval's own command line does: a task that fixes 0 shots keeps them, one that says nothing has 0."""
    configured = task.get_config("num_fewshot")
    if num_fewshot is not None and configured != 0:
        task.set_config(key="num_fewshot", value=num_fewshot)
    elif configured is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=seed)


def _measurements(name: str, task: Task, results: Mapping[str, Any], lm: BackboneLM) -> Iterator[Measurement]:
    where = {"benchmark": name, "shots": int(task.get_config("num_fewshot"))}
    samples = results["samples"][name]
    for key, value in results["results"][name].items():
        metric, _, chosen = key.partition(",")
        if not chosen or metric.endswith("_stderr"):
            continue
        scores = [sample[metric] for sample in samples if sample["filter"] == chosen and metric in sample]
        piece = where if chosen == "none" else {**where, "metric_filter": chosen}
        yield Measurement(METRIC_NAMES.get(metric, metric), float(value), "test", piece, len(scores), _examples(scores, value))
    if task.OUTPUT_TYPE == "multiple_choice":
        chances = [1 / len(task.doc_to_choice(sample["doc"])) for sample in samples]
        yield Measurement("chance", sum(chances) / len(chances), "test", where, len(chances))
    if lm.max_length is not None:
        count = len(task.instances)
        yield Measurement("truncated", lm.truncated[name] / count, "test", where, count)


def _examples(scores: Sequence[Any], value: float) -> tuple[float, ...] | None:
    """The scores of the documents where the value is their mean; a perplexity or a corpus score has none."""
    if not all(isinstance(score, (int, float)) for score in scores):
        return None
    examples = tuple(float(score) for score in scores)
    return examples if math.isclose(math.fsum(examples) / len(examples), value, rel_tol=1e-9, abs_tol=1e-12) else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back lm-eval's log and its progress bars; errors still reach the caller as exceptions."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
