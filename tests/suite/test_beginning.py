"""Runs that begin with what another run has made: its trained weights, or the steps that both have in common."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import suite
from suite.beginning import fill_first
from suite.cli import main
from suite.plan import plan
from suite.results import load_results
from suite.saved import new_model
from suite.store.checkpoint import save_final
from suite.store.run_directory import Damaged, RunDirectory
from tests.suite.conftest import SMALL
from tests.suite.running.test_train import numbers

QUICK = ["compute.log_seconds=0", "compute.checkpoint_seconds=1000", "eval=none"]
CONSTANT = ["train.schedule=constant"]


def request(store: Path, *others: str) -> list[str]:
    keys = {each.partition("=")[0] for each in others}
    return [*(each for each in SMALL if each.partition("=")[0] not in keys), *QUICK, f"paths.results={store}", *others]


def weights(store: Path, run_id: str) -> dict[str, torch.Tensor]:
    return load_file(store / "runs" / run_id / "checkpoint" / "model.safetensors")


def assert_equal_runs(store: Path, other: Path, run_id: str) -> None:
    one, two = weights(store, run_id), weights(other, run_id)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    name = f"runs/{run_id}/train.json"
    assert numbers(store)[name] == numbers(other)[name]


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> tuple[Path, str]:
    """A store with a run of 12 steps at one rate, which keeps its checkpoints after 5 and 10; and the run's id."""
    store = tmp_path_factory.mktemp("short") / "results"
    typed = request(store, *CONSTANT, "compute.keep_every=5")
    assert main(["run", *typed]) == 0
    return store, plan(typed)[0].run_id


@pytest.fixture
def store(short, tmp_path) -> Path:
    return Path(shutil.copytree(short[0], tmp_path / "results"))


