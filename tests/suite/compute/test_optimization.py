"""Schedules of the learning rate, and what weight decay is for."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch

from conf.settings import RequestError, Settings
from suite.compute.optimization import build_optimizer, learning_rate
from suite.compute.settings import Train
from suite.plan import plan
from suite.saved import new_model

REQUEST = ("model=gated_deltanet", "task=mqar", "train.steps=100", "train.warmup_steps=10", "train.lr=1e-2")


def train(*more: str) -> Train:
    given = {each.partition("=")[0] for each in more}
    (run,) = plan([*(each for each in REQUEST if each.partition("=")[0] not in given), *more])
    assert isinstance(run.config.train, Settings)
    return run.config.train


def test_a_constant_rate_follows_the_warm_up():
    settings = train("train.schedule=constant")
    assert [learning_rate(step, settings) for step in (4, 9, 10, 99)] == pytest.approx([5e-3, 1e-2, 1e-2, 1e-2])


def test_the_warm_up_begins_where_it_is_asked_to():
    settings = train("train.warmup_from=1e-3")
    assert [learning_rate(step, settings) for step in (0, 4, 9)] == pytest.approx([1.9e-3, 5.5e-3, 1e-2])


@pytest.mark.parametrize(("more", "lowest"), [((), 1e-3), (("train.final_lr=1e-5",), 1e-5), (("train.final_lr=0.0",), 0.0)])
def test_the_cosine_ends_at_the_lowest_rate(more, lowest):
    settings = train(*more)
    assert learning_rate(100, settings) == pytest.approx(lowest)
    assert learning_rate(55, settings) == pytest.approx((1e-2 + lowest) / 2)


def test_a_rate_is_held_for_as_many_steps_as_asked():
    settings = train("train.hold_steps=25", "train.final_lr=0.0").replace({"warmup_steps": 0})
    rates = [learning_rate(step, settings) for step in range(100)]
    assert rates == [rates[step - step % 25] for step in range(100)]
    # As a schedule of four epochs has them.
    assert rates[::25] == pytest.approx([0.5e-2 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)])


@pytest.mark.parametrize(
    ("shape", "middle"), [("linear", 1e-3 + 9e-3 * 0.5), ("sqrt", 1e-3 + 9e-3 * (1 - math.sqrt(0.5)))], ids=["linear", "sqrt"]
)
def test_a_stable_rate_decays_over_the_last_steps_to_the_lowest_rate(shape, middle):
    settings = train("train.schedule=wsd", "train.decay_steps=20", f"train.decay_shape={shape}")
    rates = [learning_rate(step, settings) for step in range(101)]
    assert rates[4] == pytest.approx(5e-3) and rates[10:81] == pytest.approx([1e-2] * 71)
    assert rates[90] == pytest.approx(middle) and rates[100] == pytest.approx(1e-3)
    assert all(before > after for before, after in itertools.pairwise(rates[80:]))


def test_before_its_decay_a_longer_training_has_the_same_rates():
    short, long = (train("train.schedule=wsd", "train.decay_steps=20", f"train.steps={steps}") for steps in (100, 300))
    assert [learning_rate(step, short) for step in range(81)] == [learning_rate(step, long) for step in range(81)]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["train.schedule=wsd"], "train.decay_steps=null is out of range, permitted are 1 to 90, what"),
        (["train.schedule=wsd", "train.decay_steps=91"], "train.decay_steps=91 is out of range, permitted are 1 to 90, what"),
        (["train.decay_steps=10"], "train.decay_steps=10 is out of range, permitted are null without train.schedule=wsd"),
        (["train.decay_shape=sqrt"], "train.decay_shape=sqrt is out of range, permitted are linear without train.schedule=wsd"),
    ],
)
def test_a_decay_that_does_not_fit_is_refused(more, said):
    with pytest.raises(RequestError, match=re.escape(said)):
        train(*more)


@pytest.mark.parametrize("decays", ["linear", "all"])
def test_weight_decay_is_for_linear_maps_or_for_everything(decays):
    (run,) = plan([*REQUEST, f"train.decays={decays}"])
    model = new_model(run, torch.device("cpu"))
    decayed, other = (group["params"] for group in build_optimizer(model, run.config.train).param_groups)
    assert len(decayed) + len(other) == len(list(model.parameters()))
    assert any(p is model.embedding.weight for p in decayed) == (decays == "all") and bool(other) == (decays == "linear")


def test_values_from_before_these_settings_existed_change_no_name():
    """At their neutral values; any other renames a run."""
    (plain,), (neutral,) = (plan([*REQUEST, *more]) for more in ((), ("train.schedule=cosine", "train.hold_steps=1")))
    (other,) = plan([*REQUEST, "train.hold_steps=2"])
    assert plain.run_id == neutral.run_id != other.run_id
