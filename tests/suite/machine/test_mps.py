"""NVIDIA's Multi-Process Service, with a stand-in for its daemon."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from suite.machine import mps
from tests.suite.conftest import ROOT

DAEMON = """#!/bin/sh
echo "${CUDA_VISIBLE_DEVICES-all}" > "$CUDA_MPS_PIPE_DIRECTORY/../gpus"
echo $$ > "$CUDA_MPS_PIPE_DIRECTORY/../pid"
exec sleep 600
"""


@pytest.fixture
def daemon(tmp_path, monkeypatch) -> Path:
    """A program in the place of the daemon; the file that it writes its process number to."""
    program = tmp_path / "bin" / mps.CONTROL
    program.parent.mkdir()
    program.write_text(DAEMON)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv(mps.PIPES, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / "pid"


def number(path: Path) -> int:
    deadline = time.monotonic() + 20
    while not (path.exists() and path.read_text().strip()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return int(path.read_text())


def lives(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_it_runs_for_a_block_and_its_clients_find_it(daemon):
    assert mps.is_there()
    with mps.service() as environment:
        process = number(daemon)
        assert lives(process) and Path(environment[mps.PIPES]).is_dir()
    assert not lives(process) and not Path(environment[mps.PIPES]).exists()


def test_it_knows_the_gpus_by_the_numbers_that_its_clients_are_told(daemon, monkeypatch):
    """Told of GPU 1 alone it would call it 0, and a worker that is told of GPU 1 would find none."""
    monkeypatch.setenv(mps.VISIBLE, "1")
    with mps.service() as environment:
        number(daemon)
        assert daemon.with_name("gpus").read_text().strip() == "all" and mps.VISIBLE not in environment


def test_one_that_the_user_has_started_is_left_alone(daemon, monkeypatch):
    monkeypatch.setenv(mps.PIPES, "/somewhere")
    assert not mps.is_there()


def test_it_ends_with_a_command_that_is_killed(daemon):
    code = "import time\nfrom suite.machine import mps\nwith mps.service():\n    time.sleep(600)"
    command = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    process = number(daemon)
    command.send_signal(signal.SIGKILL)
    command.wait()
    deadline = time.monotonic() + 20
    while lives(process) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not lives(process)
