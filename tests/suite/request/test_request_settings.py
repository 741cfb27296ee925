"""Every key of the configuration has a type, and what is not of it is refused by name before anything is written."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from suite.ranges import check_values, kinds
from suite.values import fit

from conf.groups import options
from suite.cli import main
from suite.plan import plan
from suite.request.overrides import RequestError, compose_config, parse

# Between them they have every mixer and every task.
PAIRS = [
    *zip(options("model"), ["mqar", "parity", "in_context_regression", "efficiency", "language"] * 9, strict=False),
    ("mesanet", "language"),
]
# What may be left open, written down a second time.
OPEN = {
    *("experiment.name", "model.mixer.window", "task.segment_len", "task.num_train", "task.max_validation_examples"),
    *(f"model.{mixer}.{gate}_gate_init" for mixer in ("mixer", "mesa") for gate in ("forget", "input")),
    *(f"model.{mixer}.{key}" for mixer in ("mixer", "mesa") for key in ("forget_cap", "random_steps", "refresh")),
    *(f"{data}.{key}" for data in ("data", "task.data") for key in ("path", "tokenizer")),
    *(f"eval.{key}" for key in ("include_path", "num_fewshot", "limit", "max_length")),
}
# A comma list of benchmarks is one word, and seconds may be written as a whole number.
RIGHT = {("eval.tasks", "word"), ("compute.checkpoint_seconds", "2.5")}
# Values by what no key of such a default takes. The default's type is the oracle, not the table that is tested.
WRONG = {
    bool: ("1", "0", "1.0", "'true'", "word", "[true]", "{a: 1}", "null", "nan", "cast"),
    int: ("true", "2.5", "'8'", "word", "[8]", "{a: 1}", "null", "nan", "inf", "9223372036854775808", "1e300", "../../etc"),
    float: ("true", "'8'", "word", "[8]", "{a: 1}", "null", "nan", "inf", "-inf", "1e400", "1e300", "../../etc/passwd"),
    str: ("true", "1.5", "[a]", "{a: 1}", "null", "nan", ""),
    list: ("1.5", "word", "{a: 1}", "null", "true", "[[[1]]]", "[null]", "[{a: [1]}]"),
    dict: ("1", "word", "[1]", "null", "true", "1e300"),
}


def composed(model: str, task: str) -> DictConfig:
    return compose_config([f"model={model}", f"task={task}"])


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")


def wrong_requests(seed: int, count: int) -> list[tuple[str, str, str, str]]:
    """(model, task, key, value): each value is of another type than its key's, or beyond its range."""
    cases = []
    for model, task in PAIRS:
        for key, value in leaves(OmegaConf.to_container(composed(model, task), resolve=True)):
            # Rates of learning are a table of the model's own, and a grid is read from its file.
            if value is None or key == "experiment.grid" or key.startswith("model.lr"):
                continue
            cases += [
                (model, task, key, wrong)
                for wrong in WRONG[type(value)]
                if not (wrong == "null" and key in OPEN) and (key, wrong) not in RIGHT
            ]
    return random.Random(seed).sample(cases, count)


@pytest.mark.parametrize(("model", "task"), PAIRS)
def test_every_key_has_a_type_and_every_default_is_of_it(model, task):
    config = composed(model, task)
    values = OmegaConf.to_container(config, resolve=True)
    table = kinds(values)
    assert set(table) == set(values)
    for group, value in values.items():
        if isinstance(value, dict):
            assert set(table[group]) == set(value), group
    check_values(config)
    assert OmegaConf.to_container(config, resolve=True) == values


def test_every_file_of_a_group_composes_and_is_of_its_types():
    for group in ("size", "train", "eval", "compute", "data"):
        for name in options(group):
            typed = ["data.path=x.txt"] if name == "text" else []
            check_values(compose_config([f"{group}={name}", *typed]))


def test_a_wrong_value_of_any_key_is_refused_by_name():
    accepted, unnamed = [], []
    for model, task, key, value in wrong_requests(seed=0, count=500):
        if key == "paths" or key.startswith("task.data."):
            # Composing refuses these itself, since other keys refer to `paths`, and `task.data` refers to `data`.
            continue
        config = composed(model, task)
        try:
            # As a request is: the value laid over the composed configuration.
            OmegaConf.update(config, key, parse([f"{key}={value}"])[0].value(), merge=False)
            check_values(config)
            accepted.append(f"{key}={value}")
        except RequestError as error:
            # What a list or a mapping holds is named by its place in it.
            if not all(part in str(error) for part in (key.split(".")[-1], "permitted")) or "\n" in str(error):
                unnamed.append((key, value, str(error)))
    assert not accepted and not unnamed


def test_a_wrong_request_ends_in_one_line_with_status_2_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for model, task, key, value in wrong_requests(seed=1, count=40):
        status = main(["run", f"model={model}", f"task={task}", f"{key}={value}"])
        said = capsys.readouterr().err
        assert status == 2 and said.count("\n") == 1 and said.startswith("error: "), (key, value, said)
        assert key.split(".")[-1] in said, (key, value, said)
    assert not list(tmp_path.iterdir())