@pytest.mark.parametrize(
    "later",
    [
        ["train.steps=20", *CONSTANT],
        ["train.steps=18", "train.schedule=wsd", "train.decay_steps=6", "train.decay_shape=sqrt"],
        # The other run has kept a checkpoint behind the end of this one, too.
        ["train.steps=8", *CONSTANT],
    ],
    ids=["more steps", "a decay behind them", "fewer steps"],
)
def test_a_run_goes_on_with_the_steps_that_another_has_taken(later, short, store, tmp_path, capsys):
    """It has the name, the weights, the numbers and the log of the run that takes all steps itself."""
    run_id, alone = plan(request(store, *later))[0].run_id, tmp_path / "alone"
    assert main(["run", *request(store, *later, f"train.continue_from={short[1][:6]}")]) == 0
    assert main(["run", *request(alone, *later)]) == 0
    assert_equal_runs(store, alone, run_id)
    lines = [json.loads(line) for line in (store / "runs" / run_id / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines]
    assert steps == list(range(1, steps[-1] + 1)) and steps[-1] in (8, 18, 20)
    source = (store / "runs" / short[1] / "metrics.jsonl").read_text().splitlines()
    assert [line["seconds"] for line in lines[:5]] == [json.loads(line)["seconds"] for line in source[:5]]
    # It is the same run for whoever asks for it without saying what it went on from.
    capsys.readouterr()
    assert main(["run", *request(store, *later)]) == 0 and "1 of them done already" in capsys.readouterr().err
    # The run that it went on from is what it was.
    assert len(list((store / "runs" / short[1] / "checkpoint" / "kept").iterdir())) == 2


def test_where_the_checkpoint_is_damaged_the_one_before_is_gone_on_from(short, store, tmp_path, capsys):
    later, alone = ["train.steps=20", *CONSTANT], tmp_path / "alone"
    damaged = store / "runs" / short[1] / "checkpoint" / "kept" / "step-000000010.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert main(["run", *request(store, *later, f"train.continue_from={short[1]}")]) == 0
    assert "step-000000010.safetensors is not whole" in capsys.readouterr().err
    assert main(["run", *request(alone, *later)]) == 0
    assert_equal_runs(store, alone, plan(request(store, *later))[0].run_id)


@pytest.mark.parametrize(
    ("others", "said"),
    [
        (
            ["train.steps=20"],
            "it keeps checkpoints after [5,10] steps, permitted are up to 3, as far as both runs are equal",
        ),
        (["train.steps=20", *CONSTANT, "seed=1"], "seed is 0 in that run and 1 in this one; permitted are runs that differ in"),
        (["train.steps=20", *CONSTANT, "size.d_model=64"], "size.d_model is 32 in that run and 64 in this one"),
        (["train.steps=20", *CONSTANT, "train.batch_size=4"], "train.batch_size is 8 in that run and 4 in this one"),
        (["train.steps=4", *CONSTANT], "permitted are up to 3, as far as both runs are equal"),
        (["train.steps=20", *CONSTANT, "train.start_from=ID"], "permitted are null with train.start_from"),
    ],
)
def test_a_run_that_goes_another_way_is_refused_in_one_line(others, said, short, store, capsys):
    asked = [each.replace("ID", short[1]) for each in (*others, "train.continue_from=ID")]
    assert main(["run", *request(store, *asked)]) == 2
    told = capsys.readouterr().err
    assert said in told and len(told.splitlines()) == 1, told
    assert [path.name for path in (store / "runs").iterdir()] == [short[1]]


def test_a_run_that_keeps_no_checkpoint_is_not_gone_on_from(short, store, capsys):
    shutil.rmtree(store / "runs" / short[1] / "checkpoint" / "kept")
    assert main(["run", *request(store, "train.steps=20", *CONSTANT, f"train.continue_from={short[1]}")]) == 2
    assert "it keeps no checkpoint, permitted are runs that were trained with compute.keep_every" in capsys.readouterr().err


def test_a_run_starts_from_the_weights_of_another_and_is_named_after_them(short, store, tmp_path):
    typed = request(store, "train.lr=1e-3", f"train.start_from={short[1][:5]}")
    (run,) = plan(typed)
    assert run.run_id != plan(request(store, "train.lr=1e-3"))[0].run_id
    assert run.config.train.start_from == short[1] and run.config.train.start_digest is not None
    assert main(["run", *typed]) == 0
    source = weights(store, short[1])
    first = json.loads((store / "runs" / run.run_id / "metrics.jsonl").read_text().splitlines()[0])
    untrained = json.loads((store / "runs" / short[1] / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] < untrained["loss"]
    # Once trained it needs the other run no more; a store of equal weights under another id gives the same name.
    shutil.move(store / "runs" / short[1], store / "runs" / "f00000000000")
    renamed = request(store, "train.lr=1e-3", "train.start_from=f00000000000")
    assert plan(renamed)[0].run_id == run.run_id
    shutil.rmtree(store / "runs" / "f00000000000")
    assert main(["evaluate", f"run={run.run_id}", "eval=test", f"paths.results={store}"]) == 0
    assert not torch.equal(next(iter(weights(store, run.run_id).values())), next(iter(source.values())))


def test_weights_that_do_not_fit_or_are_not_there_are_refused(short, store, capsys):
    for others, said in (
        (["size.mlp_dim=64", "train.start_from=ID"], "in that run and [64, 32] in this one; permitted are equals"),
        (["train.start_from=abc"], "train.start_from=abc: unknown run 'abc'"),
        (["train.start_digest=0123456789abcdef"], "permitted are null without train.start_from"),
        (["train.start_digest=0123456789abcdef", "train.start_from=ID"], "the digest of run ID's weights"),
    ):
        assert main(["run", *request(store, *(each.replace("ID", short[1]) for each in others))]) == 2
        told = capsys.readouterr().err
        assert said.replace("ID", short[1]) in told and len(told.splitlines()) == 1, told


def test_weights_that_changed_since_the_run_was_named_are_not_started_from(short, store):
    (run,) = plan(request(store, f"train.start_from={short[1]}"))
    model = new_model(run, torch.device("cpu"))
    save_final(RunDirectory(store, short[1]), model)
    with pytest.raises(Damaged, match="is not what this run was to start from"):
        fill_first(run.config, store, model)


def test_what_a_checkpoint_scores_stands_beside_the_scores_of_the_end(short, store, capsys):
    place = f"paths.results={store}"
    assert main(["evaluate", f"run={short[1]}", "eval=test", place]) == 0
    before = {path.name: path.read_bytes() for path in (store / "runs" / short[1] / "eval").iterdir()}
    assert main(["evaluate", f"run={short[1]}", "step=5,10", "eval=test", place]) == 0
    after = {path.name: path.read_bytes() for path in (store / "runs" / short[1] / "eval").iterdir()}
    assert len(after) == 3 and before.items() <= after.items()
    rows = load_results(store).query("metric == 'nll' and split == 'test'")
    whole = rows[~rows["slice"].str.contains("num_pairs")].set_index("stage")
    assert whole.loc["test@5", "step"] == 5 and whole.loc["test", "slice"] == ""
    assert len(set(whole["value"])) == 3
    # Nothing is measured twice, and the run asks for none of it.
    capsys.readouterr()
    assert main(["evaluate", f"run={short[1]}", "step=10", "eval=test", place]) == 0
    assert "1 of them done already" in capsys.readouterr().err
    assert main(["evaluate", f"run={short[1]}", "step=7", "eval=test", place]) == 2
    assert "keeps no checkpoint of it, permitted are 5, 10" in capsys.readouterr().err
    assert main(["evaluate", f"run={short[1]}", "step=last", "eval=test", place]) == 2


def test_a_kept_checkpoint_that_is_damaged_is_refused_without_a_command_that_makes_nothing(short, store, capsys):
    damaged = store / "runs" / short[1] / "checkpoint" / "kept" / "step-000000010.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert main(["evaluate", f"run={short[1]}", "step=10", "eval=test", f"paths.results={store}"]) == 1
    told = capsys.readouterr().err
    assert "step-000000010.safetensors is not whole" in told and "is made again" not in told
    with pytest.raises(ValueError, match=r"step-000000010.safetensors is not whole \([^;]*\)$"):
        suite.load_model(short[1], store, step=10)


def test_a_kept_checkpoint_is_a_model_in_python(short, store):
    middle, end = suite.load_model(short[1], store, step=10), suite.load_model(short[1], store)
    (lines,) = {len(list(model.parameters())) for model in (middle, end)}
    assert lines and any(not torch.equal(a, b) for a, b in zip(middle.parameters(), end.parameters(), strict=True))
    with pytest.raises(ValueError, match="permitted are 5, 10"):
        suite.load_model(short[1], store, step=12)
