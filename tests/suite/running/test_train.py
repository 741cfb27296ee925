"""Training: the same numbers whatever interrupts it, and an end to what does not learn."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from suite.cli import command as command_line
from suite.cli import main
from suite.compute.optimization import build_optimizer, learning_rate
from suite.compute.order import example_indices
from suite.plan import plan
from suite.running import book, train, trainee
from suite.saved import new_model
from suite.store.checkpoint import Progress, load_checkpoint, save_checkpoint, training_state
from suite.store.run_directory import RunDirectory
from tasks.task import Measurement

CPU = torch.device("cpu")
TIMES = {"train_seconds", "tokens_per_second", "overhead"}


def numbers(results: Path) -> dict[str, list]:
    """Every number of a store that does not depend on the clock, by file."""
    found = {}
    for path in sorted(results.glob("runs/*/train.json")) + sorted(results.glob("runs/*/eval/*.json")):
        rows = json.loads(path.read_text())["rows"]
        found[str(path.relative_to(results))] = [row for row in rows if row["metric"] not in TIMES]
    return found


def losses(results: Path) -> list[tuple[int, float]]:
    (path,) = results.glob("runs/*/metrics.jsonl")
    return [(row["step"], row["loss"]) for row in map(json.loads, path.read_text().splitlines())]


def weights(results: Path) -> dict[str, torch.Tensor]:
    (path,) = results.glob("runs/*/checkpoint/model.safetensors")
    return load_file(path)


@pytest.mark.parametrize(
    "model", [["model=gated_deltanet"], ["model=mesanet", "model.mixer.random_steps=5", "model.mixer.solve_from=6"]]
)
def test_killed_and_resumed_equals_uninterrupted(model, small, tmp_path):
    """A model that draws something anew for every batch is among them."""
    small = [*model, *small[1:]]
    assert main(["run", *small]) == 0
    whole, killed = tmp_path / "results", tmp_path / "killed"
    request = [*small[:-3], f"paths.results={killed}", *small[-2:]]
    process = multiprocessing.get_context("fork").Process(target=main, args=(["run", *request],))
    process.start()
    deadline = time.monotonic() + 120
    while not list(killed.glob("runs/*/checkpoint/step-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.join()
    assert list(killed.glob("runs/*/checkpoint/step-*")) and not list(killed.glob("runs/*/train.json"))
    assert main(["run", *request]) == 0
    assert numbers(killed) == numbers(whole) and losses(killed) == losses(whole)
    assert [step for step, _ in losses(killed)] == list(range(1, 13))
    first, second = weights(killed), weights(whole)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_checkpoint_cut_short_falls_back_to_the_one_before(small, tmp_path):
    (run,) = plan(small)
    directory, told = RunDirectory(tmp_path, run.run_id), []
    model = new_model(run, CPU)
    optimizer = build_optimizer(model, run.config.train)
    model(torch.zeros(1, 4, dtype=torch.int64))[0].sum().backward()
    for step in (1, 2, 3):
        optimizer.step()
        save_checkpoint(directory, training_state(model, optimizer, None), Progress(step, float(step), 0.5, 3.0, (1.0,)))
    assert sorted(path.name for path in directory.checkpoints.glob("step-*")) == [
        "step-000000002.safetensors",
        "step-000000003.safetensors",
    ]
    last = directory.checkpoints / "step-000000003.safetensors"
    fresh = new_model(run, CPU)
    again = build_optimizer(fresh, run.config.train)
    assert load_checkpoint(directory, fresh, again, told.append)[0] == Progress(3, 3.0, 0.5, 3.0, (1.0,))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))
    for parameter, twin in zip(model.parameters(), fresh.parameters(), strict=True):
        assert all(torch.equal(optimizer.state[parameter][key], again.state[twin][key]) for key in optimizer.state[parameter])
    last.write_bytes(last.read_bytes()[:-100])
    assert load_checkpoint(directory, fresh, again, told.append)[0] == Progress(2, 2.0, 0.5, 3.0, (1.0,))


def test_a_learning_rate_that_diverges_ends_as_such_and_the_sweep_goes_on(small, tmp_path, capsys):
    request = [*(s for s in small if not s.startswith("train.steps")), "train.steps=60", "train.lr=3e-3,1e3", "compute.jobs=1"]
    assert main(["run", *request]) == 1
    statuses = [json.loads(path.read_text()) for path in (tmp_path / "results").glob("runs/*/status.json")]
    assert sorted(status["status"] for status in statuses) == ["diverged", "done"]
    (diverged,) = (status for status in statuses if status["status"] == "diverged")
    assert 0 <= diverged["step"] < 60 and "diverged at step" in diverged["reason"]
    assert f"diverged at step {diverged['step']}" in capsys.readouterr().err
    # It would diverge again: the second call says so and repeats nothing.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").glob("runs/*/metrics.jsonl")}
    assert main(["run", *request]) == 1
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_run_of_infinite_perplexity_is_done_and_one_of_infinite_nll_has_diverged(small, tmp_path, monkeypatch):
    results = tmp_path / "results"
    for seed, nll in enumerate((800.0, math.inf)):
        scores = [Measurement("nll", nll, "validation", {}, 1), Measurement("perplexity", math.inf, "validation", {}, 1)]
        monkeypatch.setattr(train, "validate", lambda *_, scores=scores, **__: scores)
        assert main(["run", *small, "compute.jobs=1", f"seed={seed}"]) == seed
    assert sorted(json.loads(path.read_text())["status"] for path in results.glob("runs/*/status.json")) == ["diverged", "done"]
    written = [(row["metric"], row["value"]) for rows in numbers(results).values() for row in rows]
    assert {("nll", 800), ("perplexity", None)} <= set(written)


def run_saying(path: Path, request: list[str]) -> None:
    with path.open("w") as said, contextlib.redirect_stderr(said):
        sys.exit(main(["run", *request]))


def test_two_processes_share_the_work_and_repeat_nothing(small, tmp_path):
    request = [*small, "seed=0,1,2,3", "compute.jobs=1"]
    paths = [tmp_path / name for name in ("one.txt", "other.txt")]
    # A fork of this process, which has imported torch.
    twins = [multiprocessing.get_context("fork").Process(target=run_saying, args=(path, request)) for path in paths]
    for twin in twins:
        twin.start()
    for twin in twins:
        twin.join(180)
    assert [twin.exitcode for twin in twins] == [0, 0]
    said = "".join(path.read_text() for path in paths)
    runs = list((tmp_path / "results" / "runs").iterdir())
    assert len(runs) == 4 and all(
        (run / "train.json").exists() and [path.name for path in run.glob("lock*")] == ["lock.guard"] for run in runs
    )
    assert said.count("done in") == 4, said
    for run in runs:
        steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert steps == list(range(1, 13))


def test_workers_of_one_command_share_the_work_and_a_second_call_does_nothing(small, tmp_path, capsys):
    assert main(["run", *small, "seed=0,1,2", "compute.jobs=2"]) == 0
    said = capsys.readouterr().err
    assert said.count("done in") == 3, said
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*.json")}
    assert main(["run", *small, "seed=0,1,2", "compute.jobs=2"]) == 0
    assert "3 of them done already" in capsys.readouterr().err
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*.json")}


def test_killing_the_command_kills_its_workers(small, tmp_path):
    process = forked(lasting(small, steps=100000, jobs=2), tmp_path / "said.txt")
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "results").glob("runs/*/lock.claim-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = [json.loads(path.read_text())["pid"] for path in (tmp_path / "results").glob("runs/*/lock.claim-*")]
    assert len(workers) == 2
    process.kill()
    process.join()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


@pytest.fixture
def signals() -> Iterator[None]:
    """Signals do in this process what they did before, whatever a test makes of them."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@contextlib.contextmanager