NAMED = [
    ("task=mqar", "task.noise=true", "task.noise"),
    ("task=in_context_regression", "task.noise=true", "task.noise=true is out of range, permitted are numbers"),
    ("task=language", "task.reset_at_bos=cast", "task.reset_at_bos=cast is out of range, permitted are true, false"),
    ("model=mesanet", "model.mixer.signed_decay=[a]", "model.mixer.signed_decay=[a] is out of range, permitted are true, false"),
    ("model=gla", "model.mixer.chunk_size=2.5", "model.mixer.chunk_size=2.5 is out of range, permitted are whole numbers"),
    ("model=gla", "model.mixer.value_dim=[1]", "model.mixer.value_dim=[1] is out of range, permitted are whole numbers"),
    ("model=gla", "model.mixer.type=1.0", "model.mixer.type=1.0 is out of range, permitted are words"),
    ("model=gla", "model.mixer.type=mixer.SequenceMixer", "model.mixer.type: mixer type 'mixer.SequenceMixer'"),
    ("model=gla", "model.pattern=1.5", "model.pattern=1.5 is out of range, permitted are lists of words"),
    ("model=gla", "model.pattern=[name]", "model.pattern=['name'] has 'name', permitted are mixer"),
    ("model=gla", "+model.mixer.d_model=3", "unknown key 'model.mixer.d_model'"),
    ("model=gla", "+model.other=3", "model.other=3 is out of range"),
    ("model=gla", "model.name=../../etc/passwd", "model.name=../../etc/passwd is out of range, permitted are words of letters"),
    ("model=gla", "eval.stages=0.5", "eval.stages=0.5 is out of range, permitted are lists"),
    ("model=gla", "size.norm_eps=glob(*)", "size.norm_eps=glob(*)"),
    ("model=gla", "train.batch_size=9223372036854775808", "permitted are whole numbers from 1 to 1048576"),
    ("model=gla", "train.final_lr_fraction=3e9", "=3000000000.0 is out of range, permitted are numbers from 0 to 1"),
    ("model=gla", "train.autocast=bflot16", "did you mean bfloat16?"),
    ("model=gla", "experiment.name=../x", "experiment.name=../x is out of range"),
    ("model=gla", "experiment.grid=[]", "experiment.grid can't be typed"),
    ("model=gla", "eval.solvers=[{max_steps: 2.5}]", "eval.solvers[0].max_steps=2.5 is out of range"),
    ("model=gla", "paths=3", "paths=3 is out of range"),
    ("model=gla", "train.lr=${nope}", "train.lr: Interpolation key 'nope' not found"),
    ("model=gla", "size@other=tiny", "'size@other=tiny' is not of the form key=value"),
    ("model=gla", "=3", "'=3' is not of the form key=value"),
    ("model=gla", "model.label=a\nb", "model.label='a\\nb' is out of range"),
]


@pytest.mark.parametrize(("first", "argument", "said"), NAMED)
def test_the_line_names_the_key_the_value_and_what_is_permitted(first, argument, said, capsys):
    assert main(["check", first, argument]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


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
    assert whole.config == real.config and whole.config["model"]["mixer"]["key_dim"] == whole.config["size"]["head_dim"]


@pytest.mark.parametrize(
    ("kind", "value", "made"),
    [
        (int, 8.0, 8),
        (float, 8, 8.0),
        (float | None, None, None),
        (int | str, "8", "8"),
        (Path, 2026, "2026"),
        (Path, "~/a,b,~/c", "/home/me/a,b,/home/me/c"),
        (Path, "~", "/home/me/"),
        (Path, "a~b", "a~b"),
    ],
)
def test_a_value_is_made_exactly_of_its_type(kind, value, made, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert repr(fit("key", value, kind)) == repr(made)


@pytest.mark.parametrize(
    "key", ["paths.results", "paths.reports", "paths.cache", "data.path", "data.tokenizer", "eval.include_path"]
)
def test_the_tilde_is_the_home_folder_in_every_path(key, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    text = ["data=text", *([] if key == "data.path" else ["data.path=x"])]
    config = compose_config([*text, f"{key}=~/there"])
    check_values(config)
    assert OmegaConf.select(config, key) == "/home/me/there"
    with pytest.raises(RequestError, match="~nobody-of-that-name/x is out of range, permitted are paths \\(~ a user's home\\)"):
        check_values(compose_config([*text, f"{key}=~nobody-of-that-name/x"]))


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
    monkeypatch.setattr("suite.values.pwd.getpwuid", lambda _: type("Entry", (), {"pw_dir": "/passwd"}))
    config = compose_config(["model=gla"])
    assert config.paths.cache == config.data.cache == cache


def test_without_a_home_the_cache_is_in_the_present_folder_and_the_tilde_is_refused(monkeypatch):
    def nobody(_: int) -> None:
        raise KeyError

    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("suite.values.pwd.getpwuid", nobody)
    assert compose_config(["model=gla"]).paths.cache == os.path.join(".", ".cache", "linear-rnn-suite")
    with pytest.raises(RequestError, match="~/r is out of range"):
        compose_config(["model=gla", "paths.results=~/r"])


@pytest.mark.parametrize("path", ["a=b.txt", "a(b.txt", "ä ö.txt", "it's.txt", "a\\b.txt", "[ab]*.txt", "a = b{c.txt", "-.txt"])
def test_a_path_needs_no_quotes(path):
    cell = compose_config(["data=text", f"data.path={path}"])
    check_values(cell)
    assert cell.data.path == path
