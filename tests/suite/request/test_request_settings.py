"""A value is made of the type that is declared: 8 and 8.0 are one number, a path is found as it is typed."""

from __future__ import annotations

import os

import msgspec
import pytest

from conf.paths import UserPath, UserPaths
from conf.settings import RequestError, Settings
from suite.evaluation.stages import read_eval
from suite.plan import plan
from suite.request.compose import compose_one

ONE_NUMBER = [
    ("transformer", "mqar", "model.mixer.rope_base", 10000),
    ("hawk", "mqar", "model.mixer.decay_power", 8),
    ("hawk", "mqar", "model.mixer.width_multiplier", 2),
    ("gla_original", "mqar", "model.mixer.key_ratio", 1),
    ("gla_original", "mqar", "model.mixer.decay_temperature", 16),
    ("gated_kalmanet", "mqar", "model.mixer.regularizer_ratio", 1),
    ("mamba2_original", "mqar", "model.mixer.decay_rate_max", 16),
    ("mamba2_original", "mqar", "model.mixer.decay_rate_min", 1),
    ("mesanet", "mqar", "model.mixer.regularizer_init", 1),
    ("mesanet", "mqar", "model.mixer.solver.tolerance", 0),
    ("mesanet", "mqar", "model.mixer.random_steps", 3),
    ("gla", "mqar", "task.power_a", 1),
    ("gla", "in_context_regression", "task.noise", 1),
    ("gla", "mqar", "task.num_pairs", [2, 4]),
    ("gla", "mqar", "train.betas", [0, 0]),
    ("gla", "mqar", "train.lr", 1),
    ("gla", "mqar", "size.num_heads", 4),
    ("gla", "mqar", "task.seq_len", 64),
    ("gla", "mqar", "seed", 3),
]


@pytest.mark.parametrize(("model", "task", "key", "number"), ONE_NUMBER)
def test_a_whole_number_and_the_same_real_one_give_a_run_one_name(model, task, key, number):
    real = [float(each) for each in number] if isinstance(number, list) else float(number)
    first, second = (plan([f"model={model}", f"task={task}", f"{key}={value}"])[0] for value in (number, real))
    assert first.run_id == second.run_id and first.config == second.config


def test_a_size_that_was_typed_as_a_real_number_still_reaches_the_mixer_when_arms_are_matched():
    arguments = ["match.by=state", "match.reference=gla", "match.tolerance=0.1", "model=mesanet", "task=mqar"]
    whole, real = (plan([*arguments, f"size.head_dim={value}"])[0] for value in ("16", "16.0"))
    assert whole.config == real.config and whole.config.model.mixers[0].key_dim == whole.config.size.head_dim


@pytest.mark.parametrize(
    ("kind", "value", "made"),
    [
        (int, 8.0, 8),
        (float, 8, 8.0),
        (float | None, None, None),
        (int | str, "8", "8"),
        (UserPath, 2026, "2026"),
        (UserPath, "~/a,b", "/home/me/a,b"),
        (UserPath, "~", "/home/me/"),
        (UserPath, "a~b", "a~b"),
        (UserPaths, "~/a,b,~/c", ("/home/me/a", "b", "/home/me/c")),
        (UserPaths, ["~/a,b", "c"], ("/home/me/a,b", "c")),
    ],
)
def test_a_value_is_made_exactly_of_its_type(kind, value, made, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    one = msgspec.defstruct("One", [("key", kind)], bases=(Settings,), frozen=True, kw_only=True)
    assert repr(one.read({"key": value}).key) == repr(made)


def path_of(key: str, arguments: list[str]) -> str | tuple[str, ...]:
    """What a request has at the key of a path."""
    composed, (group, name) = compose_one(arguments), key.split(".")
    return getattr({"paths": composed.paths, "data": composed.data, "eval": read_eval(composed.evaluation)[0]}[group], name)


@pytest.mark.parametrize(
    "key",
    ["paths.results", "paths.reports", "paths.cache", "data.path", "data.tokenizer", "eval.include_path", "eval.data_root"],
)
def test_the_tilde_is_the_home_folder_in_every_path(key, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    beside = ["data=text", *([] if key == "data.path" else ["data.path=x"])]
    there = path_of(key, [*beside, f"{key}=~/there"])
    assert there == (("/home/me/there",) if key == "data.path" else "/home/me/there")
    with pytest.raises(RequestError, match="~nobody-of-that-name/x is out of range, permitted are paths \\(~ a user's home\\)"):
        path_of(key, [*beside, f"{key}=~nobody-of-that-name/x"])


@pytest.mark.parametrize(
    ("environment", "cache"),
    [
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/linear-rnn-suite"),
        ({"XDG_CACHE_HOME": "", "HOME": "/h"}, "/h/.cache/linear-rnn-suite"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/linear-rnn-suite"),
        ({"HOME": "/h"}, "/h/.cache/linear-rnn-suite"),
        ({"XDG_CACHE_HOME": "", "HOME": ""}, "/passwd/.cache/linear-rnn-suite"),
        ({}, "/passwd/.cache/linear-rnn-suite"),
    ],
)
def test_the_cache_is_never_at_the_root(environment, cache, monkeypatch):
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("conf.paths.pwd.getpwuid", lambda _: type("Entry", (), {"pw_dir": "/passwd"}))
    composed = compose_one(["model=gla"])
    assert composed.paths.cache == composed.data.cache == cache


def test_without_a_home_the_cache_is_in_the_present_folder_and_the_tilde_is_refused(monkeypatch):
    def nobody(_: int) -> None:
        raise KeyError

    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("conf.paths.pwd.getpwuid", nobody)
    assert compose_one(["model=gla"]).paths.cache == os.path.join(".", ".cache", "linear-rnn-suite")
    with pytest.raises(RequestError, match="~/r is out of range"):
        compose_one(["model=gla", "paths.results=~/r"])


@pytest.mark.parametrize("path", ["a=b.txt", "a(b.txt", "ä ö.txt", "it's.txt", "a\\b.txt", "[ab]*.txt", "a = b{c.txt", "-.txt"])
def test_a_path_needs_no_quotes(path):
    assert compose_one(["data=text", f"data.path={path}"]).data.path == (path,)
