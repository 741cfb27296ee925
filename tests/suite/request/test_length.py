"""How long a run trains: tokens and FLOPs are settled into steps before it is named."""

from __future__ import annotations

import re

import pytest

from conf.settings import RequestError
from suite.plan import Run, plan
from suite.request.length import steps_of_flops, steps_of_tokens
from suite.request.overrides import read_request
from suite.request.schema import saved_config

REQUEST = ("model=gla", "task=mqar", "train.batch_size=16", "task.seq_len=64", "eval=none")
PER_STEP = 16 * 64


def one(*more: str) -> Run:
    (run,) = plan([*REQUEST, *more])
    return run


@pytest.mark.parametrize(
    "typed", [f"train.tokens={300 * PER_STEP}", f"train.tokens={299 * PER_STEP + 1}", "train.tokens=307.2e3"]
)
def test_tokens_are_the_steps_that_first_see_them_and_the_same_run(typed):
    by_tokens, by_steps = one(typed), one("train.steps=300")
    assert by_tokens.config == by_steps.config and by_tokens.run_id == by_steps.run_id
    assert by_tokens.written == by_steps.written and saved_config(by_tokens.written) == by_tokens.config


def test_a_batch_that_is_typed_as_a_real_number_is_the_same_batch():
    typed = [each for each in REQUEST if not each.startswith("train.batch_size")]
    (run,) = plan([*typed, "train.batch_size=16.0", f"train.tokens={300 * PER_STEP}"])
    assert run.run_id == one("train.steps=300").run_id


def test_flops_are_the_nearest_number_of_steps_and_the_same_run():
    by_steps = one("train.steps=300")
    per_step = 3 * by_steps.cost.flops_per_token * PER_STEP
    for flops in (299.6 * per_step, 300 * per_step, 300.4 * per_step):
        assert one(f"train.flops={flops}").run_id == by_steps.run_id
    assert one(f"train.flops={301 * per_step}").config.train.steps == 301


def test_flops_buy_the_matched_model_of_every_arm_its_own_steps():
    runs = plan([*REQUEST, "model=gla,mesanet,transformer", "match.by=parameters", "train.flops=1e12"][1:])
    assert len({run.config.train.steps for run in runs}) == 3
    for run in runs:
        assert run.config.train.steps == round(1e12 / (3 * run.cost.flops_per_token * PER_STEP))
    # The cost is that of the matched model.
    assert {run.config.size.mlp_dim for run in runs if run.config.model.name != "transformer"}.isdisjoint({192})


def test_a_warm_up_and_a_decay_that_are_shares_follow_what_was_settled():
    recipe = ("recipe=one_gpu", "size=6m", "model=gla", "task=language", "eval=none", "train.lr=1e-3", "train.schedule=wsd")
    shares, numbers = (
        plan([*recipe, *more])[0]
        for more in (
            ("train.tokens=65.536e6", "train.decay_share=0.2"),
            ("train.steps=1000", "train.warmup_steps=50", "train.decay_steps=200"),
        )
    )
    assert shares.config.train == numbers.config.train and shares.run_id == numbers.run_id
    (by_flops,) = plan([*recipe, "train.flops=1e16", "train.decay_share=0.2", "match.by=parameters"])
    train = by_flops.config.train
    assert (train.warmup_steps, train.decay_steps) == (round(0.05 * train.steps), round(0.2 * train.steps))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ["train.steps=300", "train.tokens=1e6"],
            "train.steps=300 and train.tokens=1000000.0 given, permitted is one of train.steps, train.tokens, train.flops",
        ),
        (
            ["train.steps=null"],
            "train.steps=null and train.tokens=null and train.flops=null given, permitted is one of train.steps, train.tokens, ",
        ),
        (["train.tokens=0"], "train.tokens=0 is out of range"),
        (["train.tokens=1.5"], "train.tokens=1.5 is not a whole number"),
        (["train.flops=-1"], "train.flops=-1 is out of range"),
        (["train.flops=many"], "train.flops=many is not a number"),
        (
            ["train.tokens=1e15"],
            "train.tokens=1000000000000000 is out of range, permitted are at most 2,147,483,647 steps, here of 1,024 tokens",
        ),
        (["train.flops=1e29"], "permitted are at most 2,147,483,647 steps"),
        (["train.decay_steps=9", "train.decay_share=0.1"], "train.decay_steps=9 and train.decay_share=0.1 are given"),
        (["train.tokens=1e6", "train.batch_size=0"], "train.batch_size=0 is out of range"),
        (["train.tokens=1024"], "train.warmup_steps=20 is out of range, permitted are 0 to train.steps=1"),
    ],
)
def test_a_length_that_is_none_is_refused_in_a_line(more, said):
    with pytest.raises(RequestError, match=re.escape(said)):
        plan([*(each for each in REQUEST if each.partition("=")[0] not in {m.partition("=")[0] for m in more}), *more])


def test_a_length_that_is_typed_takes_the_place_of_a_files_and_of_a_grids():
    (run,) = plan(["model=gla", "size=140m", "recipe=mesanet_15b", "eval=none", "train.steps=3000"])
    assert run.config.train.steps == 3000
    grid = read_request(["experiment=cheap_curvature", "model=pgdn", "train.tokens=1e6,2e7"]).cells
    assert grid and not any(each.startswith("train.steps=") for cell in grid for each in cell)
    typed = {float(each.partition("=")[2]) for cell in grid for each in cell if each.startswith("train.tokens=")}
    assert typed == {1e6, 2e7}


def test_rounding_is_up_for_tokens_and_to_the_nearest_for_flops():
    assert [steps_of_tokens(tokens, tokens_per_step=100) for tokens in (1, 100, 101)] == [1, 1, 2]
    flops = [steps_of_flops(each, tokens_per_step=10, flops_per_token=1.0) for each in (1.0, 44.0, 46.0)]
    assert flops == [1, 1, 2]
