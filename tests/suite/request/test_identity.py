"""Names of runs: what is in them, what is not, and that they stay."""

from __future__ import annotations

import copy

import pytest

from suite.plan import plan
from suite.request.identity import canonical_json, group_id, identity, run_id, with_neutral, without_neutral

CONFIG = {
    "model": {
        "name": "m",
        "version": 1,
        "label": "M",
        "pattern": ["mixer"],
        "mixer": {"type": "a.A", "num_heads": 2},
        "lr": {"x": 1},
    },
    "size": {"name": "tiny", "d_model": 64},
    "task": {
        "name": "t",
        "version": 1,
        "data": {"name": "text", "path": "/a", "cache": "/c", "tokenizer": None, "validation_fraction": 0.1},
    },
    "train": {"steps": 10, "lr": 0.001},
    "backend": "torch",
    "seed": 0,
    "compute": {"threads": 1},
    "paths": {"results": "results"},
}


def changed(*keys: str, value: object) -> dict:
    config = {key: dict(part) if isinstance(part, dict) else part for key, part in CONFIG.items()}
    inner = config
    for key in keys[:-1]:
        inner[key] = dict(inner[key])
        inner = inner[key]
    inner[keys[-1]] = value
    return config


def name(config: dict, fingerprint: str = "f") -> str:
    return run_id(identity(config, data_fingerprint=fingerprint))


def test_names_are_pinned():
    whole = identity(CONFIG, data_fingerprint="f")
    assert (run_id(whole), group_id(whole)) == PINNED


PINNED = ("a343495ae2d7", "a6280294ced5")


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("model", "version"), 2),
        (("model", "mixer"), {"type": "a.A", "num_heads": 4}),
        (("size", "d_model"), 128),
        (("task", "version"), 2),
        (("task", "data", "validation_fraction"), 0.2),
        (("train", "lr"), 0.002),
        (("backend",), "fla"),
        (("seed",), 1),
    ],
)
def test_what_decides_the_numbers_changes_the_name(keys, value):
    assert name(changed(*keys, value=value)) != name(CONFIG)


def test_the_text_changes_the_name():
    assert name(CONFIG, "other") != name(CONFIG)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("model", "label"), "other"),
        (("model", "lr"), {}),
        (("size", "name"), "other"),
        (("task", "data", "path"), "/b"),
        (("task", "data", "cache"), "/d"),
        (("compute", "threads"), 2),
        (("paths", "results"), "/elsewhere"),
    ],
)
def test_what_does_not_decide_the_numbers_leaves_the_name(keys, value):
    assert name(changed(*keys, value=value)) == name(CONFIG)


def test_a_group_is_the_runs_that_differ_in_their_seed():
    groups = {group_id(identity(changed("seed", value=seed), data_fingerprint="f")) for seed in range(3)}
    assert len(groups) == 1


def test_a_key_at_its_neutral_value_is_left_out():
    whole = {"train": {"lr": 0.1, "new": 0}, "new": 0}
    assert without_neutral(whole, {"train.new": 0}) == {"train": {"lr": 0.1}, "new": 0}
    assert without_neutral({"train": {"new": 1}}, {"train.new": 0}) == {"train": {"new": 1}}


def test_recall_of_before_keeps_its_name_and_gets_the_key_added_since():
    """A configuration written before MQAR had num_train."""
    (run,) = plan(["model=gla", "task=mqar"])
    old = copy.deepcopy(run.config)
    del old["task"]["num_train"]
    assert run_id(identity(old, data_fingerprint=run.data_fingerprint)) == run.run_id
    assert with_neutral(old)["task"] == run.config.task
    (bounded,) = plan(["model=gla", "task=mqar", "task.num_train=100"])
    assert bounded.run_id != run.run_id and with_neutral(bounded.config) == bounded.config


@pytest.mark.parametrize("name", ["mesanet", "hawk_mesa"])
def test_a_mesa_of_before_keeps_its_name_and_gets_the_keys_added_since(name):
    """A configuration written before a Mesa mixer had solver.initial and the like."""
    (run,) = plan([f"model={name}", "task=mqar"])
    old = copy.deepcopy(run.config)
    mixer = old["model"][old["model"]["pattern"][-1]]
    for key in ("random_steps", "signed_decay", "decode", "refresh"):
        del mixer[key]
    for key in ("initial", "gradient"):
        del mixer["solver"][key]
    assert run_id(identity(old, data_fingerprint=run.data_fingerprint)) == run.run_id == PINNED_MESA[name]
    assert with_neutral(old)["model"] == run.config.model
    other = copy.deepcopy(run.config)
    other["model"][old["model"]["pattern"][-1]]["solver"]["initial"] = "query"
    assert with_neutral(other) == other and run_id(identity(other, data_fingerprint=run.data_fingerprint)) != run.run_id


PINNED_MESA = {"mesanet": "99d475afcb38", "hawk_mesa": "be94b52e5290"}


def test_canonical_json_forgets_order():
    assert canonical_json({"b": 1, "a": [1, 2]}) == canonical_json({"a": [1, 2], "b": 1}) == '{"a":[1,2],"b":1}'


def test_the_name_of_a_whole_request_is_pinned():
    """Changes when a default that decides numbers changes: then raise the version of the model or task that it belongs to."""
    (run,) = plan(["model=transformer", "task=mqar"])
    assert run.run_id == PINNED_MQAR


PINNED_MQAR = "fe2cb48d7d62"
