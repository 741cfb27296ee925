"""Laws of evaluations, over all that stand in conf/eval and all studies: nothing is registered here."""

from __future__ import annotations

import math

import pytest
import torch

from conf.groups import options
from conf.settings import Settings, fields
from suite.evaluation.stages import evaluate, stage_names, studies_by_name
from suite.evaluation.studies.subject import Subject
from suite.metrics import METRICS
from suite.plan import Run, plan, task_of
from suite.saved import new_model

# A run to which each evaluation applies; one that is not listed has to apply to the first.
SUBJECTS = {
    "": ("mesanet", "language"),
    "test": ("mesanet", "mqar"),
    "least_squares": ("mesanet", "in_context_regression"),
    "efficiency": ("mesanet", "efficiency"),
}
SMALL = (
    "size.d_model=32",
    "size.num_blocks=1",
    "size.num_heads=2",
    "size.head_dim=8",
    "task.seq_len=32",
    "eval.study_tokens=256",
)
# What a clock measures differs at every call.
TIMES = {"relative_time", "microseconds_per_token", *(name for name, metric in METRICS.items() if metric.unit in ("ms", "1/s"))}
TIMES |= {"throughput", "roofline_fraction"}


ASKED = {
    "lm_eval": ("eval.limit=4", "eval.tasks=offline_last_word"),
    "efficiency": ("eval.timed_lengths=[32]", "eval.prompt_lengths=[32]", "eval.decode_batch_sizes=[1]"),
}


def planned(stage: str, *more: str, model: str = "") -> Run:
    subject, task = SUBJECTS.get(stage, SUBJECTS[""])
    # A study that has settings of its own has a file with their values.
    own = [f"eval={stage}"] if stage in options("eval") else []
    asked = more or ASKED.get(stage, ())
    (run, *_) = plan([f"model={model or subject}", f"task={task}", *own, *SMALL, f"eval.stages=[{stage}]", *asked])
    return run


def measured(run: Run) -> list:
    subject = Subject(
        new_model(run, torch.device("cpu")).eval(), task_of(run.config), run.config, run.compute, torch.device("cpu")
    )
    return list(evaluate(run.stages[0], subject))


@pytest.mark.parametrize("stage", stage_names())
def test_an_evaluation_applies_says_named_metrics_and_says_the_same_again(stage):
    run = planned(stage)
    assert run.stages and run.stages[0].name == stage
    first, second = measured(run), measured(run)
    assert first and {row.metric for row in first} <= set(METRICS)
    for one, other in zip(first, second, strict=True):
        assert (one.metric, one.split, one.slice) == (other.metric, other.split, other.slice)
        equal = one.value == other.value or (math.isnan(one.value) and math.isnan(other.value))
        assert equal or one.metric in TIMES, one.metric
        # A clock decides how often a piece of work is timed.
        assert one.count == other.count or stage == "efficiency"
        assert one.examples is None or one.groups is None or len(one.groups) == len(one.examples)


def test_a_model_with_a_window_is_told_what_it_can_reach():
    reachable = [
        [row.value for row in measured(planned("test", model=model)) if row.metric == "reachable_accuracy"]
        for model in ("swa4", "gla")
    ]
    assert max(reachable[0]) < 1 == min(reachable[1])


@pytest.mark.parametrize(
    ("setting", "decides"),
    [("num_fewshot=1", True), ("fewshot_seed=2", True), ("limit=3", True), ("max_length=16", True), ("batch_size=3", False)],
)
def test_the_name_of_a_benchmark_s_result_holds_what_decides_its_scores_alone(setting, decides):
    first, second = (planned("lm_eval", "eval.tasks=offline_continuation", *more).stages for more in ([], [f"eval.{setting}"]))
    assert (first[0].stem != second[0].stem) == decides


@pytest.mark.parametrize("evaluation", options("eval"))
def test_every_file_of_conf_eval_is_read(evaluation):
    # The first run to which it applies is enough.
    assert (evaluation == "none") != any(run.stages for subject in SUBJECTS.values() for run in plan_of(*subject, evaluation))


def plan_of(model: str, task: str, evaluation: str) -> list[Run]:
    # Typed as the default of an experiment would have it: one that applies to no run is refused where it is typed.
    try:
        return plan([f"model={model}", f"task={task}", f"eval={evaluation}"])
    except ValueError as error:
        assert "does not apply" in str(error)
        return []


@pytest.mark.parametrize("study", [study for study in studies_by_name().values() if hasattr(study, "Settings")])
def test_the_settings_of_a_study_are_typed(study):
    assert issubclass(study.Settings, Settings) and study.Settings.__struct_config__.frozen and fields(study.Settings)
    with pytest.raises(TypeError):
        study.Settings(*fields(study.Settings))
