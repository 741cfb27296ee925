"""What is left of a run under a command: failures that are tried again or kept, and what is made again on demand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from suite.compute.parallel import alone
from suite.plan import plan
from suite.results import load_runs
from suite.running import execute, pool
from suite.running.execute import Command, execute_all
from suite.running.health import Diverged
from suite.stage import Stage
from suite.store.run_directory import RunDirectory

CPU = torch.device("cpu")
TEST = "eval.stages=[cost,test]"


def done(small: list[str], stages: str, command: Command) -> tuple[RunDirectory, list[str]]:
    """The run's folder after a command, and what was said of its end."""
    runs, told = plan([*small, stages]), []
    results = Path(runs[0].paths.results)
    execute_all(runs, results, told.append, command=command, world=alone(CPU))
    return RunDirectory(results, runs[0].run_id), [event.text for event in told if event.kind in ("done", "skipped", "failed")]


def command(token: str, *, force: bool = False) -> Command:
    return Command(token, trains=True, force=force)


@pytest.fixture
def broken_test(monkeypatch: pytest.MonkeyPatch):
    """The evaluation `test` fails until it is mended."""

    def evaluate(stage: Stage, *arguments, **more):
        if stage.name == "test":
            raise ValueError("broken")
        return whole(stage, *arguments, **more)

    whole = execute.evaluate
    monkeypatch.setattr(execute, "evaluate", evaluate)
    return monkeypatch


def test_a_failed_evaluation_is_kept_where_it_is_not_asked_for_and_made_by_the_next_command(small, broken_test):
    directory, said = done(small, TEST, command("a"))
    assert said == ["is trained; failed: test"]
    done(small, "eval.stages=[cost]", command("b"))
    assert [failure["title"] for failure in directory.status().failures.values()] == ["test"]
    broken_test.undo()
    assert done(small, TEST, command("a"))[1] == ["is trained; failed: test"]
    assert done(small, TEST, command("c"))[1] == [""] and not directory.status().failures


def test_a_forced_evaluation_is_made_once_a_command(small):
    directory, _ = done(small, "eval.stages=[test]", command("a"))
    (path,) = directory.path.glob("eval/test-*.json")
    made = [path.read_bytes()]
    for token in ("b", "b", "c"):
        done(small, "eval.stages=[test]", command(token, force=True))
        made.append(path.read_bytes())
    assert made[1] == made[2] and len(set(made)) == 3


def test_a_training_and_its_evaluations_say_how_far_they_are(small, monkeypatch):
    """Of 64 examples at a time there is one batch, which is all."""
    monkeypatch.setattr("suite.running.hearing.EVERY_SECONDS", 0.0)
    (run,) = plan([*small, TEST])
    told = []
    execute_all([run], Path(run.paths.results), told.append, command=Command("first", trains=True, force=False), world=alone(CPU))
    shares = [(event.text, event.share.done, event.share.total) for event in told if event.share]
    assert shares == [("validates", 64, 64), ("evaluates test", 64, 64)]


def test_a_run_knows_its_device_and_how_many_shared_it(small, monkeypatch):
    runs = plan([*small, "eval=none"])
    results, told = Path(runs[0].paths.results), []

    def in_this_one(*given):
        execute_all(runs, results, told.append, command=given[4], world=alone(CPU))

    monkeypatch.setattr(pool, "_work_in_processes", in_this_one)
    pool.work(runs, results, 6, told.append, command("one"), alone(CPU))
    (found,) = load_runs(results).to_dict("records")
    assert (found["device"], found["runs_per_device"]) == ("CPU", 6)


@pytest.mark.parametrize(("error", "tries"), [(RuntimeError("from outside"), 2), (Diverged(3, "loss nan", ()), 1)])
@pytest.mark.parametrize("mends", [True, False])
def test_a_training_that_fails_is_tried_once_more_unless_it_diverged(error, tries, mends, small, monkeypatch):
    tried = []

    def train(*arguments, **more):
        tried.append(arguments)
        if len(tried) == 1 or not mends:
            raise error
        return whole(*arguments, **more)

    whole = execute.train
    monkeypatch.setattr(execute, "train", train)
    directory, ends = done(small, "eval=none", command("one"))
    assert len(tried) == tries and len(ends) == 1
    succeeds = mends and tries == 2
    assert (directory.status().status == "done") == succeeds
    assert ("tried once more" in ends[0]) is False
