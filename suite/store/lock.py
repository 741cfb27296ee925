"""One worker a run, on every file system on which two processes see each other's files.

A worker holds the flock of `lock.guard` for the run's life: the kernel drops it with the process, and no process
numbers, namespaces or clocks are asked on one machine. Beside it lies the worker's claim, `lock.claim-<token>`, a file of its
own that it touches while it lives, for machines that do not share flocks and for file systems that have none. Whoever
wants a run announces itself first and looks at the others afterwards, so that of two at least one sees the other, and
withdraws. A claim is dead when its machine is this one and the flock is ours, or when it was not touched for STALE_SECONDS
by the clock of the file system. docs/reliability.md says what that promises where.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from suite.store.foreign import check_no_link, inert, parse_json
from tasks.files import file_system_time, flock_works, machine, read_regular

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
# Two that announce themselves at the same moment both withdraw: they try again, soon and not together.
TRIES, PAUSE_SECONDS, FRESH_SECONDS = 6, 0.3, 2.0
MOST_CLAIM = 2**12
# Versions before 0.2 called theirs `lock`.
CLAIM = re.compile(r"lock(\.claim-[0-9a-f]{32})?")
UNNAMED = ("another process works on it", 0.0)


class Locked(Exception):
    """Another living worker holds the run; the message names it."""


class Superseded(Exception):
    """This worker did not show that it lives for so long that another one took the run over; it writes no more."""


class RunLock:
    """Holds the run in `folder`, of the store `root`, while the `with` block runs.

    Raises Locked where another living worker holds it, and OSError where the folder can't be written, or has links.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.root = folder, root
        self._claim: Path | None = None
        self._guard, self._is_taken = -1, False
        self._released = threading.Event()

    def __enter__(self) -> RunLock:
        for tries_left in reversed(range(TRIES)):
            try:
                self._take()
                break
            except Locked as error:
                if error.args[1] >= FRESH_SECONDS or not tries_left:
                    raise Locked(error.args[0]) from None
            finally:
                if not self._is_taken:
                    self._withdraw()
            time.sleep(random.uniform(0.1, 1.0) * PAUSE_SECONDS)
        self._released.clear()
        threading.Thread(target=self._beat, args=(self._claim,), daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._released.set()
        self._withdraw()

    def holder(self) -> str | None:
        """Who holds it, in words; None when nobody alive does. Looks, and claims nothing. Raises OSError."""
        check_no_link(self.folder, self.root)
        guard = self.folder / "lock.guard"
        try:
            descriptor = os.open(guard, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            others = self._others(now=file_system_time(self.folder), buries=flock_works(descriptor, guard))
        except BlockingIOError:
            others = self._others(now=None) or [UNNAMED]
        finally:
            os.close(descriptor)
        return others[0][0] if others else None

    def check(self) -> None:
        """Called before every write. Raises Superseded where the claim is gone: another worker found it dead."""
        if self._claim is not None:
            # Opening asks a network file system again, which a look at the name may not.
            try:
                os.close(os.open(self._claim, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
            except FileNotFoundError:
                raise Superseded("another process has taken the run over, since this one did not show that it lives") from None

    def _take(self) -> None:
        """Raises Locked(who, for how many seconds its claim has not been touched)."""
        check_no_link(self.folder, self.root)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        guard = self.folder / "lock.guard"
        self._guard = os.open(guard, flags, 0o644)
        try:
            keeps_out = flock_works(self._guard, guard)
        except BlockingIOError:
            raise Locked(*min(self._others(now=None), key=lambda other: other[1], default=UNNAMED)) from None
        now = self._announce(keeps_out)
        others = self._others(now=now, buries=keeps_out)
        if others:
            raise Locked(*others[0])
        self._is_taken = True

    def _announce(self, keeps_out: bool) -> float:
        """Writes the claim; returns what the file system's clock says now."""
        self._claim = self.folder / f"lock.claim-{uuid.uuid4().hex}"
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "machine": machine(), "flock": keeps_out}
        descriptor = os.open(self._claim, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "w") as file:
            file.write(json.dumps(holder))
            file.flush()
            return os.fstat(descriptor).st_mtime

    def _others(self, *, now: float | None, buries: bool = False) -> list[tuple[str, float]]:
        """Who else claims the run, and how long ago each claim was touched; dead ones are removed where `now` is known.

        buries: whether the flock is ours and keeps others out, so that what this machine claimed under one is dead.
        """
        found = []
        for path in self.folder.glob("lock*"):
            if not CLAIM.fullmatch(path.name) or path == self._claim:
                continue
            try:
                holder, touched = _read_claim(path)
            except (OSError, ValueError):
                continue
            age = (time.time() if now is None else now) - touched
            dead = (buries and holder.get("machine") == machine() and holder.get("flock") is True) or abs(age) > STALE_SECONDS
            if now is not None and dead:
                # Its name is its own: nobody else's claim can be hit.
                with contextlib.suppress(OSError):
                    path.unlink()
                continue
            found.append((f"process {inert(holder.get('pid'))} on {inert(holder.get('host'))} works on it", age))
        return found

    def _withdraw(self) -> None:
        self._is_taken = False
        if self._claim is not None:
            with contextlib.suppress(OSError):
                self._claim.unlink()
            self._claim = None
        if self._guard >= 0:
            os.close(self._guard)
            self._guard = -1

    def _beat(self, claim: Path) -> None:
        """Touches the claim, by the file system's clock, until it is released or gone."""
        while not self._released.wait(HEARTBEAT_SECONDS):
            try:
                os.utime(claim, follow_symlinks=False)
            except FileNotFoundError:
                return
            except OSError:
                # A network that is away for a while: `check` says what has come of it.
                continue


def _read_claim(path: Path) -> tuple[dict[str, Any], float]:
    """What a claim says of its holder, nothing where its writing is under way, and when it was touched."""
    data = read_regular(path, limit=MOST_CLAIM)
    touched = path.stat(follow_symlinks=False).st_mtime
    with contextlib.suppress(ValueError):
        return parse_json(data), touched
    return {}, touched
