"""Files that are whole or absent, and foreign files that are regular and of bounded size.

A file is written under a temporary name, which its writer holds by an flock, forced to disk, and given its name. A
killed writer leaves its temporary behind; whoever writes to the folder next removes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import re
import socket
import stat
import subprocess
import sys
import uuid
from collections.abc import Iterable
from pathlib import Path

# A temporary of another machine, or where flock tells nothing, is left alone for so long.
ABANDONED_SECONDS = 24 * 3600.0
TEMPORARY = re.compile(r"\..+\.(?P<machine>[0-9a-f]{8})-[0-9a-f]{32}\.tmp")
# How versions before 0.2 named theirs.
OLD_TEMPORARY = re.compile(r"\.[\w-]+\.(safetensors|jsonl?|yaml)\.\w{8}|[0-9a-f]{16}\.(tokens|sha256)\.[0-9a-f]{32}\.tmp")


@functools.cache
def boot_id() -> str:
    """The kernel of this machine since it was started; "" where it can't be told."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if sys.platform == "darwin":
            asked = ["sysctl", "-n", "kern.bootsessionuuid"]
            return subprocess.run(asked, capture_output=True, text=True, timeout=10).stdout.strip()
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


@functools.cache
def machine() -> str:
    """8 hexadecimal digits that tell this machine, since its start, from others. Containers of one machine share them."""
    return hashlib.sha256((boot_id() or socket.gethostname()).encode()).hexdigest()[:8]


def flock_works(descriptor: int, path: Path) -> bool:
    """Takes the flock of an open file without waiting, and says whether that keeps others out.

    Raises BlockingIOError where another process holds it. False where the file system has no flock, or one that
    permits everything, which a second descriptor finds out.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    try:
        second = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(second)
    return False


def write_atomically(path: Path, content: bytes | Iterable[bytes | memoryview], *, replace: bool = True) -> None:
    """Writes a file that is there whole or not at all, whenever the process or the machine stops.

    replace: whether it takes the place of a file of that name. Raises FileExistsError where it must not, and OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, descriptor = _open_temporary(path)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
            # Still under the flock, so that nobody takes the temporary for abandoned.
            _place(temporary, path, replace=replace)
    finally:
        # Gone already where it was renamed.
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _open_temporary(path: Path) -> tuple[Path, int]:
    while True:
        temporary = path.with_name(f".{path.name}.{machine()}-{uuid.uuid4().hex}.tmp")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Another process may have tidied between the two lines above: then the name is gone, and another one is taken.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(temporary), os.fstat(descriptor)):
                return temporary, descriptor
        os.close(descriptor)


def _place(temporary: Path, path: Path, *, replace: bool) -> None:
    if replace:
        os.replace(temporary, path)
        return
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        # A file system without hard links: the rename that follows is not exclusive, the claim of its writer is.
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.rename(temporary, path)


def sync_folder(folder: Path) -> None:
    """Forces the names in a folder to disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Some network file systems can't, and have nothing to force.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Removes what killed writers left in a folder, and nothing whose writer may live."""
    for entry in os.scandir(folder) if folder.is_dir() else ():
        name = TEMPORARY.fullmatch(entry.name)
        if (name or OLD_TEMPORARY.fullmatch(entry.name)) and entry.is_file(follow_symlinks=False):
            path = Path(entry.path)
            # A folder that can't be written, or another process that was faster.
            with contextlib.suppress(OSError):
                ours = name is not None and name["machine"] == machine()
                if (ours and _is_abandoned(path)) or file_system_time(folder) - path.stat().st_mtime > ABANDONED_SECONDS:
                    path.unlink()


def _is_abandoned(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return flock_works(descriptor, path)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def file_system_time(folder: Path) -> float:
    """What the clock of a folder's file system says, whatever this machine's says. Raises OSError where it can't be written."""
    probe = folder / f".now.{machine()}-{uuid.uuid4().hex}.tmp"
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        return os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)
        probe.unlink(missing_ok=True)


def open_regular(path: str | Path, *, follow: bool) -> int:
    """A descriptor that reads a regular file. follow: whether the name may be a link.

    Raises ValueError for anything else, without waiting for it, and OSError where it can't be opened.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        # A device may do something when it is opened: it is asked for by name first.
        kind = os.stat(path, follow_symlinks=follow).st_mode
        if stat.S_ISREG(kind):
            descriptor = os.open(path, flags)
            kind = os.fstat(descriptor).st_mode
            if stat.S_ISREG(kind):
                return descriptor
            os.close(descriptor)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError("it is a link") from error
        raise
    names = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    raise ValueError(f"it is {names.get(stat.S_IFMT(kind), 'a device')}, not a regular file")


def read_regular(path: str | Path, *, limit: int, follow: bool = False) -> bytes:
    """The bytes of a regular file. Raises ValueError for what `open_regular` refuses and for more than `limit` bytes."""
    with os.fdopen(open_regular(path, follow=follow), "rb") as file:
        # Not by its size alone: files of /proc say 0.
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    return content
