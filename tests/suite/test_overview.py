"""How far the sweeps of a store are, at a glance."""

from __future__ import annotations

import json
import subprocess
import sys

from suite.cli import main
from tests.suite.conftest import ROOT

TINY = ("size=tiny", "size.d_model=16", "size.num_blocks=1", "size.head_dim=8", "size.mlp_dim=0", "task.num_validation=8")
SWEEP = ("experiment=state_tracking_small", "task=parity", "model=gated_deltanet", "eval=none", "compute.jobs=1")
SHORT = ("train.steps=3", "train.warmup_steps=1", "train.batch_size=2", "task.num_test=8")


def lines(capsys) -> dict[str, list[str]]:
    """Each line by its first word or words."""
    return {line.split("  ")[0].strip(): line.split() for line in capsys.readouterr().out.splitlines()}


def test_runs_are_counted_by_what_becomes_of_them(tmp_path, capsys):
    store = f"paths.results={tmp_path}"
    assert main(["run", *SWEEP, *TINY, *SHORT, store]) == 0
    capsys.readouterr()
    assert main(["status", "state_tracking_small", store]) == 0
    told = lines(capsys)
    assert told["all tasks"][-4:] == ["3", "0", "0", "0"] and "nothing is left" in told
    one, other, _ = sorted(tmp_path.glob("runs/*"))
    (one / "train.json").unlink()
    for run, status in ((one, "running"), (other, "diverged")):
        written = json.loads((run / "status.json").read_text())
        written.pop("digest")
        (run / "status.json").write_text(json.dumps({**written, "status": status}))
    assert main(["status", store]) == 0
    told = lines(capsys)
    # What says that it is running and has no worker is missing.
    assert told["parity"][-4:] == ["1", "0", "1", "1"]
    (left,) = (words for name, words in told.items() if "left:" in name)
    assert left[:3] == ["1", "runs", "left:"]


def test_an_experiment_that_was_not_asked_for_is_one_line(tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    assert main(["status", f"paths.results={tmp_path}"]) == 2
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "quick-01234567.json").write_text("{}")
    assert main(["status", "quik", f"paths.results={tmp_path}"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "did you mean quick?" in said[1]


def test_it_needs_no_torch():
    code = "import sys, suite.overview; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
