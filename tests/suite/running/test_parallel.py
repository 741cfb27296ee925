"""Several ranks train as one process does, whatever becomes of one of them."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from suite.cli import main
from suite.compute.accumulation import count_asked
from suite.compute.parallel import alone, shares
from suite.compute.scoring import loss, training_inputs
from suite.plan import plan, task_of
from suite.running import apart
from suite.running.batches import batches, indices_of, unasked
from suite.running.failing import RankLost
from suite.running.health import Diverged
from suite.running.signals import INTERRUPTED
from suite.saved import new_model
from tests.suite.conftest import ROOT
from tests.suite.running.team import Team, team, until
from tests.suite.running.test_train import losses, numbers, weights

CPU = torch.device("cpu")
SMALL = (
    "task=mqar",
    "size.d_model=32",
    "size.num_blocks=2",
    "train.batch_size=6",
    "train.warmup_steps=2",
    "train.validate_steps=8",
    "train.keep=best",
    # Where a gradient is next to nothing, AdamW would make a step of its rounding.
    "train.eps=1.0e-5",
    "task.num_validation=32",
    "task.num_test=32",
    "eval=test",
    "compute.log_seconds=0",
    "compute.checkpoint_seconds=0",
    "compute.device=cpu",
)
MODELS = {
    # A solver that stops at a tolerance takes a step more or less where a residual is rounded otherwise.
    "mesanet": ("model=mesanet", "model.mixer.solver.tolerance=0"),
    "hybrid": ("model=gated_deltanet_hybrid",),
}


def request(model: str, results: Path, *more: str, steps: int = 20) -> list[str]:
    """What is typed for a run; of two values of a key the later one stands."""
    typed = [*SMALL, *MODELS[model], f"train.steps={steps}", f"paths.results={results}", *more]
    return [f"{key}={value}" for key, value in dict(each.split("=", 1) for each in typed).items()]


def in_ranks(parallel: str, *more: str) -> list[str]:
    return [f"compute.parallel={parallel}", *more]


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """The store of a single process by model, made when it is first asked for."""
    made: dict[str, Path] = {}

    def store(model: str) -> Path:
        if model not in made:
            made[model] = tmp_path_factory.mktemp(model)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("suite.running.requests.print_scores", lambda *arguments: None)
                assert main(["run", *request(model, made[model])]) == 0
        return made[model]

    return store


def assert_close(one: Path, other: Path, *, tolerance: float = 1e-5) -> None:
    """Two stores hold the same training: every logged loss, the weights, and what was kept."""
    assert [step for step, _ in losses(one)] == [step for step, _ in losses(other)]
    torch.testing.assert_close(*(torch.tensor([loss for _, loss in losses(x)]) for x in (one, other)), rtol=0, atol=tolerance)
    assert weights(one).keys() == weights(other).keys()
    for name, each in weights(one).items():
        torch.testing.assert_close(weights(other)[name], each, rtol=0, atol=tolerance)
    kept = [[row["value"] for rows in numbers(x).values() for row in rows if row["metric"] == "step_kept"] for x in (one, other)]
    assert kept[0] == kept[1] != []


FAST = [
    ("ddp", 4, "hybrid", ["compute.micro_batch=1"]),
    ("fsdp", 2, "mesanet", ["compute.reshard_after_forward=false", "compute.micro_batch=1"]),
]
SLOW = [(parallel, size, model, []) for parallel in ("ddp", "fsdp") for size in (2, 4) for model in MODELS]


@pytest.mark.parametrize(
    ("parallel", "size", "model", "more"), [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
)
def test_ranks_train_as_one_process_does(parallel, size, model, more, single, tmp_path):
    """Six sequences for four ranks are two or one for each; DDP adds the gradients of one sequence at a time up."""
    asked = request(model, tmp_path / "results", *in_ranks(parallel, *more))
    with team(tmp_path, *[asked] * size) as ranks:
        assert ranks.ends() == [0] * size, ranks.said()
    assert_close(single(model), tmp_path / "results")
    # Rank 0 alone prints.
    assert ": done in " in ranks.said() and not any(ranks.said(rank) for rank in range(1, size))


def test_small_batches_add_up_to_the_whole_one(single, tmp_path):
    assert main(["run", *request("mesanet", tmp_path / "results", "compute.micro_batch=4")]) == 0
    assert_close(single("mesanet"), tmp_path / "results")


def test_more_ranks_than_sequences_take_part_all_the_same(tmp_path):
    few = [
        "train.batch_size=2",
        "train.validate_steps=null",
        "train.keep=last",
        "eval=none",
        "size.num_blocks=5",
        "train.lr=1e-4",
    ]
    assert main(["run", *request("hybrid", tmp_path / "one", *few, steps=4)]) == 0
    # Five blocks whose weights stay gathered are two units.
    sharded = in_ranks("fsdp", "compute.reshard_after_forward=false")
    with team(tmp_path, *[request("hybrid", tmp_path / "three", *few, *sharded, steps=4)] * 3) as ranks:
        assert ranks.ends() == [0, 0, 0], ranks.said()
    for name, each in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "three")[name], each, rtol=0, atol=1e-5)


def checkpointed(results: Path, steps: int) -> bool:
    """Whether a checkpoint was written after so many steps or later."""
    return any(int(path.name.split("-")[1]) >= steps for path in results.glob("runs/*/checkpoint/step-?????????"))


def status(results: Path) -> dict:
    (path,) = results.glob("runs/*/status.json")
    return json.loads(path.read_text())


def lines_about_ranks(ranks: Team) -> list[str]:
    return [line for rank in range(len(ranks.logs)) for line in ranks.said(rank).splitlines() if "was ended from outside" in line]


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_a_killed_rank_ends_the_command_and_the_next_one_goes_on(parallel, tmp_path):
    """Bit for bit on as many ranks, which sum in the same order, and nearly so on others."""

    def asked(name: str) -> list[str]:
        return request("hybrid", tmp_path / name, *in_ranks(parallel), "eval=none", steps=40)

    with team(tmp_path, *[asked("whole")] * 3) as ranks:
        assert ranks.ends() == [0] * 3, ranks.said()
    with team(tmp_path, *[asked("killed")] * 3) as ranks:
        until(lambda: checkpointed(tmp_path / "killed", random.randint(1, 10)), "a checkpoint")
        ranks.send(1, signal.SIGKILL)
        assert ranks.ends() == [1, -signal.SIGKILL, 1]
    assert len(lines_about_ranks(ranks)) == 1, lines_about_ranks(ranks)
    (line,) = lines_about_ranks(ranks)
    assert "train: interrupted, rank 1 (process" in line and "goes on from the last checkpoint" in line
    assert "Traceback" not in "".join(ranks.said(rank) for rank in range(3))
    assert (status(tmp_path / "killed")["status"], "rank 1" in status(tmp_path / "killed")["reason"]) == ("interrupted", True)
    shutil.copytree(tmp_path / "killed", tmp_path / "fewer")
    for name, size in (("killed", 3), ("fewer", 2)):
        with team(tmp_path, *[asked(name)] * size) as ranks:
            assert ranks.ends() == [0] * size, ranks.said()
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert all(torch.equal(weights(tmp_path / "killed")[name], each) for name, each in weights(tmp_path / "whole").items())
    assert_close(tmp_path / "whole", tmp_path / "fewer")


@pytest.mark.parametrize(
    "left",
    [
        {"numbering": apart.numbering(), "pid": 0},
        {"status": INTERRUPTED},
        {"status": "out_of_memory", "reason": "no memory", "trace": ""},
    ],
)
def test_a_rank_that_waits_for_its_gpu_is_freed_when_another_one_has_left(left, monkeypatch):
    """A GPU in a sum that nobody joins holds its host, so a thread beside it has the sum given up."""
    freed, word = threading.Event(), {"numbering": apart.numbering(), "pid": os.getpid()}
    monkeypatch.setattr(apart, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(apart, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(apart, "give_up", freed.set)
    monkeypatch.setattr(apart, "words", lambda world: {1: word})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    world = replace(alone(CPU), size=2, talk=object())
    with apart.watched(world):
        assert not freed.wait(0.2)
    assert not freed.is_set(), "all are there at the end"
    with subprocess.Popen([sys.executable, "-c", ""]) as process, apart.watched(world):
        process.wait()
        word = {**left, "pid": process.pid} if "pid" in left else left
        assert freed.wait(10)
    # What is no number then, is none because nobody summed it up.
    error = Diverged(3, "the loss is not finite", ())
    if left.get("status") == INTERRUPTED:
        with pytest.raises(KeyboardInterrupt), apart.Apart(world):
            raise error
        return
    said = "was ended from outside" if "pid" in left else "rank 1: no memory"
    with pytest.raises(RankLost, match=said) as lost, apart.Apart(world):
        raise error
    assert lost.value.status == left.get("status", "interrupted")


def test_a_second_command_leaves_the_run_to_the_first(tmp_path):
    asked = request("hybrid", tmp_path / "results", *in_ranks("ddp"), "compute.wait=false", "eval=none", steps=5000)
    with team(tmp_path / "first", *[asked] * 2) as first:
        until(lambda: checkpointed(tmp_path / "results", 1), "a checkpoint")
        with team(tmp_path / "second", *[asked] * 2) as second:
            assert second.ends() == [3, 3]
        assert "works on it" in second.said()
        for rank in range(2):
            first.send(rank, signal.SIGINT)
        assert first.ends() == [INTERRUPTED] * 2
    assert "interrupted; the same command goes on" in first.said() and not first.said(1)
    assert status(tmp_path / "results")["status"] == "interrupted"


def test_an_interruption_of_another_rank_is_one_of_the_command(tmp_path):
    asked = request("hybrid", tmp_path / "results", *in_ranks("ddp"), "eval=none", steps=5000)
    with team(tmp_path, *[asked] * 2) as ranks:
        until(lambda: checkpointed(tmp_path / "results", 1), "a checkpoint")
        ranks.send(1, signal.SIGINT)
        assert ranks.ends() == [INTERRUPTED] * 2
    assert "interrupted; the same command goes on" in ranks.said() and not ranks.said(1)
    assert status(tmp_path / "results")["status"] == "interrupted"


def test_a_run_that_diverges_is_followed_by_the_next_one(tmp_path):
    asked = request("hybrid", tmp_path / "results", *in_ranks("fsdp"), "train.lr=1e12,1e-3", "eval=none", steps=8)
    with team(tmp_path, *[asked] * 2) as ranks:
        assert ranks.ends() == [1, 1], ranks.said()
    found = sorted(json.loads(path.read_text())["status"] for path in (tmp_path / "results").glob("runs/*/status.json"))
    assert found == ["diverged", "done"]


def no_memory_on_rank_1(rank: int) -> None:
    """Has the third step of rank 1 find no memory."""
    from suite.compute import accumulation

    original, taken = accumulation.AccumulatedStep.__call__, []

    def step(self, *parts):
        taken.append(rank)
        if rank == 1 and len(taken) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, *parts)

    accumulation.AccumulatedStep.__call__ = step


def test_rank_0_tells_why_another_one_failed(tmp_path):
    asked = request("hybrid", tmp_path / "results", *in_ranks("ddp"), "eval=none")
    with team(tmp_path, *[asked] * 2, fault=no_memory_on_rank_1) as ranks:
        assert ranks.ends() == [1, 1]
    assert "train: out_of_memory, rank 1: OutOfMemoryError: CUDA out of memory" in ranks.said()
    assert not ranks.said(1)
    found = status(tmp_path / "results")
    assert (found["status"], found["reason"]) == ("out_of_memory", "rank 1: OutOfMemoryError: CUDA out of memory")


def no_number_on_rank_1(rank: int) -> None:
    """Has the loss of the third step of rank 1 be no number."""
    from suite.compute import accumulation

    step, part, taken = accumulation.AccumulatedStep.__call__, accumulation.AccumulatedStep._pass, []

    def counted(self, *parts):
        taken.append(rank)
        return step(self, *parts)

    def spoilt(self, inputs, weight, *, is_last):
        share = part(self, inputs, weight, is_last=is_last)
        return share * torch.nan if rank == 1 and len(taken) == 3 else share

    accumulation.AccumulatedStep.__call__, accumulation.AccumulatedStep._pass = counted, spoilt


def test_a_loss_that_is_no_number_names_rank_and_examples(tmp_path):
    asked = request("hybrid", tmp_path / "results", *in_ranks("fsdp"), "eval=none")
    with team(tmp_path, *[asked] * 2, fault=no_number_on_rank_1) as ranks:
        assert ranks.ends() == [1, 1], ranks.said(1)
    (run,) = plan(request("hybrid", tmp_path / "results", "eval=none"))
    examples = ", ".join(map(str, indices_of(run, task_of(run.config), 2)[3:]))
    assert status(tmp_path / "results")["status"] == "diverged"
    assert f"(on rank 1); its batch has the examples {examples}" in status(tmp_path / "results")["reason"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([[], []], "compute.parallel=none, permitted in 2 processes of torchrun are ddp, fsdp"),
        ([in_ranks("ddp"), in_ranks("ddp", "train.lr=1e-3")], "it plans other runs than rank 0"),
        ([in_ranks("ddp"), in_ranks("ddp", "train.steps=-1")], "train.steps=-1"),
        ([in_ranks("dpp"), in_ranks("dpp")], "compute.parallel=dpp"),
    ],
)
def test_ranks_that_can_not_work_together_are_one_line(more: list[Sequence[str]], told, tmp_path):
    with team(tmp_path, *(request("hybrid", tmp_path / "results", *each) for each in more)) as ranks:
        assert ranks.ends() == [2, 2]
    (line,) = [line for rank in range(2) for line in ranks.said(rank).splitlines()]
    assert line.startswith("error: ") and told in line
    assert not list((tmp_path / "results").glob("runs/*"))


def test_what_every_rank_finds_wrong_is_said_once(tmp_path):
    with team(tmp_path, ["--nonsense"], ["--nonsense"]) as ranks:
        assert ranks.ends() == [2, 2]
    assert "--nonsense" in ranks.said() and not ranks.said(1)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["compute=ddp"], "compute.parallel=ddp is for processes that torchrun starts"),
        (["compute=fsdp", "compute.jobs=2"], "compute.jobs=2 is out of range, permitted are auto and 1"),
        (["compute=ddp", "compute.cuda_graph=true"], "compute.cuda_graph=true is out of range, permitted are auto and false"),
        (["compute.micro_batch=2", "compute.cuda_graph=true"], "permitted are auto and false with compute.micro_batch=2"),
        (["compute.micro_batch=0"], "compute.micro_batch=0"),
    ],
)
def test_what_does_not_go_together_is_refused(more, told, tmp_path, capsys):
    assert main(["run", *request("hybrid", tmp_path / "results", *more)]) == 2
    assert told in capsys.readouterr().err and not list(tmp_path.glob("results/runs/*"))


def test_only_run_is_shared_by_ranks(monkeypatch, capsys):
    for key, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(key, str(value))
    assert main(["check", "model=mesanet"]) == 2
    assert "check is for one process, and torchrun started 2" in capsys.readouterr().err


@pytest.mark.parametrize(("count", "size"), [(6, 4), (2, 3), (8, 2), (5, 1)])
def test_shares_are_all_rows_once_and_as_even_as_can_be(count, size):
    dealt = shares(count, size)
    assert [row for each in dealt for row in each] == list(range(count))
    assert {len(each) for each in dealt} <= {count // size, -(-count // size)}


@pytest.mark.parametrize("task", ["mqar", "language", "in_context_regression"])
def test_a_sequence_of_which_nothing_is_asked_has_no_gradient(task):
    (run,) = plan(["model=gated_deltanet", f"task={task}", "size.num_blocks=1", "size.d_model=16", "eval=none"])
    model = new_model(run, CPU)
    nothing = unasked(training_inputs(task_of(run.config).batch("train", range(1))))
    loss(model, nothing).backward()
    assert count_asked(nothing) == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_the_parts_of_a_batch_are_the_batch():
    (run,) = plan(["model=gated_deltanet", "task=mqar", "train.batch_size=7", "compute.micro_batch=3", "eval=none"])
    (parts,) = batches(run, task_of(run.config), range(1), world=alone(CPU))
    at_once = replace(run, compute=run.compute.replace({"micro_batch": None}))
    (whole,) = batches(at_once, task_of(run.config), range(1), world=alone(CPU))
    assert [len(part.tokens) for part in parts] == [3, 3, 1]
    assert torch.equal(torch.cat([part.tokens for part in parts]), whole[0].tokens)


@pytest.mark.slow
def test_torchrun_starts_ranks(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "suite", "run"]
    asked = request("hybrid", tmp_path / "results", *in_ranks("ddp"), steps=8)
    done = subprocess.run([*launch, *asked], cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0 and done.stderr.count(": done in ") == 1, done.stderr
