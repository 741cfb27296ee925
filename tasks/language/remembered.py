"""Digests of files, each computed once: a file that still is the same one is not read again to tell what it holds."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from tasks.files import read_regular, write_atomically

# A file that is written to again so soon may keep its times: the clock of a file system ticks slowly.
SETTLED_NANOSECONDS = 2 * 10**9


class FileIdentity(msgspec.Struct, frozen=True):
    """What changes where a file is written to or replaced."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, file: Path) -> FileIdentity:
        """Raises OSError where there is no such file."""
        stat = os.stat(file)
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)

    @property
    def is_settled(self) -> bool:
        """Whether its last change lies so far back that another one would show."""
        return time.time_ns() - max(self.mtime_ns, self.ctime_ns) > SETTLED_NANOSECONDS


class Known(msgspec.Struct, frozen=True):
    """The SHA-256 of a file of this identity, in hexadecimal. check: of the other two, so that half a file is none."""

    identity: FileIdentity
    digest: str
    check: str

    @classmethod
    def of(cls, identity: FileIdentity, digest: str) -> Known:
        return cls(identity, digest, _check(identity, digest))


_known: dict[Path, Known] = {}
"""What this process knows; `keep` writes it down."""


def remembered(file: Path, cache: Path | None, digest_of: Callable[[], str]) -> str:
    """The digest of a file: remembered by this process or in the folder `cache`, or else digest_of(), which reads the file."""
    file = file.resolve()
    known = _known.get(file) or (_written(cache, file) if cache is not None else None)
    before = FileIdentity.of(file)
    if known is not None and known.identity == before:
        _known[file] = known
        return known.digest
    is_settled, digest = before.is_settled, digest_of()
    if is_settled and FileIdentity.of(file) == before:
        _known[file] = Known.of(before, digest)
    else:
        _known.pop(file, None)
    return digest


def keep(file: Path, cache: Path) -> None:
    """Writes down what this process knows of a file. Raises OSError where the folder can't be written."""
    file = file.resolve()
    if file in _known and _written(cache, file) != _known[file]:
        write_atomically(_place(cache, file), msgspec.json.encode(_known[file]))


def _place(cache: Path, file: Path) -> Path:
    return cache / "digests" / f"{hashlib.sha256(os.fsencode(file)).hexdigest()[:16]}.json"


def _written(cache: Path, file: Path) -> Known | None:
    try:
        known = msgspec.json.decode(read_regular(_place(cache, file), limit=10_000), type=Known)
    except (OSError, ValueError):
        return None
    return known if known.check == _check(known.identity, known.digest) else None


def _check(identity: FileIdentity, digest: str) -> str:
    return hashlib.sha256(f"{msgspec.structs.astuple(identity)} {digest}".encode()).hexdigest()[:16]
