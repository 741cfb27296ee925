"""What a command does before its work begins: it speaks at once, and imports nothing that it can do without."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from suite.cli import main
from tests.suite.conftest import ROOT, SMALL

# Alone it takes a fifth of a second; other work on the machine may slow it.
MOST_SECONDS = 2.0


@pytest.mark.parametrize("verb", ["run", "evaluate"])
def test_a_slow_verb_speaks_to_a_terminal_at_once(verb, tmp_path):
    arguments = [sys.executable, "-m", "suite", verb, *SMALL, f"paths.results={tmp_path}"]
    waited = []
    for _ in range(3):
        ours, theirs = os.openpty()
        began = time.monotonic()
        with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=theirs) as process:
            assert os.read(ours, 100).startswith(b"reads the request ...")
            waited.append(time.monotonic() - began)
            process.kill()
        os.close(ours)
        os.close(theirs)
    assert min(waited) < MOST_SECONDS


def test_elsewhere_a_wrong_request_is_one_line(call):
    made = call("run", "model=mesanett")
    assert (made.returncode, made.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize("what", ["suite.cli", "suite.running.progress", "suite.running.estimate", "suite.running.hearing"])
def test_what_speaks_first_needs_no_torch(what):
    code = f"import sys, {what}; sys.exit(bool({{'torch', 'numpy', 'pandas'}} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_model_is_planned_built_and_trained_without_what_it_does_not_need(tmp_path):
    """torch's compiler and sympy take seconds to import: torch reaches for them on its meta device and in an optimizer."""
    request = ["run", *SMALL, "train.optimizer=muon", "eval=test", f"paths.results={tmp_path}"]
    code = f"""
import sys, torch, suite.generate
from suite.cli import main

def loaded(*names):
    print(*(set(names) & sys.modules.keys()), file=sys.stderr)

from suite.plan import plan
from suite.saved import new_model
(run,) = plan({list(SMALL)})
new_model(run, torch.device("cpu"))
loaded("torch._dynamo", "sympy", "pandas", "scipy", "matplotlib", "lm_eval", "datasets")
main({request})
loaded("torch._dynamo", "sympy", "lm_eval", "datasets")
"""
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    built, *said, trained = made.stderr.split("\n")[:-1]
    assert (made.returncode, built, trained) == (0, "", "") and "done in" in "".join(said), made.stderr


def test_workers_that_fail_at_their_start_are_not_started_for_ever(tmp_path, capfd):
    (tmp_path / "own" / "models").mkdir(parents=True)
    broken = "import multiprocessing\n\nif multiprocessing.parent_process():\n    raise RuntimeError('only here')\n"
    (tmp_path / "own" / "models" / "broken.py").write_text(broken)
    request = [f"extend={tmp_path / 'own'}", *SMALL, "seed=0,1", "compute.jobs=2", f"paths.results={tmp_path}"]
    with pytest.raises(RuntimeError, match="^2 workers failed before a run was begun$"):
        main(["run", *request])
    assert "only here" in capfd.readouterr().err
