"""Shards of a token store: flat files of ids, of what is known of them, and the records that name these files.

A file of ids holds uint16 or uint32 in little-endian order; each document begins with BOS. Beside it lies a file with the places
of BOS (uint64), and for what is held out one with the bytes of text that each id is credited with (uint16).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from tasks.files import machine, write_atomically
from tasks.language.remembered import FileIdentity
from tasks.language.units import AnyUnit, HubUnit, Part

STORE_FORMAT = 1  # raised when the same text and tokenizer would give other files


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the store, or a file of ids that lies elsewhere, as it was when a digest was computed.

    name: below the store's folder, or an absolute path. sha256: of the shard's own bytes in it.
    """

    name: str
    identity: FileIdentity
    sha256: str


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """The ids of one part of a text in one unit.

    offset: the byte of the file at which they begin. dtype: how an id lies there. count: of ids. first: the place of the first
    BOS, None without one.
    boundaries: the places of BOS, counted from the first id. num_bytes: None where it isn't kept.
    """

    ids: Stored
    offset: int
    dtype: str
    count: int
    first: int | None
    boundaries: Stored
    num_bytes: Stored | None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a unit. total, lost: UTF-8 bytes of text of each part, and how many of them no id is credited with.

    source: the file that was read; None for a data set of the hub.
    """

    unit: AnyUnit
    source: FileIdentity | None
    shards: dict[Part, Shard]
    total: dict[Part, int]
    lost: dict[Part, int]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a process is asked to do with one unit of a text. rows, fraction: see `DataSettings`."""

    number: int
    unit: AnyUnit
    folder: str
    rows: str
    fraction: float
    tokenizer: str | None
    bos: int | None
    vocab_size: int
    fingerprint: str


def source_of(unit: AnyUnit) -> FileIdentity | None:
    """What the file of a unit is now, None for a data set of the hub. Raises OSError where there is no such file."""
    return None if isinstance(unit, HubUnit) else FileIdentity.of(Path(unit.file))


def report_path(folder: Path, number: int) -> Path:
    """The file that is there if and only if this unit is done."""
    return folder / f"{number:06d}.json"


def write_report(folder: Path, number: int, report: Report) -> None:
    write_atomically(report_path(folder, number), msgspec.json.encode(report))


def id_type(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """How an id lies in a file."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


class FileWriter:
    """A file that is written bit by bit, and has its name when it is whole. Raises OSError, naming the file."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        # As `tasks.files` names a temporary, so that what a killed process leaves is removed with the others.
        self.temporary = folder / f".{name}.{machine()}-{uuid.uuid4().hex}.tmp"
        self.file = open(self.temporary, "xb")  # noqa: SIM115
        with contextlib.suppress(OSError):
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.digest = hashlib.sha256()

    def write(self, values: np.ndarray) -> None:
        data = values.tobytes()
        self.digest.update(data)
        with self._named():
            self.file.write(data)

    def close(self) -> Stored:
        """Gives the file its name."""
        with self._named(), self.file:
            self.file.flush()
            os.fsync(self.file.fileno())
            os.replace(self.temporary, path := self.folder / self.name)
        return Stored(name=self.name, identity=FileIdentity.of(path), sha256=self.digest.hexdigest())

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """What the system says of an open file, such as that its disk is full, names none."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.folder / self.name)) from error

    def discard(self) -> None:
        """Removes a file that won't be whole."""
        # A full disk takes no more of what was not written yet.
        with contextlib.suppress(OSError):
            self.file.close()
        self.temporary.unlink(missing_ok=True)


class ShardWriter:
    """The files of one part of one unit. keeps_bytes: whether the bytes of each id are kept, or their sum alone."""

    def __init__(self, folder: Path, number: int, part: Part, *, dtype: np.dtype, bos: int, keeps_bytes: bool) -> None:
        self.dtype, self.bos, self.count, self.credited = dtype, bos, 0, 0
        self.first: int | None = None
        name = f"{number:06d}.{part}"
        self.ids, self.boundaries = FileWriter(folder, f"{name}.ids"), FileWriter(folder, f"{name}.bos")
        self.num_bytes = FileWriter(folder, f"{name}.bytes") if keeps_bytes else None

    def write(self, ids: np.ndarray, num_bytes: np.ndarray | None) -> None:
        """Appends ids [N], and the bytes that each is credited with [N] where they are kept."""
        self.ids.write(ids.astype(self.dtype))
        self._mark(ids)
        if self.num_bytes is not None:
            assert num_bytes is not None
            self.num_bytes.write(num_bytes.astype("<u2"))

    def _mark(self, ids: np.ndarray) -> None:
        places = np.flatnonzero(ids == self.bos) + self.count
        if self.first is None and len(places):
            self.first = int(places[0])
        self.boundaries.write(places.astype("<u8"))
        self.count += len(ids)

    def close(self) -> Shard:
        stored = None if self.num_bytes is None else self.num_bytes.close()
        return Shard(
            ids=self.ids.close(),
            offset=0,
            dtype=self.dtype.str,
            count=self.count,
            first=self.first,
            boundaries=self.boundaries.close(),
            num_bytes=stored,
        )

    def discard(self) -> None:
        for writer in (self.ids, self.boundaries, self.num_bytes):
            if writer is not None:
                writer.discard()
