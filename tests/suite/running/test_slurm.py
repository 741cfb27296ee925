"""Jobs through submitit: what a cluster is asked for, and a run that goes on in a new job when it has to make room."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from suite.cli import main
from suite.plan import plan
from suite.running import slurm
from suite.running.signals import Notice, Preempted
from suite.store.run_directory import RunDirectory
from tests.suite.conftest import SMALL
from tests.suite.running.test_train import weights

pytest.importorskip("submitit")


def test_the_script_of_a_job_says_what_the_cluster_is_asked_for(tmp_path, capsys):
    asked = ["launch.nodes=2", "launch.gpus_per_node=8", "launch.minutes=90", "launch.partition=a100", "launch.requeues=5"]
    more = ["launch.memory_gb=200", "launch.cpus_per_process=4", "launch.options={mail-type: END}", "launch.account=me"]
    place = f"paths.results={tmp_path}/it's here"
    assert main(["check", *SMALL, "launch=slurm", *asked, *more, "compute=fsdp", place]) == 0
    script = capsys.readouterr().out
    for flag in (
        "nodes=2",
        "ntasks-per-node=8",
        "gpus-per-node=8",
        "time=90",
        "partition=a100",
        "account=me",
        "mem=200GB",
        "cpus-per-task=4",
        "mail-type=END",
        "signal=USR2@120",
    ):
        assert f"\n#SBATCH --{flag}\n" in script, flag
    assert "\nsrun --unbuffered" in script and "it'\"'\"'s here" in script
    # Nothing is submitted, and nothing is written.
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["launch=slurm", "launch.nodes=2"], "compute.parallel=none, permitted in jobs of 2 processes are ddp, fsdp"),
        (["launch=slurm", "launch.minutes=5,6"], "a request is launched in one way, permitted is one value"),
        (["launch=local", "launch.nodes=2"], "launch.nodes=2 is out of range, permitted are 1 with launch=local"),
        (["launch=slurm", "launch.minutes=1"], "launch.signal_seconds=120 is out of range, permitted are 1 to below"),
        (["launch=slurm", "hydra/launcher=basic"], "permitted with hydra/launcher is launch=none"),
        (["launch=slurm", "launch.account=a b"], "launch.account=a b is out of range, permitted are words of letters"),
        (["launch=slurn"], "did you mean slurm?"),
    ],
)
def test_what_no_job_can_be_is_refused_in_one_line(typed, said, small, capsys, tmp_path):
    assert main(["run", *small, *typed]) == 2
    told = capsys.readouterr().err
    assert said in told and len(told.splitlines()) == 1
    assert not list((tmp_path / "results").glob("runs/*"))


def test_without_a_scheduler_nothing_is_submitted(small, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["run", *small, "launch=slurm"]) == 2
    assert "there is no sbatch here; permitted are none, local" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_no_job_is_submitted_for_a_run_that_is_done_or_that_another_process_makes(small, capsys, tmp_path, monkeypatch):
    submitted: list[slurm.Job] = []
    monkeypatch.setattr(slurm, "_work_off", lambda launch, work: submitted.extend(work))
    assert main(["run", *small, "eval=none"]) == 0
    request = [*small, "eval=none", "seed=0,1,2"]
    held = RunDirectory(tmp_path / "results", plan([*small, "seed=1"])[0].run_id)
    held.make()
    with held.lock:
        main(["run", *request, "launch=local", "launch.minutes=3"])
    assert [[each for each in job.cell if each.startswith(("seed=", "launch"))] for job in submitted] == [["seed=2"]]
    assert "no job for what is done (1 run) and what other processes work on (1 run)" in capsys.readouterr().err


@contextlib.contextmanager
def told_to_make_room(results: Path) -> Iterator[list[int]]:
    """Has the process that trains told so, as a scheduler does; yields the step of the checkpoint that it then saves."""
    steps, ended = list[int](), threading.Event()

    def tell() -> None:
        while not ended.wait(0.02):
            claims = list(results.glob("runs/*/lock.claim-*"))
            if not steps and claims and list(results.glob("runs/*/metrics.jsonl")):
                with contextlib.suppress(OSError, ValueError):
                    os.kill(json.loads(claims[0].read_text())["pid"], signal.SIGUSR2)
                    break
        while not ended.wait(0.01) and not steps:
            look()

    def look() -> None:
        for path in results.glob("runs/*/checkpoint/step-*"):
            if not path.name.endswith(".tmp") and not steps:
                steps.append(int(re.findall(r"\d+", path.name)[0]))

    teller = threading.Thread(target=tell)
    teller.start()
    try:
        yield steps
    finally:
        ended.set()
        teller.join()
        look()


@pytest.fixture
def heeded(monkeypatch) -> Iterator[Notice]:
    """This process heeds a scheduler's signal, as a job's first process does, and has had none so far."""
    notice = Notice()
    for module in ("book", "train"):
        monkeypatch.setattr(f"suite.running.{module}.notice", notice)
    before = signal.signal(signal.SIGUSR2, notice.give)
    yield notice
    signal.signal(signal.SIGUSR2, before)


def test_a_training_that_is_told_to_make_room_saves_first_and_goes_on_from_there(small, heeded, tmp_path, capsys):
    request = [each for each in small if not each.startswith(("train.steps", "compute.", "paths."))]
    request += ["train.steps=60", "eval=none", "compute.checkpoint_seconds=1000", "compute.log_seconds=0"]
    results, alone = tmp_path / "told", tmp_path / "alone"
    with told_to_make_room(results) as steps:
        assert main(["run", *request, f"paths.results={results}"]) == 130
    (status,) = results.glob("runs/*/status.json")
    assert json.loads(status.read_text())["reason"] == "Preempted"
    assert len(steps) == 1 and 0 < steps[0] < 60
    heeded.is_given = False
    assert main(["run", *request, f"paths.results={results}"]) == 0
    lines = [json.loads(line)["step"] for line in next(results.glob("runs/*/metrics.jsonl")).read_text().splitlines()]
    assert lines == list(range(1, 61))
    assert main(["run", *request, f"paths.results={alone}"]) == 0
    left, went_on = weights(alone), weights(results)
    assert all((left[name] == went_on[name]).all() for name in left)


def test_what_is_no_training_is_given_up_at_once_and_a_second_notice_changes_nothing():
    notice = Notice()
    with pytest.raises(Preempted):
        notice.give(signal.SIGUSR2, None)
    notice.give(signal.SIGUSR2, None)
    with pytest.raises(Preempted), notice.awaits_training():
        pass
    follower = Notice()
    follower.pass_over(signal.SIGUSR2, None)
    assert follower.is_given


@pytest.mark.slow
@pytest.mark.parametrize(
    "processes",
    [[], ["launch.processes_per_node=2", "compute=ddp", "compute.compile=false"]],
    ids=["one process", "two processes"],
)
def test_a_job_that_makes_room_goes_on_in_a_new_one_from_where_it_was(processes, small, tmp_path, monkeypatch):
    """With no checkpoint but the one that it saves when it is told, it ends with the weights of a run that was left alone."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    request = [each for each in small if not each.startswith(("train.steps", "compute.", "paths."))]
    request += ["train.steps=300", "eval=none", "compute.checkpoint_seconds=1000", "compute.log_seconds=0"]
    results, alone = tmp_path / "jobs", tmp_path / "alone"
    with told_to_make_room(results) as steps:
        launch = ["launch=local", "launch.minutes=5", "launch.signal_seconds=30"]
        assert main(["run", *request, *launch, *processes, "compute.device=cpu", f"paths.results={results}"]) == 0
    assert steps and 0 < steps[0] < 300
    (log,) = results.glob("jobs/*/*_0_log.err")
    assert log.read_text().count(": starts") == 2
    (status,) = results.glob("runs/*/status.json")
    assert json.loads(status.read_text())["status"] == "done"
    lines = [json.loads(line)["step"] for line in next(results.glob("runs/*/metrics.jsonl")).read_text().splitlines()]
    assert lines == sorted(set(lines)) and lines[-1] == 300
    if not processes:
        assert main(["run", *request, f"paths.results={alone}"]) == 0
        left, went_on = weights(alone), weights(results)
        assert all((left[name] == went_on[name]).all() for name in left)
