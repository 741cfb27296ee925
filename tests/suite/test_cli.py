"""The command line as a user calls it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from io import StringIO

import pytest
import torch

import suite
from suite.cli import main
from suite.execute import Event
from suite.progress import ProgressDisplay, duration
from suite.request import RequestError, options
from suite.train import Pulse


def test_help_and_an_unknown_verb(capsys):
    assert main(["--help"]) == 0 and "usage: python -m suite" in capsys.readouterr().out
    assert main([]) == 2
    assert main(["rnu"]) == 2 and "did you mean run?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "group"), [("models", "model"), ("tasks", "task"), ("experiments", "experiment"), ("reports", "report")]
)
def test_list_prints_a_name_a_line(kind, group, capsys):
    assert main(["list", kind]) == 0
    assert capsys.readouterr().out.split() == options(group)


def test_a_reader_that_has_seen_enough_is_no_error():
    command = [sys.executable, "-m", "suite", "list", "models"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 0)


def test_list_of_an_unknown_kind(capsys):
    assert main(["list", "model"]) == 2 and "did you mean models?" in capsys.readouterr().err


def test_check_says_what_a_run_would_be_and_writes_nothing(small, tmp_path, capsys):
    assert main(["check", *small]) == 0
    said = capsys.readouterr().out
    assert "parameters" in said and "state bytes" in said and "backend torch" in said and "pending" in said
    assert not (tmp_path / "results").exists()


def test_a_run_is_listed_and_its_model_loads(small, tmp_path, capsys):
    assert main(["run", *small]) == 0
    capsys.readouterr()
    assert main(["list", "runs", f"paths.results={tmp_path / 'results'}"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    run_id = line.split()[0]
    assert "done" in line and "gated_deltanet tiny mqar seed 0" in line
    model = suite.load_model(run_id[:6], results=tmp_path / "results")
    assert not model.training and torch.isfinite(model(torch.tensor([[1, 2, 3]]))[0]).all()
    with pytest.raises(RequestError, match="unknown run 'feed'"):
        suite.load_model("feed", results=tmp_path / "results")


def test_an_experiment_leaves_a_request_and_a_report(tmp_path, capsys):
    paths = [f"paths.results={tmp_path / 'results'}", f"paths.reports={tmp_path / 'reports'}"]
    assert main(["report", "quick", *paths]) == 2 and "no" in capsys.readouterr().err
    narrow = [
        "experiment=quick",
        "task=mqar",
        "model=gla,transformer",
        "train.steps=3",
        "train.warmup_steps=1",
        "task.num_test=32",
    ]
    assert main(["run", *narrow, "task.num_validation=32", "compute.jobs=1", *paths]) == 0
    (request,) = (tmp_path / "results" / "experiments").glob("quick-*.json")
    assert {cell["model"] for cell in json.loads(request.read_text())["cells"]} == {"gla", "transformer"}
    assert main(["report", "quick", *paths]) == 0
    page = (tmp_path / "reports" / "quick" / "index.html").read_text()
    assert "GLA" in page and "Transformer" in page


def test_an_unknown_report(capsys):
    assert main(["report", "quik"]) == 2 and "did you mean quick?" in capsys.readouterr().err


def test_doctor_names_versions_and_backends(capsys):
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert f"torch {torch.__version__}" in said and "backend torch: works" in said


def test_a_finished_run_can_not_be_retrained_by_evaluate(small, tmp_path, capsys):
    assert main(["evaluate", "run=all", "train.lr=1", f"paths.results={tmp_path}"]) == 2
    assert "train.lr=1" in capsys.readouterr().err
    assert main(["evaluate", "eval=test", f"paths.results={tmp_path}"]) == 2
    assert main(["evaluate", "run=abc", f"paths.results={tmp_path}"]) == 2


def test_a_damaged_or_swapped_run_is_named(small, tmp_path, capsys):
    assert main(["run", *small, "eval=none"]) == 0
    (folder,) = (tmp_path / "results" / "runs").iterdir()
    again = ["evaluate", f"run={folder.name}", "eval=test", f"paths.results={tmp_path / 'results'}"]
    config = (folder / "config.yaml").read_text()
    for content in (config.replace("seed: 0", "seed: 1"), "!!python/object/apply:os.getcwd []", "a: [", "task: 1"):
        (folder / "config.yaml").write_text(content)
        assert main(again) == 2
        assert folder.name in capsys.readouterr().err
    (folder / "config.yaml").write_text(config)
    (folder / "run.json").write_text("{}")
    assert main(again) == 2 and folder.name in capsys.readouterr().err
    (folder.parent / "old_copy").mkdir()
    (folder.parent / "old_copy" / "train.json").write_text("{}")
    assert main(["list", "runs", f"paths.results={tmp_path / 'results'}"]) == 0


def test_a_status_that_a_kill_left_behind_is_corrected(small, tmp_path):
    assert main(["run", *small]) == 0
    (status,) = (tmp_path / "results").glob("runs/*/status.json")
    status.write_text(status.read_text().replace('"done"', '"running"'))
    assert main(["run", *small]) == 0 and json.loads(status.read_text())["status"] == "done"


def test_a_store_that_can_not_be_written_is_named(small, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["run", *small[:-3], f"paths.results={tmp_path / 'file'}"]) == 2
    assert "can't be written" in capsys.readouterr().err


LAUNCHERS = ["basic", *(["joblib"] if importlib.util.find_spec("hydra_plugins") else [])]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_hydra_launcher_runs_every_cell(launcher, small, call, tmp_path):
    done = call("run", "-m", *small, "seed=0,1", f"hydra/launcher={launcher}")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "results").glob("runs/*/train.json"))) == 2


def test_an_unknown_launcher_writes_nothing(small, tmp_path, capsys):
    assert main(["run", *small, "hydra/launcher=slrum"]) == 2
    assert "slrum" in capsys.readouterr().err and not (tmp_path / "results").exists()


def test_durations():
    assert [duration(s) for s in (5, 65, 7265)] == ["0:05", "1:05", "2:01:05"]


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


PULSE = Event("abc", "gla", "pulse", pulse=Pulse(step=5, steps=10, loss=1.5, tokens_per_second=1234.0, seconds_left=65.0))


def test_a_terminal_sees_one_live_line_a_run():
    terminal = Terminal()
    display = ProgressDisplay(1, terminal)
    display(Event("abc", "gla", "started"))
    display(PULSE)
    assert "\x1b[1F\x1b[J" in terminal.getvalue()
    live = terminal.getvalue().rpartition("\x1b[J")[2]
    assert live == "abc  gla:  50 %  step 5/10  loss 1.500  1,234 tokens/s  1:05 left\n"
    display(Event("abc", "gla", "done"))
    assert terminal.getvalue().endswith("\x1b[1F\x1b[J[1/1] abc  gla: done in 0:00\n")


def test_a_file_sees_plain_lines_and_every_end_once():
    stream = StringIO()
    display = ProgressDisplay(2, stream)
    for event in (Event("abc", "gla", "started"), PULSE, Event("abc", "gla", "done"), Event("abc", "gla", "skipped", "again")):
        display(event)
    assert stream.getvalue() == "abc  gla: starts\n[1/2] abc  gla: done in 0:00\n"