def sent_once_it_trains(results: Path, number: int) -> Iterator[None]:
    """Sends a signal to this process as soon as a run in the store has logged, unless the block has ended by then."""
    ended = threading.Event()

    def send() -> None:
        while not ended.wait(0.01):
            if list(results.glob("runs/*/metrics.jsonl")):
                os.kill(os.getpid(), number)
                return

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        ended.set()
        sender.join()


def lasting(small: list[str], steps: int, jobs: int) -> list[str]:
    """A request for two runs that are not done before somebody interrupts them."""
    return [*(s for s in small if not s.startswith("train.steps")), f"train.steps={steps}", "seed=0,1", f"compute.jobs={jobs}"]


def assert_interrupted(results: Path, jobs: int) -> None:
    statuses = [json.loads(path.read_text())["status"] for path in results.glob("runs/*/status.json")]
    assert statuses == ["interrupted"] * jobs and not list(results.glob("runs/*/lock.claim-*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "a scheduler"])
def test_an_interrupted_command_says_so_and_leaves_no_lock(number, small, signals, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["suite", "run", *lasting(small, steps=400, jobs=1)])
    # As in a command that a script puts into the background; one that heeds no SIGTERM would end the tests.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    with sent_once_it_trains(tmp_path / "results", number):
        assert command_line() == 130
    assert "interrupted" in capsys.readouterr().err
    assert_interrupted(tmp_path / "results", jobs=1)


def forked(request: list[str], said: Path) -> BaseProcess:
    """The command in a session of its own, as a fork of this process, which has imported torch.

    So are its workers, each of which would import torch for seconds; a test above starts them as a command does. SIGINT is
    ignored at the start, as in a command that a script puts into the background.
    """
    fork = multiprocessing.get_context("fork")

    def run() -> None:
        os.setsid()
        multiprocessing.get_context = lambda method=None: fork
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.argv = ["suite", "run", *request]
        with said.open("w") as file, contextlib.redirect_stderr(file):
            sys.exit(command_line())

    process = fork.Process(target=run)
    process.start()
    return process


def send_to_all(pid: int, number: int) -> None:
    """As a terminal does on Ctrl-C."""
    os.killpg(pid, number)


@pytest.mark.parametrize(
    ("sent", "send"),
    [
        (signal.SIGINT, send_to_all),
        pytest.param(signal.SIGTERM, os.kill, marks=pytest.mark.slow),
    ],
    ids=["Ctrl-C to workers", "a scheduler of workers"],
)
def test_an_interrupted_command_with_workers_says_so_and_leaves_no_lock(sent, send, small, tmp_path):
    process = forked(lasting(small, steps=4000, jobs=2), tmp_path / "said.txt")
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "results").glob("runs/*/metrics.jsonl"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    send(process.pid, sent)
    process.join(60)
    assert process.exitcode == 130 and "interrupted" in (tmp_path / "said.txt").read_text()
    assert_interrupted(tmp_path / "results", jobs=2)


def test_an_evaluation_is_added_to_a_finished_run_and_trains_nothing(small, tmp_path):
    assert main(["run", *small, "eval=none"]) == 0
    (run,) = (tmp_path / "results" / "runs").iterdir()
    before = (run / "train.json").stat().st_mtime_ns
    assert not (run / "eval").exists()
    assert main(["evaluate", f"run={run.name}", "eval=test", f"paths.results={tmp_path / 'results'}"]) == 0
    assert len(list((run / "eval").glob("test-*.json"))) == 1 and (run / "train.json").stat().st_mtime_ns == before
    assert main(["evaluate", "run=all", "eval=test", f"paths.results={tmp_path / 'results'}"]) == 0
    assert len(list((run / "eval").glob("*.json"))) == 1


def test_a_missing_stage_is_run_again_alone(small, tmp_path):
    assert main(["run", *small]) == 0
    whole = numbers(tmp_path / "results")
    (run,) = (tmp_path / "results" / "runs").iterdir()
    before = (run / "train.json").stat().st_mtime_ns
    shutil.rmtree(run / "eval")
    assert main(["run", *small]) == 0
    assert numbers(tmp_path / "results") == whole and (run / "train.json").stat().st_mtime_ns == before


def test_learning_rate_warms_up_and_ends_at_its_fraction():
    train = plan([])[0].config.train.replace({"lr": 1.0, "warmup_steps": 4, "steps": 104, "final_lr_fraction": 0.1})
    assert [learning_rate(step, train) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert learning_rate(4, train) == 1.0 and math.isclose(learning_rate(54, train), 0.55)
    assert learning_rate(103, train) < 0.11
    assert learning_rate(0, train.replace({"warmup_steps": 0})) == 1.0


def test_the_order_of_examples_is_a_permutation_every_epoch():
    order = [i for step in range(5) for i in example_indices(step, batch_size=4, num_examples=10, seed=0)]
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10)) and order[:10] != order[10:]
    assert order != [i for step in range(5) for i in example_indices(step, batch_size=4, num_examples=10, seed=1)]
    assert example_indices(3, batch_size=4, num_examples=None, seed=0).tolist() == [12, 13, 14, 15]


def test_weight_decay_falls_on_linear_maps_alone(small):
    (run,) = plan(["model=mesanet", *small[1:]])
    model = new_model(run, CPU)
    optimizer = build_optimizer(model, run.config.train)
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed, free = ({names[p] for p in group["params"]} for group in optimizer.param_groups)
    assert decayed | free == set(names.values()) and not decayed & free
    assert "embedding.weight" in free and not any("norm" in name or "bias" in name or "convolution" in name for name in decayed)
    assert any("value_projection" in name for name in decayed)


def test_nothing_is_left_of_a_temporary_file(small, tmp_path):
    assert main(["run", *small]) == 0
    assert not [path for path in (tmp_path / "results").rglob(".*")]


def test_checkpoints_written_beside_the_training_are_those_written_at_once(small, tmp_path, monkeypatch):
    """The state is the one at the call, whatever the steps do meanwhile."""
    monkeypatch.setattr(book, "CHECKPOINT_SHARE", 1e9)
    written = []
    for name, at_once in (("at once", ("cpu",)), ("beside", ())):
        monkeypatch.setattr(trainee, "WRITTEN_AT_ONCE", at_once)
        request = [f"paths.results={tmp_path / name}" if each.startswith("paths.results") else each for each in small]
        assert main(["run", *request, "compute.keep_every=1"]) == 0
        tensors = {path.name: load_file(path) for path in (tmp_path / name).glob("runs/*/checkpoint/**/*.safetensors")}
        written.append({(file, key): tensor for file, held in tensors.items() for key, tensor in held.items()})
    assert len({file for file, _ in written[0]}) == 13 and written[0].keys() == written[1].keys()
    assert all(torch.equal(written[1][place], tensor) for place, tensor in written[0].items())
    assert numbers(tmp_path / "beside") == numbers(tmp_path / "at once")


def test_a_checkpoint_that_can_not_be_written_beside_is_left_out(small, monkeypatch, capsys):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trainee, "WRITTEN_AT_ONCE", ())
    monkeypatch.setattr(trainee, "save_checkpoint", fail)
    assert main(["run", *small]) == 0
    assert "a checkpoint is left out: " in capsys.readouterr().err
