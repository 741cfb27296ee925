"""One worker a run: a lock that a dead process can't keep.

The lock is a file that names its holder (host, process, start of the process) and that the holder touches while it
lives. It is stale when its process is gone, or, seen from another host, when it was not touched for a while. Every
change of it happens under an flock that the kernel drops with the process, so that two workers can't both take over.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0


class Locked(Exception):
    """Another living worker holds the run; the message names it."""


def process_start(pid: int) -> str | None:
    """When a process of this machine started, as the kernel counts it; None where that can't be read.

    Tells a process from a later one with the same number.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[19]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class RunLock:
    """Holds `path` while the `with` block runs. Raises Locked where another living worker holds it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._holder = {"host": socket.gethostname(), "pid": os.getpid(), "started": process_start(os.getpid())}
        self._released = threading.Event()

    def __enter__(self) -> RunLock:
        with self._guard():
            holder = self._read()
            if holder is not None and self._lives(holder):
                raise Locked(f"process {holder.get('pid')} on {holder.get('host')} works on it")
            self.path.write_text(json.dumps(self._holder))
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def holder(self) -> str | None:
        """Who holds it, in words; None when nobody alive does."""
        with self._guard():
            holder = self._read()
            return f"process {holder.get('pid')} on {holder.get('host')}" if holder is not None and self._lives(holder) else None

    def __exit__(self, *exc_info: object) -> None:
        self._released.set()
        with self._guard():
            if self._read() == self._holder:
                self.path.unlink()

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_SECONDS):
            with self._guard():
                if self._read() == self._holder and not self._released.is_set():
                    os.utime(self.path)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        with open(self.path.with_suffix(".guard"), "w") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            yield

    def _read(self) -> dict | None:
        """The holder; None without a lock, or with one that a crash tore while it was written under the guard."""
        try:
            holder = json.loads(self.path.read_text())
        except (FileNotFoundError, ValueError):
            return None
        return holder if isinstance(holder, dict) else None

    def _lives(self, holder: dict) -> bool:
        pid = holder.get("pid")
        if holder.get("host") == self._holder["host"] and isinstance(pid, int):
            started = process_start(pid)
            return is_alive(pid) and (started is None or started == holder.get("started"))
        return time.time() - self.path.stat().st_mtime < STALE_SECONDS
