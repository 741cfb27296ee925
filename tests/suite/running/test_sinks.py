"""compute.log: what reaches the tools that people watch with, and that none of them can harm a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from suite.cli import main
from suite.plan import plan
from suite.running import sinks

QUICK = ["eval=none", "compute.jobs=1"]


class Recorder:
    """Stands in the place of a foreign package and keeps what it is told."""

    def __init__(self, *, fails_at: str = "") -> None:
        self.fails_at, self.begun, self.logged, self.ended = fails_at, [], [], 0

    def _do(self, what: str) -> None:
        if what == self.fails_at:
            raise OSError(101, "Network is unreachable")

    def init(self, **given):
        self._do("init")
        self.begun.append(given)
        return self

    def log(self, values, step):
        self._do("log")
        self.logged.append((step, values))

    def finish(self):
        self._do("finish")
        self.ended += 1


def installed(monkeypatch, name: str, recorder: Recorder) -> None:
    module = ModuleType(name)
    module.init, module.finish = recorder.init, recorder.finish
    module.Settings = dict
    monkeypatch.setitem(sys.modules, name, module)
    # Trackio reads its folder from there, for the whole process.
    monkeypatch.setenv("TRACKIO_DIR", "unused")


def lines(results: Path) -> list[dict[str, float]]:
    (path,) = results.glob("runs/*/metrics.jsonl")
    read = (json.loads(line) for line in path.read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "check"} for line in read]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_every_line_and_the_scores_are_mirrored(small, tmp_path, monkeypatch, name):
    recorder = Recorder()
    installed(monkeypatch, name, recorder)
    (run,) = plan([*small, *QUICK])
    assert main(["run", *small, *QUICK, f"compute.log={name}"]) == 0
    (begun,) = recorder.begun
    assert run.run_id in (begun.get("id"), begun["name"].split()[-1]) and begun["resume"] == "allow"
    assert begun["config"]["train.lr"] == run.config.train.lr
    *logged, (last, scores) = recorder.logged
    told = [{"step": step, **{key.removeprefix("train/"): value for key, value in values.items()}} for step, values in logged]
    assert told == lines(tmp_path / "results")
    assert last == 12 and {"validation/accuracy", "train/train_seconds"} <= scores.keys() and recorder.ended == 1


def test_wandb_stays_offline_unless_it_is_told_otherwise(small, monkeypatch):
    recorder = Recorder()
    installed(monkeypatch, "wandb", recorder)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    main(["run", *small, *QUICK, "compute.log=wandb"])
    monkeypatch.setenv("WANDB_MODE", "online")
    main(["run", *small, *QUICK, "compute.log=wandb", "seed=1"])
    assert [begun["mode"] for begun in recorder.begun] == ["offline", "online"]


@pytest.mark.parametrize("fails_at", ["init", "log", "finish"])
def test_what_fails_in_a_sink_is_said_once_and_harms_no_run(small, tmp_path, monkeypatch, capsys, fails_at):
    installed(monkeypatch, "wandb", Recorder(fails_at=fails_at))
    assert main(["run", *small, *QUICK, "compute.log=wandb"]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "compute.log=wandb" in line]
    assert len(told) == 1 and "warning" in told[0] and "Network is unreachable" in told[0]
    assert len(lines(tmp_path / "results")) == 12 and list(tmp_path.glob("results/runs/*/train.json"))


@pytest.mark.parametrize("verb", ["run", "check"])
def test_a_missing_package_is_refused_with_its_extra(small, tmp_path, monkeypatch, capsys, verb):
    monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    assert main([verb, *small, "compute.log=trackio"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "compute.log=trackio" in error and "pip install -e '.[trackio]'" in error
    assert not (tmp_path / "results").exists()


def test_a_sink_is_no_part_of_a_name(small):
    assert plan(small)[0].run_id == plan([*small, "compute.log=wandb"])[0].run_id


def test_a_folder_that_leads_elsewhere_is_not_followed(small, tmp_path, monkeypatch, capsys):
    installed(monkeypatch, "wandb", Recorder())
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "logs").symlink_to(tmp_path)
    assert main(["run", *small, *QUICK, "compute.log=wandb"]) == 0
    assert "it is a link" in capsys.readouterr().err and not (tmp_path / "wandb").exists()


def test_tensorboard_drops_what_was_shown_behind_the_checkpoint(small, tmp_path):
    """The run goes on behind step 8, of whose first attempt 12 steps were shown."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = plan([*small, "compute.log=tensorboard"])
    for begins, shown in ((0, range(1, 13)), (8, range(10, 13))):
        mirror = sinks.Mirror(run, tmp_path / "results", print)
        mirror.begin(begins)
        for step in shown:
            mirror.line({"step": step, "loss": float(step + begins)})
        mirror.close()
    read = EventAccumulator(str(tmp_path / "results" / "logs" / "tensorboard" / run.run_id)).Reload()
    assert [(each.step, each.value) for each in read.Scalars("train/loss")] == [
        *((step, step) for step in range(1, 9)),
        *((step, step + 8) for step in range(10, 13)),
    ]
