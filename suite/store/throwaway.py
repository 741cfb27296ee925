"""What is kept between processes in the user's cache folder and may be thrown away at any time. Imports no torch.

A file there that is damaged or not the user's alone is as good as none, and one that can't be written is no error. Versions of
this package that are used beside one another have files of their own; what none has used for UNUSED_DAYS is removed. Nothing
of it lies in a store, which may come from a stranger.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import sys
import time
import zlib
from pathlib import Path
from typing import TypeVar

import msgspec

from conf.paths import cache
from tasks.files import read_regular, remove_temporaries, write_atomically

MOST = 2**29
UNUSED_DAYS = 30
Kept = TypeVar("Kept")


def load(name: str, kind: type[Kept]) -> Kept | None:
    """What was kept under a name; None where that is not there, or not what this version wrote."""
    folder = _folder()
    if folder is None or not _is_ours(folder):
        return None
    path = folder / _own(name)
    try:
        data = read_regular(path, limit=MOST)
        start = len(_seal(b""))
        body = memoryview(data)[start:]
        found = msgspec.msgpack.decode(body, type=kind) if data[:start] == _seal(body) else None
    except (OSError, ValueError, msgspec.MsgspecError):
        return None
    with contextlib.suppress(OSError):
        # The time says that it is in use.
        os.utime(path)
    return found


def keep(name: str, value: object) -> None:
    """Keeps a value under a name, whole or not at all, if that is possible."""
    folder = _folder()
    body = msgspec.msgpack.encode(value)
    if folder is None or len(body) > MOST // 2:
        return
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _is_ours(folder):
            remove_temporaries(folder)
            _remove_unused(folder)
            write_atomically(folder / _own(name), [_seal(body), body])


def _remove_unused(folder: Path) -> None:
    oldest = time.time() - UNUSED_DAYS * 24 * 3600
    with os.scandir(folder) as entries:
        for entry in entries:
            # Another command may be removing it.
            with contextlib.suppress(OSError):
                if entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_mtime < oldest:
                    os.unlink(entry.path)


def stamp(path: str | Path, folder: int | None = None) -> tuple[int, ...]:
    """What differs once a file or folder was written again: its inode, size and times; zeroes where there is none.

    folder: a descriptor of the folder below which it lies.
    """
    try:
        known = os.stat(path, dir_fd=folder, follow_symlinks=False)
    except (OSError, ValueError):
        return 0, 0, 0, 0
    return known.st_ino, known.st_size, known.st_mtime_ns, known.st_ctime_ns


def _own(name: str) -> str:
    """The name that this version gives it: another that took the same would have its own written anew each time."""
    return f"{_version()[:8].hex()}-{name}"


def _folder() -> Path | None:
    folder = cache()
    return Path(folder, "index") if folder else None


def _is_ours(folder: Path) -> bool:
    """Whether nobody else can have written into a folder."""
    try:
        known = folder.stat()
    except OSError:
        return False
    return known.st_uid == os.getuid() and not known.st_mode & 0o022


def _seal(body: bytes | memoryview) -> bytes:
    return _version() + zlib.crc32(body).to_bytes(4, "big")


@functools.cache
def _version() -> bytes:
    """Changes with the code that makes what is kept."""
    sources = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    return hashlib.sha256(b"\0".join([sys.version.encode(), *sources])).digest()
