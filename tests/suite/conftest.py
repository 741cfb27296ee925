"""A run that ends in a second or two, and the command line as a user calls it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SMALL = (
    "model=gated_deltanet",
    "task=mqar",
    "size.d_model=32",
    "size.num_blocks=1",
    "train.batch_size=8",
    "train.steps=12",
    "train.warmup_steps=2",
    "task.num_validation=64",
    "task.num_test=64",
)


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    """A request for one small run in a store of its own; where it lies is said by the third last argument."""
    return [*SMALL, f"paths.results={tmp_path / 'results'}", "compute.log_seconds=0", "compute.checkpoint_seconds=0"]


@pytest.fixture
def command() -> list[str]:
    return [sys.executable, "-m", "suite"]


@pytest.fixture
def call(command: list[str]):
    """Runs the command line in a process of its own, from the project's root."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=180)

    return run


@pytest.fixture(scope="module", autouse=True)
def timed_once() -> Iterator[None]:
    """Has studies time in turn once and not five times: what a clock says is nothing to test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("suite.evaluation.studies.timing.TIMED_REPEATS", 1)
        patch.setattr("suite.evaluation.studies.timing.TIMED_SECONDS", 0.0)
        yield


@pytest.fixture(autouse=True)
def no_tables(request, monkeypatch) -> None:
    """Leaves out the tables that a run and an evaluation end with, which take half of a small run's time: see `tables`."""
    if "tables" not in request.fixturenames and "suite.running.requests" in sys.modules:
        for name in ("print_scores", "print_evaluations"):
            monkeypatch.setattr(f"suite.running.requests.{name}", lambda *arguments: None)


@pytest.fixture
def tables() -> None:
    """For tests of the tables that a run and an evaluation end with."""
