"""The lock of a run, with real processes, on file systems whose flock works, permits everything, or is not there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from suite.store.lock import STALE_SECONDS, Locked, RunLock, Superseded
from tasks.files import file_system_time

# argv: the run's folder, what flock is there, the machine, and the seconds after which a claim is dead.
PRELUDE = """
import errno, fcntl, os, sys, time
from pathlib import Path
import suite.store.lock, tasks.files
folder, kind, host, stale = Path(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])
def refused(*_):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = {"works": fcntl.flock, "permits everything": lambda *_: None, "is missing": refused}[kind]
suite.store.lock.machine = lambda: host
suite.store.lock.STALE_SECONDS, suite.store.lock.HEARTBEAT_SECONDS = stale, stale / 10
from suite.store.lock import Locked, RunLock, Superseded
"""
HOLD = (
    PRELUDE
    + """
lock = RunLock(folder, folder)
with lock:
    print("held", flush=True)
    sys.stdin.readline()
    try:
        lock.check()
        print("still mine", flush=True)
    except Superseded as error:
        print(error, flush=True)
"""
)
CONTEND = (
    PRELUDE
    + """
until, violations, claims = time.monotonic() + 2.5, 0, 0
while time.monotonic() < until:
    try:
        with RunLock(folder, folder):
            try:
                os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                violations += 1
            claims += 1
            time.sleep(0.01)
            (folder / "inside").unlink(missing_ok=True)
    except Locked:
        time.sleep(0.02)
print(violations, claims)
"""
)
KINDS = ["works", "permits everything", "is missing"]


def python(script, folder, kind="works", host="here", stale=STALE_SECONDS, prefix=()):
    """A process with this script. host: None for the machine's own name."""
    script = script if host else script.replace("suite.store.lock.machine =", "_ =")
    command = [*prefix, sys.executable, "-c", script, str(folder), kind, str(host), str(stale)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def holding(*arguments, **options):
    process = python(HOLD, *arguments, **options)
    assert process.stdout.readline() == "held\n"
    return process


def end(process):
    process.kill()
    process.communicate()


def claims(folder):
    return [path for path in folder.glob("lock*") if path.name != "lock.guard"]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch) -> None:
    """In this process; a process of its own pauses as long as ever."""
    monkeypatch.setattr("suite.store.lock.PAUSE_SECONDS", 0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_a_living_holder_is_named_and_keeps_others_out(kind, tmp_path):
    process = holding(tmp_path, kind)
    try:
        with pytest.raises(Locked, match=f"process {process.pid} on {socket.gethostname()}"), RunLock(tmp_path, tmp_path):
            pass
        assert f"process {process.pid}" in RunLock(tmp_path, tmp_path).holder()
    finally:
        end(process)


def test_the_run_of_a_killed_holder_is_free_at_once_where_flock_works(tmp_path):
    end(holding(tmp_path, host=None))
    assert len(claims(tmp_path)) == 1
    with RunLock(tmp_path, tmp_path):
        (mine,) = claims(tmp_path)
        assert json.loads(mine.read_text())["pid"] == os.getpid()
    assert not claims(tmp_path)


@pytest.mark.parametrize("kind", [KINDS[1], pytest.param(KINDS[2], marks=pytest.mark.slow)])
def test_the_run_of_a_killed_holder_is_free_once_its_claim_is_stale_where_flock_tells_nothing(kind, tmp_path):
    end(holding(tmp_path, kind))
    waiting = python(HOLD, tmp_path, kind)
    assert waiting.stdout.readline() == "" and waiting.wait() != 0
    (claim,) = claims(tmp_path)
    # Its last heartbeat.
    then = claim.stat().st_mtime - STALE_SECONDS - 1
    os.utime(claim, (then, then))
    end(holding(tmp_path, kind))


@pytest.mark.parametrize("hosts", ["many", pytest.param("one", marks=pytest.mark.slow)])
def test_sixteen_contenders_are_never_inside_together_where_flock_permits_everything(hosts, tmp_path):
    race = [python(CONTEND, tmp_path, "permits everything", "here" if hosts == "one" else f"node{i}") for i in range(16)]
    told = [tuple(map(int, process.communicate(timeout=120)[0].split())) for process in race]
    assert sum(violations for violations, _ in told) == 0 and sum(entered for _, entered in told) > 10


def test_two_containers_with_one_host_name_do_not_share_a_run(tmp_path):
    apart = ("unshare", "--pid", "--fork", "--mount-proc")
    if shutil.which("unshare") is None or subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("another PID namespace needs root and unshare")
    process = holding(tmp_path, prefix=apart)
    try:
        other = python(HOLD, tmp_path, prefix=apart)
        assert other.stdout.readline() == "" and other.wait() != 0
    finally:
        process.communicate("go\n", timeout=20)


@pytest.mark.parametrize("hours", [-3, 3])
def test_a_clock_that_is_off_neither_takes_a_living_claim_nor_keeps_a_dead_one(hours, tmp_path, monkeypatch):
    process = holding(tmp_path, "is missing")
    try:
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + 3600 * hours)
        assert RunLock(tmp_path, tmp_path).holder() is not None
    finally:
        end(process)
    (claim,) = claims(tmp_path)
    there = now() + 3600 * hours
    os.utime(claim, (there, there))
    assert abs(file_system_time(tmp_path) - claim.stat().st_mtime) > STALE_SECONDS
    assert RunLock(tmp_path, tmp_path).holder() is None


def test_a_holder_that_was_stopped_and_wakes_up_writes_no_more(tmp_path):
    sleeper = holding(tmp_path, "permits everything", "node1", stale=1)
    os.kill(sleeper.pid, signal.SIGSTOP)
    time.sleep(1.5)
    successor = holding(tmp_path, "permits everything", "node2", stale=1)
    os.kill(sleeper.pid, signal.SIGCONT)
    told, _ = sleeper.communicate("go\n", timeout=20)
    assert told.startswith("another process has taken the run over")
    told, _ = successor.communicate("go\n", timeout=20)
    assert told == "still mine\n"


@pytest.mark.parametrize("content", [b"", b"not json", b"[]", b"\xff\xfe", b'{"pid": 1e999}', b'{"pid": ' + b"9" * 3000 + b"}"])
def test_a_claim_in_pieces_is_judged_by_its_heart_alone(content, tmp_path):
    claim = tmp_path / "lock"
    claim.write_bytes(content)
    with pytest.raises(Locked), RunLock(tmp_path, tmp_path):
        pass
    then = time.time() - STALE_SECONDS - 5
    os.utime(claim, (then, then))
    with RunLock(tmp_path, tmp_path):
        assert not claim.exists()


def test_the_check_raises_once_the_claim_is_gone(tmp_path):
    lock = RunLock(tmp_path, tmp_path)
    with lock:
        lock.check()
        (mine,) = claims(tmp_path)
        mine.unlink()
        with pytest.raises(Superseded):
            lock.check()


@pytest.mark.parametrize("name", ["lock.guard", "lock", "lock.claim-" + 32 * "0"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_strangers_lock_leads_nowhere(name, kind, tmp_path):
    precious, folder = tmp_path / "precious", tmp_path / "run"
    precious.write_text("precious")
    folder.mkdir()
    if kind == "link":
        (folder / name).symlink_to(precious)
    else:
        os.mkfifo(folder / name)
    try:
        with RunLock(folder, folder):
            pass
    except OSError as error:
        assert name == "lock.guard" and kind == "link", error
    assert precious.read_text() == "precious"
