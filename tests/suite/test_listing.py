"""What `list runs` and `show` say of runs that were made."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

from suite.cli import main
from tests.suite.conftest import ROOT, SMALL

REQUEST = [*SMALL[1:], "model=gla,gated_deltanet", "train.lr=1e-3,4e-3", "eval=test"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, str]:
    """A store of a small sweep, and what its run printed."""
    store = tmp_path_factory.mktemp("listed") / "results"
    typed = ["run", *REQUEST, f"paths.cache={store.parent}", f"paths.results={store}", "compute.jobs=1"]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        # A run keeps the words that its process was started with.
        patch.setattr(sys, "argv", [str(ROOT / "suite" / "__main__.py"), *typed])
        assert main(typed) == 0
    return store, said.getvalue()


@pytest.fixture
def told(made, capsys):
    """The lines that a verb prints of the store."""

    def lines(*arguments: str) -> list[str]:
        assert main([*arguments, f"paths.results={made[0]}"]) == 0
        return capsys.readouterr().out.splitlines()

    return lines


def test_a_run_prints_its_scores_and_the_line_that_draws_them(made, capsys, tables):
    store, said = made
    title, header, *rows = said.splitlines()
    assert title == "MQAR"
    assert re.fullmatch(r"model +test accuracy\s+validation accuracy\s+parameters\s+state bytes\s+tokens/s", header)
    assert [row.split("  ")[0] for row in rows[:4]] == [
        f"{model}, learning rate {rate}" for model in ("GLA", "Gated DeltaNet") for rate in ("0.001", "0.004")
    ]
    assert rows[-1].startswith("draw them: python -m suite report ") and rows[-1].endswith(
        f"paths.results={store} compute.jobs=1"
    )
    assert "paths.cache" not in rows[-1], "a report does not know it"
    assert main(["run", *REQUEST, f"paths.results={store}", "compute.jobs=1"]) == 0
    # What was done already has its scores, too.
    assert capsys.readouterr().out == said


def test_an_evaluation_prints_what_it_wrote(told, tables):
    title, header, *rows = told("evaluate", "run=all", "eval=cost", "compute.jobs=1")
    assert title == "cost" and re.fullmatch(r"model +forward FLOPs per token", header)
    assert len([row for row in rows if "learning rate" in row]) == 4 and "python -m suite show run=" in rows[-1]


def test_runs_are_listed_by_what_differs_and_their_score(told):
    lines = told("list", "runs")
    pattern = r"\w{12}  done  (gla|gated_deltanet) +tiny  mqar  seed 0  train.lr=0.00[14]  \d\.\d{3}  test accuracy"
    assert len(lines) == 4 and all(re.fullmatch(pattern, line) for line in lines)
    assert len({line.index("tiny") for line in lines}) == 1


def test_runs_are_filtered_sorted_and_cut(told):
    lines = told("list", "runs", "where=model=gla,train.lr<=1e-3", "columns=parameters,train.steps")
    assert len(lines) == 1 and " gla " in lines[0] and lines[0].split()[-2:] == ["28452", "12"]
    scores = [float(re.search(r"(\S+)  test accuracy", line)[1]) for line in told("list", "runs", "sort=accuracy")]
    assert scores == sorted(scores, reverse=True)
    rates = [re.search(r"train.lr=(\S+)", line)[1] for line in told("list", "runs", "sort=-train.lr", "limit=2")]
    assert rates == ["0.004", "0.004"]


def test_everything_about_a_run_is_shown_by_the_beginning_of_its_id(told):
    run_id = told("list", "runs", "where=model=gla,train.lr=1e-3")[0].split()[0]
    lines = told("show", f"run={run_id}")
    assert lines[0] == f"run {run_id}: GLA, mqar, size tiny, seed 0" and lines == told("show", run_id[:11])
    whole = "\n".join(lines)
    for said in (
        r"status +done",
        r"code +today's",
        r"made by +python -m suite run task=mqar .*train.lr=1e-3,4e-3",
        r"parameters +28,452",
        r"train.lr +0.001",
        r"model.mixer.num_heads +2",
        r"torch +2\.",
        r"test +test +accuracy +\d\.\d{3} +64",
        r"test-\w{8} +\d+ rows",
        r"checkpoint/model.safetensors +[\d,]+ bytes",
    ):
        assert re.search(f"^  {said}", whole, re.MULTILINE), said


def test_a_choice_is_shown_as_its_file_has_it(told):
    assert "name: mqar" in told("show", "task=mqar") and "label: MesaNet" in told("show", "model=mesanet")


def test_listing_and_showing_need_no_torch(made):
    place = f"paths.results={made[0]}"
    code = "import sys; from suite.cli import main\n"
    for arguments in (["list", "runs", place], ["list", "models"], ["show", "model=gla"]):
        code += f"main({arguments!r}); assert 'torch' not in sys.modules, {arguments!r}\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
