"""Benchmarks of the Language Model Evaluation Harness (lm-eval) on a model of this suite.

The only module that imports lm-eval, which takes seconds: import it where the stage runs.
"""

from __future__ import annotations

import contextlib
import functools
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import datasets
import torch
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import Task
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from models.backbone.language_model import LanguageModel
from suite.evaluation.continuation import Prompt, continue_greedily, score_continuations
from suite.evaluation.lm_eval_names import Blame, benchmark_names, is_local, leaves, quiet, task_manager
from suite.evaluation.settings import Benchmarks
from tasks.language.tokenizer import Tokenizer
from tasks.task import Measurement

METRIC_NAMES = {"acc": "accuracy", "acc_norm": "accuracy_norm"}
"""From lm-eval's names to ours; a metric that is not listed keeps its name."""


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Tokens of the context, BOS in front, and of the continuation.

    lm-eval's convention: both are encoded as one text and cut after the tokens of the context alone, whose trailing
    spaces belong to the continuation. Where that cut isn't between the two, since a token has text of both or is another
    one, the continuation is encoded by itself, so that its tokens cover all of it.
    Raises ValueError for a continuation without tokens.
    """
    stripped = context.rstrip()
    answer = context[len(stripped) :] + continuation
    prefix, prefix_ends = tokenizer.encode_with_ends(stripped)
    whole, ends = tokenizer.encode_with_ends(stripped + answer)
    kept, rest = whole[: len(prefix)], whole[len(prefix) :]
    same_text = kept == prefix or tokenizer.decode(kept) == tokenizer.decode(prefix)
    if not (rest and same_text and ends[len(kept) - 1 : len(kept)] == prefix_ends[-1:]):
        rest = tokenizer.encode(answer)
    if not rest:
        raise ValueError(f"the answer {answer!r} has no tokens")
    return [tokenizer.bos, *prefix], rest


class TooFewExamples(ValueError):
    """A task has fewer examples than shots are asked for."""


class BackboneLM(LM):
    """lm-eval's interface to a LanguageModel; decoding is greedy and ends at BOS, which also separates documents.

    max_length: tokens of a request that the model reads at most, the earliest are left out; None for no bound.
    truncated: task, document and number of every request that was cut to that.
    """

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, *, batch_size: int, max_length: int | None, device: torch.device | str
    ) -> None:
        super().__init__()
        self.model, self.tokenizer = model.eval(), tokenizer
        self.batch_size, self.max_length, self._device = batch_size, max_length, torch.device(device)
        self.truncated: set[tuple[str | None, int | None, int]] = set()

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
            if request.args[0] and not tokens:
                raise ValueError(f"the text {request.args[0]!r} has no tokens")
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
        self.truncated.add((request.task_name, request.doc_id, request.idx))
        return tokens[-self.max_length :]


def evaluate_benchmarks(
    model: LanguageModel, tokenizer: Tokenizer, asked: Benchmarks, *, device: torch.device | str
) -> list[Measurement]:
    """Scores of lm-eval tasks, one row per (task, metric), on the split that the task names its test.

    Slices: benchmark, shots, and metric_filter where a task post-processes answers. `chance` stands beside multiple choice.
    Under a max_length a row `truncated` gives the share of requests that were cut.
    Raises ValueError for an unknown task or folder, data that cannot be read, and requests that cannot be served.
    """
    names = benchmark_names(asked.tasks)
    manager = task_manager(names, asked.include_path)
    lm = BackboneLM(model, tokenizer, batch_size=asked.batch_size, max_length=asked.max_length, device=device)
    local = all(is_local(config) for name in names for _, config in leaves(name, manager.task_index))
    rows = []
    with quiet(), _reading_anew(local):
        loaded = _load_with_shots(names, manager, asked.num_fewshot, asked.fewshot_seed)
        # One after another, so that what fails has a name.
        for name, task in loaded.items():
            with Blame(name, "cannot be scored"):
                results = evaluator.evaluate(lm, {"tasks": {name: task}}, limit=asked.limit, bootstrap_iters=0)
                rows += _measurements(name, task, results, lm)
    return rows


@functools.cache
def check_shots(name: str, version: str, include_path: str | None, num_fewshot: int | None, seed: int) -> None:
    """Raises ValueError for a benchmark whose data lie here and have fewer examples than it asks for shots.

    Whatever else is wrong with it, its stage says. version: of `task_versions`; the same one is read once.
    """
    manager = task_manager([name], include_path)
    configurations = [config for _, config in leaves(name, manager.task_index)]
    shots = [config.get("num_fewshot") for config in configurations]
    here = all(is_local(config) or "custom_dataset" in config for config in configurations)
    if here and any(own != 0 and (num_fewshot or own) for own in shots):
        try:
            with quiet(), _reading_anew(True):
                _load_with_shots([name], manager, num_fewshot, seed)
        except ValueError as error:
            if isinstance(error.__cause__, TooFewExamples):
                raise


def _load_with_shots(names: Sequence[str], manager: TaskManager, num_fewshot: int | None, seed: int) -> dict[str, Task]:
    loaded = {task: found for name in names for task, found in _load(manager, name).items()}
    for name, task in loaded.items():
        with Blame(name, "cannot be loaded"):
            _set_shots(task, num_fewshot, seed)
    return loaded


def _load(manager: TaskManager, name: str) -> dict[str, Task]:
    members = [leaf for leaf, _ in leaves(name, manager.task_index) if leaf in manager.task_index and leaf != name]

    def blame_member(kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for member in members if error else []:
            with Blame(member, "cannot be loaded"):
                manager.load([member])

    with Blame(name, "cannot be loaded"), contextlib.ExitStack() as stack:
        stack.push(blame_member)
        return manager.load([name])["tasks"]


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


def _measurements(name: str, task: Task, results: Mapping[str, Any], lm: BackboneLM) -> Iterator[Measurement]:
    where = {"benchmark": name, "shots": int(task.get_config("num_fewshot"))}
    samples = results["samples"][name]
    documents = {sample["doc_id"]: sample["doc"] for sample in samples}
    for key, value in results["results"][name].items():
        metric, _, chosen = key.partition(",")
        if not chosen or metric.endswith("_stderr"):
            continue
        if not isinstance(value, int | float) or math.isnan(value):
            raise ValueError(f"its metric {key!r} is {value!r}, not a number")
        scores = [sample[metric] for sample in samples if sample["filter"] == chosen and metric in sample]
        piece = where if chosen == "none" else {**where, "metric_filter": chosen}
        count = len(scores) or len(documents)
        yield Measurement(METRIC_NAMES.get(metric, metric), float(value), "test", piece, count, _examples(scores, value))
    if task.OUTPUT_TYPE == "multiple_choice":
        chances = [1 / len(task.doc_to_choice(doc)) for doc in documents.values()]
        yield Measurement("chance", sum(chances) / len(chances), "test", where, len(chances))
    if lm.max_length is not None:
        count = len(task.instances)
        cut = sum(task_name == name for task_name, *_ in lm.truncated)
        yield Measurement("truncated", cut / count, "test", where, count)


def _examples(scores: Sequence[Any], value: float) -> tuple[float, ...] | None:
    """The scores of the documents where the value is their mean; a perplexity or a corpus score has none."""
    if not scores or not all(isinstance(score, (int, float)) for score in scores):
        return None
    examples = tuple(float(score) for score in scores)
    return examples if math.isclose(math.fsum(examples) / len(examples), value, rel_tol=1e-9, abs_tol=1e-12) else None
