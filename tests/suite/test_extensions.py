"""A model, a task, a figure and an experiment in the user's own folder: found where it is named, and nowhere else."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from conf.extensions import VARIABLE
from suite.cli import main
from suite.plan import plan
from suite.request.compose import compose_one
from suite.running.requests import make_runs
from suite.saved import saved_run, trained_ids
from suite.store import code_state

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()
FILES = ("models/retention.py", "conf/model/retention.yaml", "tasks/copying.py", "conf/task/copying.yaml")
FIGURE = '''"""A figure of the user's own."""

from __future__ import annotations

from reports.kit.panels import row_of_panels
from reports.kit.parts import Drawing, Frames
from reports.kit.arguments import Metric

from .looks import WIDTH


def by_decay(frames: Frames, *, metric: Metric, share: float = 0.5) -> Drawing:
    """The score by the decay of `retention`."""
    rows = frames.results[frames.results["metric"] == metric]
    figure, (axes,) = row_of_panels(1, width=WIDTH, height=3.0)
    axes.plot(rows["model.mixer.decay"], share * rows["value"])
    return Drawing(rows, figure)
'''
YAML = {
    "conf/train/copying.yaml": "defaults: [base, _self_]\nsteps: 2\nbatch_size: 4\nwarmup_steps: 1\nlr: 1e-3\n",
    "conf/size/mini.yaml": "defaults: [tiny, _self_]\nname: mini\nd_model: 16\nnum_blocks: 1\nhead_dim: 8\nmlp_dim: 16\n",
    "conf/experiment/decays.yaml": "# @package _global_\ndefaults:\n  - override /size: mini\n  - override /eval: none\n"
    "experiment:\n  name: decays\n  grid:\n    - {task: copying, model: retention, model.mixer.decay: [0.9, 0.97]}\n"
    "task: {num_validation: 8, num_test: 8}\n",
    "conf/report/decays.yaml": "parts:\n  - {name: decay, type: own_figures.by_decay, arguments: {metric: accuracy}}\n",
    "conf/report/wrong.yaml": "experiment: decays\nparts:\n  - {name: decay, type: own_figures.by_decai}\n",
}
MINE = "from models.gla import GatedLinearAttention\nclass Mine(GatedLinearAttention):\n    name = '{}'\n"


def filled(folder: Path) -> Path:
    """A folder laid out as the package is, with the model and the task of docs/extending.md."""
    texts = {file: re.search(rf"^```\w+\n(# {file}\n.*?)^```$", PAGE, flags=re.M | re.S)[1] for file in FILES}
    texts |= YAML | {"reports/own_figures.py": FIGURE, "reports/looks.py": "WIDTH = 3.0\n"}
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def process(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, typed in another folder."""
    path = os.pathsep.join(filter(None, (str(ROOT), environment.pop("PYTHONPATH", ""))))
    call = [sys.executable, "-m", "suite", *arguments]
    return subprocess.run(
        call, cwd=cwd, capture_output=True, text=True, timeout=300, env={**os.environ, **environment, "PYTHONPATH": path}
    )


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return filled(tmp_path_factory.mktemp("mine") / "a user's own")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, own: Path) -> Path:
    """Two runs of the folder's model on its task."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(own))
        runs, _, status = make_runs(["experiment=decays", "compute.jobs=1", f"paths.results={folder}"])
    assert len(runs) == 2 and status == 0
    return folder


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")


def names(done: subprocess.CompletedProcess[str]) -> set[str]:
    assert done.returncode == 0, done.stderr
    return {line.split()[0] for line in done.stdout.splitlines() if line}


def test_runs_of_a_folder_are_reported_and_evaluated(store: Path, own: Path, tmp_path: Path, capsys) -> None:
    places = [f"paths.results={store}", f"paths.reports={tmp_path}"]
    assert main(["report", "decays", f"extend={own}", *places]) == 0
    assert set(pd.read_csv(tmp_path / "decays" / "decay.csv")["model.mixer.decay"]) == {0.9, 0.97}
    assert "The score by the decay of retention." in (tmp_path / "decays" / "index.html").read_text()
    assert main(["evaluate", f"extend={own}", "run=all", "eval=cost", "compute.jobs=1", places[0]]) == 0
    assert len(list(store.glob("runs/*/eval/cost-*.json"))) == 2
    capsys.readouterr()
    assert main(["report", "wrong", f"extend={own}", *places]) == 2
    error = capsys.readouterr().err
    assert "wrong.yaml: part 'decay': unknown part type" in error and "did you mean own_figures.by_decay?" in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_workers_have_the_folder_too(own: Path, tmp_path: Path) -> None:
    made = process("run", f"extend={own}", "experiment=decays", "compute.jobs=2", f"paths.results={tmp_path}", cwd=tmp_path)
    assert made.returncode == 0 and "[2/2]" in made.stderr, made.stderr


@pytest.mark.slow
def test_a_run_on_text_goes_on_with_a_prompt(own: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "text.txt").write_text("\n<|endoftext|>\n".join("a small text, at every token " * 3 for _ in range(60)))
    data = ["task=language", "data=text", f"data.path={tmp_path / 'text.txt'}", "data.validation_fraction=0.3", "task.seq_len=24"]
    small = ["size=mini", "eval=none", "train.steps=1", "train.warmup_steps=1", "train.batch_size=4", "compute.jobs=1"]
    places = [f"paths.results={tmp_path}", f"paths.cache={tmp_path / 'cache'}"]
    assert main(["run", f"extend={own}", "model=retention", *data, *small, *places]) == 0
    run = trained_ids(tmp_path)[0]
    capsys.readouterr()
    assert main(["generate", f"extend={own}", f"run={run}", "prompt=at", "tokens=2", places[0]]) == 0
    assert capsys.readouterr().out.startswith("at")


def test_options_are_found_by_argument_environment_and_entry_point(own: Path, tmp_path: Path) -> None:
    assert {"retention", "gla"} <= names(process("list", "models", f"extend={os.path.relpath(own, tmp_path)}", cwd=tmp_path))
    assert {"copying", "mqar"} <= names(process("list", "tasks", cwd=tmp_path, LRS_EXTEND=str(own)))
    site, info = tmp_path / "site", tmp_path / "site" / "mine-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copytree(own, site / "mine")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[linear_rnn_suite.extensions]\nmine = mine\n")
    assert "decays" in names(process("list", "experiments", cwd=tmp_path, PYTHONPATH=str(site)))
    # Where a command is typed says nothing: neither a folder that looks like one, nor what lies in it as if it were installed.
    assert "decays" not in names(process("list", "experiments", cwd=site, PYTHONPATH=str(site)))
    assert "retention" not in names(process("list", "models", cwd=own))


def test_a_stored_run_names_no_folder(store: Path, own: Path, tmp_path: Path, capsys) -> None:
    root = shutil.copytree(store, tmp_path / "store")
    run = trained_ids(root)[0]
    config = root / "runs" / run / "config.yaml"
    config.write_text(f"extend: {own}\nLRS_EXTEND: {own}\n" + config.read_text())
    known = json.loads((config.parent / "run.json").read_text())
    known["config"] = hashlib.sha256(config.read_bytes()).hexdigest()
    # Without a seal, as whoever changes a file may write it.
    (config.parent / "run.json").write_text(json.dumps({key: value for key, value in known.items() if key != "digest"}))
    shutil.copytree(own, root, dirs_exist_ok=True)
    assert main(["evaluate", f"run={run}", "eval=cost", f"paths.results={root}"]) == 2
    error = capsys.readouterr().err
    assert f"run {run}: its mixer 'retention' is not of this package; give the folder that declares it: extend=FOLDER" in error
    assert error.count("\n") == 1
    assert main(["list", "runs", f"paths.results={root}"]) == 0
    assert run in capsys.readouterr().out


def test_a_name_and_a_state_of_the_code_are_those_of_the_same_file_in_the_package(own: Path, tmp_path: Path, monkeypatch) -> None:
    """The whole package is copied, and the folder's files into it."""
    for name in ("conf", "models", "tasks", "suite"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in [path for path in own.rglob("*") if path.is_file() and not {"reports", "__pycache__"} & {*path.parts}]:
        (tmp_path / file.relative_to(own)).write_text(file.read_text())
    asked = ["task=copying", "model=retention", "size=mini"]
    code = "from suite.plan import plan; from suite.store.code_state import code_state\n"
    code += f"(run,) = plan({asked}); print(run.run_id, code_state(run.config))"
    environment = {**os.environ, "PYTHONPATH": ""}
    within = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    monkeypatch.setenv(VARIABLE, str(own))
    code_state._state.cache_clear()
    (run,) = plan(asked)
    assert within.stdout.split() == [run.run_id, code_state.code_state(run.config)], within.stderr


def test_the_state_of_the_code_is_of_the_folder_s_files_too(store: Path, own: Path, tmp_path: Path, monkeypatch) -> None:
    states = []
    for change in ("", "self.fixed_log_decay = 1 * "):
        folder = shutil.copytree(own, tmp_path / f"own{len(change)}")
        model = folder / "models" / "retention.py"
        model.write_text(model.read_text().replace("self.fixed_log_decay = ", change or "self.fixed_log_decay = "))
        monkeypatch.setenv(VARIABLE, str(folder))
        here = compose_one([])
        code_state._state.cache_clear()
        states.append(code_state.recorded(saved_run(store, trained_ids(store)[0], here).config)["states"])
    assert states[0] != states[1]


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("conf/model/gla.yaml", "name: gla\n", "model=gla is there already"),
        ("conf/models/mine.yaml", "name: mine\n", "unknown group 'models'; did you mean model?"),
        ("conf/config.yaml", "a: 1\n", "unknown group 'config.yaml'"),
        (
            "models/mine.py",
            MINE.format("deltanet.DeltaNet"),
            "'deltanet.DeltaNet' is declared already",
        ),
    ],
)
def test_what_the_package_has_is_not_taken(file: str, text: str, said: str, tmp_path: Path, capsys) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(text)
    assert main(["check", "model=gla", "task=mqar", f"extend={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert said in error and str(tmp_path / file) in error and error.count("\n") == 1


def test_a_module_of_figures_is_not_taken(tmp_path: Path, capsys) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "tables.py").write_text("")
    assert main(["report", "quick", f"extend={tmp_path}"]) == 2
    assert "a module tables is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["extend=nowhere"], "extend=nowhere is no folder"),
        (["extend="], "extend="),
        (["extend=."], "extend=. has none of the folders models, tasks, reports, conf"),
        (["extend=a", "extend=b"], "extend is given twice"),
    ],
)
def test_a_folder_that_can_t_be_is_one_line(typed: list[str], said: str, tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "model.py").write_text("class Model: pass")
    monkeypatch.chdir(tmp_path)
    assert main(["list", "models", *typed]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_two_folders_may_hold_files_of_one_name(tmp_path: Path, capsys) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "models").mkdir(parents=True)
        text = MINE.format(name)
        (tmp_path / name / "models" / "mine.py").write_text(text)
    assert main(["check", "task=mqar", "model=gla", "model.mixer.type=x", f"extend={tmp_path / 'one'},{tmp_path / 'two'}"]) == 2
    assert {"one", "two"} <= set(re.split(r"[ ,()]+", capsys.readouterr().err))
