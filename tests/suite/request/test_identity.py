"""Names of runs: what is in them, what is not, and that they stay."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import pytest
import yaml

from conf.settings import OUTSIDE, Neutral, Settings, with_neutral
from models.mixer import SequenceMixer
from suite.canonical import canonical_json
from suite.plan import plan
from suite.request.compose import compose_one
from suite.request.identity import flat_settings, group_id, identity, run_id
from suite.request.schema import Config, saved_config

REQUEST = ["model=gla", "task=language", "data=text", "data.path=/a", "paths.cache=/c", "backend=torch", "train.lr=1e-3"]
DEFAULT = compose_one(REQUEST).config


def name(config: Config, fingerprint: str = "f") -> str:
    return run_id(identity(config, data_fingerprint=fingerprint))


def composed(*arguments: str) -> Config:
    """The configuration of REQUEST with other values."""
    given = {argument.partition("=")[0] for argument in arguments}
    return compose_one([*(each for each in REQUEST if each.partition("=")[0] not in given), *arguments]).config


def test_names_are_pinned():
    whole = identity(DEFAULT, data_fingerprint="f")
    assert (run_id(whole), group_id(whole)) == PINNED


PINNED = ("f8632bd33ac3", "4f53be4beaf4")


@pytest.mark.parametrize(
    "typed",
    [
        *("model.version=2", "model.mixer.num_heads=4", "model.mixer.chunk_size=16", "size.d_model=128", "task.version=2"),
        *("task.seq_len=64", "data.validation_fraction=0.2", "train.lr=0.123", "train.betas=[0.5,0.9]", "backend=fla", "seed=1"),
    ],
)
def test_what_decides_the_numbers_changes_the_name(typed):
    assert name(composed(typed)) != name(DEFAULT)


def test_the_text_changes_the_name():
    assert name(DEFAULT, "other") != name(DEFAULT)


@pytest.mark.parametrize(
    "typed",
    [
        *(
            "model.label=other",
            "+model.lr.another.tiny=1",
            "model.paper=other",
            "size.name=other",
            "data.path=/b",
            "data.name=other",
        ),
        *(
            "data.tokenizer=/t.json",
            "data.cache=/d",
            "paths.cache=/d",
            "paths.results=/elsewhere",
            "compute.threads=2",
            "eval=none",
        ),
    ],
)
def test_what_does_not_decide_the_numbers_leaves_the_name(typed):
    assert name(composed(typed)) == name(DEFAULT)


def test_a_group_is_the_runs_that_differ_in_their_seed():
    groups = {group_id(identity(replace(DEFAULT, seed=seed), data_fingerprint="f")) for seed in range(3)}
    assert len(groups) == 1 and groups != {group_id(identity(DEFAULT, data_fingerprint="other"))}


class Inner(Settings, kw_only=True):
    kept: int
    added: Annotated[int | None, Neutral(None)]


class Outer(Settings, kw_only=True):
    rate: float
    place: Annotated[str, OUTSIDE]
    added: Annotated[int, Neutral(0)]
    inner: Inner


def outer(added: int, inner: int | None) -> Outer:
    return Outer.read({"rate": 1, "place": "here", "added": added, "inner": {"kept": 0, "added": inner}})


def test_a_key_at_its_neutral_value_and_one_that_says_where_something_lies_are_left_out():
    assert outer(0, None).named(neutral=False) == {"rate": 1.0, "inner": {"kept": 0}}
    assert outer(1, 0).named(neutral=False) == {"rate": 1.0, "added": 1, "inner": {"kept": 0, "added": 0}}
    assert outer(0, None).named(neutral=True) == {"rate": 1.0, "added": 0, "inner": {"kept": 0, "added": None}}


def test_values_of_before_get_the_keys_added_since_and_keep_what_they_have():
    assert Outer.read(with_neutral(Outer, {"rate": 1, "place": "here", "inner": {"kept": 0}})) == outer(0, None)
    assert Outer.read(with_neutral(Outer, outer(3, 4).plain())) == outer(3, 4)


def neutral_keys(settings: Settings) -> list[str]:
    """The keys of a configuration that are there alone because they were added since."""
    return sorted(set(settings.named(neutral=True)) - set(settings.named(neutral=False)))


def saved(written: Mapping[str, Any]) -> Config:
    """The configuration that a config.yaml of these values gives."""
    return saved_config(yaml.safe_load(yaml.safe_dump(dict(written))))


def test_recall_of_before_keeps_its_name_and_gets_the_keys_added_since():
    """A configuration written before MQAR had num_train and the like, and a training a schedule to choose."""
    (run,) = plan(["model=gla", "task=mqar"])
    assert neutral_keys(run.config.task) == ["draws", "num_train", "rewrites"]
    selects, lengths = ["keep", "stop_at", "validate_steps"], ["flops", "tokens"]
    schedules = ["schedule", "decay_shape", "decay_share", "decay_steps", "final_lr", "hold_steps", "warmup_from"]
    others = ["decays", "nonfinite", "optimizer", "start_digest"]
    assert neutral_keys(run.config.train) == sorted([*others, *lengths, *schedules, *selects])
    old = copy.deepcopy(dict(run.written))
    for section in ("task", "train"):
        for key in neutral_keys(getattr(run.config, section)):
            del old[section][key]
    assert saved(old) == run.config and run_id(identity(saved(old), data_fingerprint=run.data_fingerprint)) == run.run_id
    (bounded,) = plan(["model=gla", "task=mqar", "task.num_train=100"])
    assert bounded.run_id != run.run_id and saved(bounded.written) == bounded.config


@pytest.mark.parametrize("name", ["mesanet", "hawk_mesa"])
def test_a_mesa_of_before_keeps_its_name_and_gets_the_keys_added_since(name):
    """A configuration written before a Mesa mixer had solver.initial and the like."""
    (run,) = plan([f"model={name}", "task=mqar"])
    old, other = copy.deepcopy(dict(run.written)), copy.deepcopy(dict(run.written))
    mixer = old["model"][old["model"]["pattern"][-1]]
    mesa: SequenceMixer.Settings = run.config.model.mixers[-1]
    added = ["random_steps", "signed_decay", "decode", "refresh", "step_size_init", "solve_precision", "solve_from"]
    frame = ["convolution", "decay_rates", "affine_keys", "output_gate", "output_gate_rank"]
    assert neutral_keys(mesa) == sorted(added + frame)
    assert neutral_keys(mesa.solver) == ["gradient", "initial"]
    for key in added + frame:
        del mixer[key]
    for key in ("initial", "gradient"):
        del mixer["solver"][key]
    assert saved(old) == run.config
    assert run_id(identity(saved(old), data_fingerprint=run.data_fingerprint)) == run.run_id == PINNED_MESA[name]
    other["model"][other["model"]["pattern"][-1]]["solver"]["initial"] = "query"
    assert saved(other).model.mixers[-1].solver.initial == "query"
    assert run_id(identity(saved(other), data_fingerprint=run.data_fingerprint)) != run.run_id


PINNED_MESA = {"mesanet": "99d475afcb38", "hawk_mesa": "be94b52e5290"}


def test_a_run_is_read_as_it_was_written():
    (run,) = plan(["model=hawk_mesa", "task=in_context_regression", "train.lr=1", "seed=3"])
    assert saved(run.written) == run.config
    assert run.config.train.lr == 1.0 and flat_settings(run.config)["train.lr"] == 1.0


def test_canonical_json_forgets_order():
    assert canonical_json({"b": 1, "a": [1, 2]}) == canonical_json({"a": [1, 2], "b": 1}) == '{"a":[1,2],"b":1}'


def test_the_name_of_a_whole_request_is_pinned():
    """Changes when a default that decides numbers changes: then raise the version of the model or task that it belongs to."""
    (run,) = plan(["model=transformer", "task=mqar"])
    assert run.run_id == PINNED_MQAR


PINNED_MQAR = "fe2cb48d7d62"
