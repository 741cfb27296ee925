"""Launchers in earnest: what a person learns of the jobs before they are waited for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import pytest

from suite.running import launch
from tests.suite.conftest import ROOT, SMALL


@pytest.mark.slow
def test_submitit_says_its_jobs_and_where_they_log(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    arguments = ["run", *SMALL, "eval=none", "seed=0,1", f"paths.results={tmp_path}/results", "hydra/launcher=submitit_local"]
    made = subprocess.run(
        [sys.executable, "-m", "suite", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert made.returncode == 0, made.stderr
    assert "submits 2 jobs, one a run, through hydra/launcher=submitit_local" in made.stderr
    assert f"their logs lie in {tmp_path}/.submitit" in made.stderr
    (ids,) = re.findall(r"job ids: (\d+), (\d+)", made.stderr)
    assert set(ids) <= {path.name for path in (tmp_path / ".submitit").iterdir()}
    assert len(list(tmp_path.glob("results/runs/*/train.json"))) == 2


def test_jobs_are_told_once_all_have_a_folder(tmp_path, capsys):
    """A thousand jobs are counted and not listed; a folder that was there before is of no job of these."""
    (tmp_path / "old").mkdir()
    with launch._told_of(str(tmp_path / "%j"), 10):
        (tmp_path / "%j").mkdir()
        for number in range(10):
            (tmp_path / f"7_{number}").mkdir()
        time.sleep(3 * launch.LOOK_SECONDS)
    told = capsys.readouterr().err.splitlines()
    assert told == [f"their logs lie in {tmp_path}", f"job ids: {', '.join(f'7_{i}' for i in range(8))}, and 2 more"]
