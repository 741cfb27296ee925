"""The command line as a user calls it."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from io import StringIO

import pytest
import torch
import yaml

import suite
from conf.groups import options
from conf.settings import RequestError
from suite.cli import VERBS, WHAT, main
from suite.running.execute import Event
from suite.running.progress import ProgressDisplay, duration
from suite.running.train import Pulse
from tests.suite.conftest import ROOT, SMALL


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_behind_a_verb_is_that_verb_s_line_and_its_keys(verb, flag, capsys):
    assert main([verb, flag]) == 0
    first, *keys = capsys.readouterr().out.splitlines()
    assert first == f"usage: python -m suite {verb}: {WHAT[verb]}" and set(WHAT) == set(VERBS)
    assert ("  paths.results=results  (paths (~ a user's home))" in keys) == (verb not in ("doctor", "tune"))
    assert ("  train.autocast=none  (none, bfloat16)" in keys) == (verb in ("run", "check"))


def test_help_is_of_the_choices_that_are_typed_and_refuses_wrong_ones(capsys):
    assert main(["run", "model=hawk_mesa", "task=mqar", "--help"]) == 0
    said = capsys.readouterr().out
    assert "  model.mesa.solver.name=cg  (cg, preconditioned_cg, chebyshev, richardson, cholesky)\n" in said
    assert "  model.hawk.decay_power=8.0  (numbers above 0, up to 1e+38)\n" in said and "  task.num_pairs=[4]" in said
    assert main(["run", "model=hawkmesa", "--help"]) == 2
    assert "did you mean hawk_mesa?" in capsys.readouterr().err


def test_a_check_can_show_the_whole_configuration(capsys):
    assert main(["check", "model=gla", "task=mqar", "seed=0,1", "show=config"]) == 0
    first, second = (
        yaml.safe_load(text) for text in capsys.readouterr().out.split("# run ")[1:] for text in [text.split("\n", 1)[1]]
    )
    assert (first["seed"], second["seed"]) == (0, 1) and first["model"]["mixer"]["key_dim"] == first["size"]["head_dim"]
    assert main(["check", "show=everything"]) == 2
    assert "show=everything is unknown, permitted is show=config" in capsys.readouterr().err


def test_the_version_is_said(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("linear-rnn-suite ")


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_flag_is_one_line(verb, capsys):
    assert main([verb, "--hlp"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: unknown flag '--hlp'; did you mean --help?") and error.count("\n") == 1


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("word", ["prompt=caf\udce9", "model=gla\0"])
def test_an_argument_that_is_no_text_is_refused(verb, word, capsys):
    assert main([verb, "run=abc", word]) == 2
    error = capsys.readouterr().err
    assert error.isascii() and error.count("\n") == 1 and "is not UTF-8 text" in error


def test_bytes_of_a_shell_that_are_no_text_are_refused(command):
    done = subprocess.run([*command, "generate", "run=abc", b"prompt=caf\xe9"], capture_output=True, cwd=ROOT, timeout=60)
    assert done.returncode == 2 and done.stderr.startswith(b"error: ") and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("encoding", [{"PYTHONIOENCODING": "ascii"}, pytest.param({"LC_ALL": "C"}, marks=pytest.mark.slow)])
def test_a_terminal_without_letters_gets_their_numbers(encoding, command, tmp_path):
    arguments = ["check", "task=mqar", "model.name=größe", f"paths.results={tmp_path}"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHONIO"))} | encoding
    done = subprocess.run([*command, *arguments], capture_output=True, env=environment, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert any(name in done.stdout for name in (b"gr\\xf6\\xdfe tiny mqar", "größe tiny mqar".encode()))


def test_list_of_a_store_that_there_is_not(tmp_path, capsys):
    assert main(["list", "runs", f"paths.results={tmp_path / 'none'}"]) == 2
    assert f"paths.results={tmp_path / 'none'}" in capsys.readouterr().err
    assert main(["list", "runs", f"paths.results={tmp_path}"]) == 0
    said = capsys.readouterr()
    assert not said.out and str(tmp_path) in said.err


def test_names_that_are_not_found_are_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("conf.groups.CONF", tmp_path)
    assert main(["list", "models"]) == 2
    assert f"there is no configuration in {tmp_path / 'model'}" in capsys.readouterr().err


def test_a_system_that_does_not_count_a_process_s_cores_runs(tmp_path, monkeypatch):
    """As macOS, which has no sched_getaffinity."""
    for name in ("sched_getaffinity", "sched_setaffinity"):
        monkeypatch.delattr(os, name)
    assert main(["doctor"]) == 0 and main(["run", *SMALL, f"paths.results={tmp_path / 'results'}"]) == 0


def test_the_home_folder_is_meant_by_a_tilde_and_no_folder_is_named_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert main(["run", *SMALL, "paths.results=~/r", "eval=none"]) == 0
    assert list((tmp_path / "home" / "r" / "runs").iterdir()) and [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize("name", ["a=b.txt", "a (b).txt", "ä~.txt", "it's.txt"])
def test_a_text_is_found_whatever_its_name(name, tmp_path, capsys):
    (tmp_path / name).write_text("a text of some length " * 200)
    place = [f"paths.results={tmp_path / 'results'}", f"paths.cache={tmp_path / 'cache'}"]
    assert main(["check", "data=text", f"data.path={tmp_path / name}", *place]) == 0
    assert "parameters" in capsys.readouterr().out


def test_a_text_that_has_moved_is_found_where_an_evaluation_says(tmp_path, capsys):
    places = [f"paths.results={tmp_path / 'results'}", f"paths.cache={tmp_path / 'cache'}"]
    there, new, other = (tmp_path / name for name in ("there.txt", "moved here.txt", "other.txt"))
    there.write_text(" ".join(f"{i} sheep and {i * i} goats" for i in range(900)))
    other.write_text(there.read_text() + " more")
    small = [each for each in SMALL if not each.startswith("task")]
    asked = ["run", *small, "data=text", f"data.path={there}", "task.seq_len=16"]
    assert main([*asked, "eval=none", *places]) == 0
    there.rename(new)
    (tmp_path / "cache").rename(tmp_path / "no cache")
    evaluate = ["evaluate", "run=all", "eval=length", "eval.length_factors=[1]", "eval.study_tokens=64", *places]
    for path, said in (
        ([f"data.path={other}"], "another one than it was trained on; data.path and data.tokenizer tell where that one lies"),
        ([f"data.path={other},{new}"], f"data.path={other},{new}: permitted is one value; several files are a list"),
    ):
        capsys.readouterr()
        assert main([*evaluate, *path]) == 2 and said in capsys.readouterr().err
    assert main([*evaluate, f"data.path={new}"]) == 0 and list(tmp_path.glob("results/runs/*/eval/length-*.json"))


def test_help_and_an_unknown_verb(capsys):
    assert main(["--help"]) == 0 and "usage: python -m suite" in capsys.readouterr().out
    assert main([]) == 2
    assert main(["rnu"]) == 2 and "did you mean run?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "group"),
    [("models", "model"), ("tasks", "task"), ("experiments", "experiment"), ("reports", "report"), ("evaluations", "eval")],
)
def test_list_prints_a_name_a_line(kind, group, capsys):
    assert main(["list", kind]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == options(group)
    # What a line says begins in one column.
    assert len({len(re.match(r"\S+ +", line)[0]) for line in lines}) == 1


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
    assert re.fullmatch(r"\w{12}  done  gated_deltanet  tiny  mqar  seed 0  0\.\d{3}  test accuracy", line)
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
def test_a_hydra_launcher_runs_every_cell(launcher, small, tmp_path):
    assert main(["run", "-m", *small, "seed=0,1", f"hydra/launcher={launcher}"]) == 0
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


def test_live_lines_are_cut_to_the_terminal_so_that_they_can_be_replaced():
    """On a terminal of 80 columns and 10 lines: every line that is drawn takes one of its lines, and all are seen at once."""
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 10, 80, 0, 0))
    terminal = Terminal()
    terminal.fileno = lambda: inner
    display = ProgressDisplay(30, terminal)
    for i in range(30):
        display(Event(f"run{i}", "m" * 103, "pulse", pulse=PULSE.pulse))
        drawn = terminal.getvalue().rpartition("\x1b[J")[2].splitlines()
        assert len(drawn) == min(i + 1, 9) and all(len(line) == 79 for line in drawn)
    display.close()
    assert terminal.getvalue().endswith("\x1b[9F\x1b[J")
    for end in (outer, inner):
        os.close(end)


def test_a_launcher_says_what_it_submits_and_a_missing_one_how_it_is_installed(small, tmp_path, capsys):
    assert main(["run", *small, "hydra/launcher=basic", "eval=none"]) == 0
    assert "submits 1 job, one a run, through hydra/launcher=basic, and waits for them" in capsys.readouterr().err
    assert main(["run", *small, "hydra/launcher=submitit_slrum"]) == 2
    assert "pip install -e '.[launchers]'" in capsys.readouterr().err


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
