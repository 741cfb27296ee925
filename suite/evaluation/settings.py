"""What all evaluations share in conf/eval; what a study has for itself stands in its module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from conf.paths import UserPath
from conf.settings import LARGEST, Count, Neutral, Settings, between, within
from suite.compute.settings import Compute, Seed
from suite.request.schema import Config
from tasks.task import Task


class Benchmarks(Settings, kw_only=True):
    """What lm_eval is asked for.

    tasks: names of tasks, groups or tags; a string is split at its commas. include_path: a folder of further task YAMLs.
    data_root: a folder ORG/NAME[/CONFIG]/SPLIT.jsonl that stands for the Hugging Face hub; None for the hub itself.
    num_fewshot: in place of a task's own, unless that is fixed at 0. fewshot_seed: draws the few-shot examples (lm-eval's own
    default is 1234). limit: the first documents only, so many or such a share. max_length: tokens of a request that the model
    reads, None for all. temperature: of generated answers, in place of the tasks' own; above 0 samples. repeats: answers to a
    request, in place of the tasks' own. sample_seed: draws what is sampled.
    """

    tasks: tuple[str, ...] | str
    include_path: UserPath | None
    data_root: Annotated[UserPath | None, Neutral(None)]
    num_fewshot: Annotated[int, within(0, 10**6)] | None
    fewshot_seed: Seed
    limit: Count | Annotated[float, between(0, 1)] | None
    batch_size: Annotated[int, within(1, 2**20)]
    max_length: Annotated[int, within(2, 2**31 - 1)] | None
    temperature: Annotated[Annotated[float, within(0, LARGEST)] | None, Neutral(None)]
    repeats: Annotated[Count | None, Neutral(None)]
    sample_seed: Annotated[Seed, Neutral(0)]


class Eval(Benchmarks, kw_only=True):
    """stages: which evaluations. study_tokens: how many tokens a study scores."""

    stages: tuple[str, ...]
    study_tokens: Count


@dataclass(frozen=True)
class Asked:
    """What a study plans its stages from. task: built of config.task. tokens: how many to score. own: the study's settings."""

    config: Config
    compute: Compute
    task: Task
    tokens: int
    own: Settings
