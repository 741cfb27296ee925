"""Laws of experiments, over all that stand in conf/: the first run of each trains two steps and is evaluated."""

from __future__ import annotations

import pytest

from conf.groups import options
from suite.cli import main
from suite.metrics import METRICS
from suite.request.compose import compose_one
from suite.request.overrides import read_request
from suite.results import load_results, load_runs

# As small as a model can be, so that what is tested is that everything fits together.
SMALL = {"size.d_model": 32, "size.num_blocks": 1, "size.num_heads": 2, "size.head_dim": 8, "match.by": "none"}
FEW = {"train.steps": 2, "train.warmup_steps": 1, "train.batch_size": 4, "eval.study_tokens": 1024}
EXAMPLES = {"num_validation": 16, "num_test": 16, "max_validation_examples": 16}
SEGMENTS = {"seq_len": 64, "train_segments": "[[64,4,16]]", "test_segments": "[[64,4,16],[128,4,16]]"}


def first_cell(experiment: str) -> list[str]:
    """The first run of the experiment's grid, made small where the grid does not say otherwise."""
    typed = dict(override.split("=", 1) for override in read_request([f"experiment={experiment}"]).cells[0])
    written = compose_one([f"{key}={value}" for key, value in typed.items()]).written
    task = written["task"]
    examples = SEGMENTS if "test_segments" in task else EXAMPLES
    few = {f"task.{key}": count for key, count in examples.items() if key in task}
    few |= {"task.num_train": 32} if task.get("num_train") else {}
    few |= {"eval.limit": 4} if "lm_eval" in written["eval"]["stages"] else {}
    few |= {"eval.study_tokens": 2048} if experiment == "efficiency" else FEW
    # A recipe's sequences are of 2048 tokens, which say no more here than those of the task alone.
    short = {"task.seq_len": 128} if task["name"] == "language" else {}
    # The length is that of FEW, whichever way the grid has it.
    others = {key: value for key, value in typed.items() if key not in ("size", "train.tokens", "train.flops")}
    return [f"{key}={value}" for key, value in {**SMALL, **short, **others, **few}.items()]


# Their evaluations are timed by a clock, over and over; the studies have tests of their own.
TIMED = ("compute", "efficiency", "sherman_morrison", "solver_ablation", "warm_start")
# The same on a larger grid: NAME_small trains too.
LARGE = [name for name in options("experiment") if f"{name}_small" in options("experiment")]
# Their first run is one of Mesa on a task, evaluated as the first run of another one is.
ALIKE = ("equal_state_small", "fla_mesanet", "forget_gate", "learning_rate", "mqar_capacity_small", "rate_sweep", "small")
SLOW = (*TIMED, *LARGE, *ALIKE)
EXPERIMENTS = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in options("experiment")]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_first_run_of_an_experiment_trains_and_is_evaluated(experiment, tmp_path):
    assert main(["run", *first_cell(experiment), "compute.jobs=1", f"paths.results={tmp_path}"]) == 0
    assert set(load_runs(tmp_path)["status"]) == {"done"} and set(load_results(tmp_path)["metric"]) <= set(METRICS)
