"""The lock of a run, with real processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from suite.lock import STALE_SECONDS, Locked, RunLock, process_start

HOLD = """
import sys, time
from pathlib import Path
from suite.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lock"


def holder(path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_living_holder_is_named_and_a_killed_one_is_taken_over(path):
    process = holder(path)
    try:
        with pytest.raises(Locked, match=f"process {process.pid} on {socket.gethostname()}"), RunLock(path):
            pass
        assert RunLock(path).holder() == f"process {process.pid} on {socket.gethostname()}"
    finally:
        process.kill()
        process.wait()
    assert path.exists()
    with RunLock(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()


def write(path, host, pid, started, age):
    path.write_text(json.dumps({"host": host, "pid": pid, "started": started}))
    then = time.time() - age
    os.utime(path, (then, then))


def test_another_hosts_lock_is_stale_when_its_heart_has_stopped(path):
    write(path, "elsewhere", 1, None, age=STALE_SECONDS - 5)
    with pytest.raises(Locked, match="elsewhere"), RunLock(path):
        pass
    write(path, "elsewhere", 1, None, age=STALE_SECONDS + 5)
    with RunLock(path):
        assert RunLock(path).holder() is not None


@pytest.mark.skipif(process_start(os.getpid()) is None, reason="this system does not tell when a process started")
def test_a_later_process_with_the_same_number_is_not_the_holder(path):
    write(path, socket.gethostname(), os.getpid(), "0", age=0)
    with RunLock(path):
        assert json.loads(path.read_text())["started"] == process_start(os.getpid())


@pytest.mark.parametrize("content", [b"", b"not json", b"[]", b"\xff\xfe"])
def test_a_lock_that_a_crash_left_in_pieces_holds_nobody_up(path, content):
    path.write_bytes(content)
    with RunLock(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_only_one_of_many_takes_over(path):
    write(path, socket.gethostname(), 2**22 - 1, "0", age=0)
    race = [
        subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for _ in range(4)
    ]
    try:
        deadline = time.monotonic() + 60
        while sum(process.poll() is None for process in race) > 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        alive = [process for process in race if process.poll() is None]
        assert len(alive) == 1 and json.loads(path.read_text())["pid"] == alive[0].pid
    finally:
        for process in race:
            process.kill()
            process.wait()
