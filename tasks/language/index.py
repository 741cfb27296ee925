"""The index of a token store: which shards make a part of a text, and what their files held when they were written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from tasks.files import open_regular, read_regular, write_atomically
from tasks.language import remembered
from tasks.language.remembered import FileIdentity
from tasks.language.shards import Shard, Stored
from tasks.language.units import Part

READ_VALUES = 2**20
MOST_INDEX_BYTES = 2**28


class PartIndex(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a text: its shards in order. digest: of all ids and bytes. counts: how often each id of the vocabulary occurs.

    total, lost: UTF-8 bytes of its text, and how many of them no id is credited with; both 0 for files of ids.
    """

    digest: str
    count: int
    total: int
    lost: int
    shards: list[Shard]
    counts: Stored


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """All that a store holds. fingerprint: the tokenizer's."""

    fingerprint: str
    vocab_size: int
    parts: dict[Part, PartIndex]

    def files(self) -> Iterator[Stored]:
        """Every file that it names."""
        for part in self.parts.values():
            yield part.counts
            for shard in part.shards:
                yield from (each for each in (shard.ids, shard.boundaries, shard.num_bytes) if each is not None)


class Whole(msgspec.Struct, frozen=True):
    """An index as it lies in its file. sha256: of the index, so that a damaged one is none."""

    sha256: str
    index: msgspec.Raw


def write_index(folder: Path, index: Index) -> None:
    content = msgspec.json.encode(index)
    write_atomically(folder / "index.json", msgspec.json.encode(Whole(hashlib.sha256(content).hexdigest(), msgspec.Raw(content))))


def read_index(folder: Path) -> Index | None:
    """The index of a store that is finished and has all its files, else None."""
    try:
        whole = msgspec.json.decode(read_regular(folder / "index.json", limit=MOST_INDEX_BYTES), type=Whole)
        if hashlib.sha256(whole.index).hexdigest() != whole.sha256:
            return None
        index = msgspec.json.decode(whole.index, type=Index)
    except (OSError, ValueError):
        return None
    return index if all(is_there(folder, each) for each in index.files()) else None


def is_there(folder: Path, stored: Stored) -> bool:
    """Whether a file of a store is there and has its size; what it holds is looked at when it is read."""
    try:
        return FileIdentity.of(folder / stored.name).size == stored.identity.size
    except OSError:
        return False


def open_stored(folder: Path, stored: Stored) -> int:
    """A descriptor that reads a file of a store.

    A file that is no more the one that was written, such as a copy, is read whole to compare its SHA-256, once. Raises
    ValueError, naming the file, where it holds something else, and OSError.
    """
    path = folder / stored.name
    if FileIdentity.of(path) != stored.identity:
        if Path(stored.name).is_absolute():
            raise ValueError(f"{str(path)!r} has changed since the command was started")
        found = remembered.remembered(path, folder, lambda: _digest(path))
        if found != stored.sha256:
            raise ValueError(
                f"{str(path)!r} is corrupted: it doesn't hold what was written; without it the command makes it again"
            )
        remembered.keep(path, folder)
    return open_regular(path, follow=True)


def _digest(path: Path) -> str:
    with open(open_regular(path, follow=True), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_values(folder: Path, stored: Stored, dtype: np.dtype, *, offset: int, count: int) -> Iterator[np.ndarray]:
    """`count` values of a file from byte `offset` on, some at a time. Raises ValueError and OSError as `open_stored`."""
    descriptor = open_stored(folder, stored)
    try:
        for first in range(0, count, READ_VALUES):
            size = min(READ_VALUES, count - first) * dtype.itemsize
            yield np.frombuffer(read_exactly(descriptor, size, offset + first * dtype.itemsize, folder / stored.name), dtype)
    finally:
        os.close(descriptor)


def read_exactly(descriptor: int, size: int, offset: int, path: Path) -> bytes:
    """Bytes of a file. Raises OSError where it has been cut: a mapping of it would kill the process."""
    data = os.pread(descriptor, size, offset)
    if len(data) != size:
        raise OSError(f"{str(path)!r} was cut while it was read; it is made again when the command is started again")
    return data
