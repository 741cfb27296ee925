"""Ids of a large text, read from the shards of a store as they are needed."""

from __future__ import annotations

import functools
import hashlib
import os
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tasks.language import remembered
from tasks.language.hub import hub_units
from tasks.language.ids_files import ids_units
from tasks.language.index import Index, PartIndex, open_stored, read_exactly, read_index, read_values, write_index
from tasks.language.making import alone, make_store
from tasks.language.remembered import FileIdentity
from tasks.language.settings import IDS, DataSettings
from tasks.language.shards import STORE_FORMAT, Job, Stored
from tasks.language.text_files import files_digest, matching_files, named
from tasks.language.tokens import check_lost
from tasks.language.units import AnyUnit, local_units
from tasks.language.vocabulary import Vocabulary

MOST_OPEN = 64  # shards of a part that are open at once, and of which the places of BOS are held
ANY_BYTES = 2**62


class StoredPart:
    """One part of a text: the ids of its documents with BOS between any two, as a `tasks.language.packing.Stream`.

    Raises ValueError where a shard, when it is first read, is found to be corrupted.
    """

    def __init__(self, folder: Path, index: PartIndex, vocabulary: Vocabulary) -> None:
        self.folder, self.index, self.vocabulary = folder, index, vocabulary
        self.ends = np.cumsum([shard.count for shard in index.shards], dtype=np.int64)
        # A document begins with BOS; the first one's is none between two.
        self.skipped = int(bool(index.shards) and index.shards[0].first == 0)
        self.count, self.digest, self.num_blocks = index.count - self.skipped, index.digest, len(index.shards)
        self.knows_bytes = all(shard.num_bytes is not None for shard in index.shards)
        # A cache of its own: the parts of one process have different shards.
        self._opened = functools.lru_cache(MOST_OPEN)(self._open)

    def ids(self, starts: np.ndarray, length: int) -> np.ndarray:
        return np.stack([self._values("ids", int(start), length) for start in starts])

    def num_bytes(self, starts: np.ndarray, length: int) -> np.ndarray:
        return np.stack([self._values("num_bytes", int(start), length) for start in starts])

    def counts(self) -> np.ndarray:
        values = read_values(self.folder, self.index.counts, np.dtype("<u8"), offset=0, count=self.vocabulary.size)
        counts = np.concatenate(list(values)).astype(np.int64)
        counts[self.vocabulary.bos] -= self.skipped
        return counts

    def boundaries(self, block: int) -> np.ndarray:
        shard = self.index.shards[block]
        before = int(self.ends[block]) - shard.count - self.skipped
        count = shard.boundaries.identity.size // 8
        values = read_values(self.folder, shard.boundaries, np.dtype("<u8"), offset=0, count=count)
        return np.concatenate([np.zeros(0, dtype=np.int64), *(places.astype(np.int64) + before for places in values)])

    def keep(self) -> None:
        """A store is kept while it is made."""

    def _values(self, kind: str, start: int, length: int) -> np.ndarray:
        place, parts = start + self.skipped, list[np.ndarray]()
        number = int(np.searchsorted(self.ends, place, side="right"))
        while length:
            shard = self.index.shards[number]
            first = place - (int(self.ends[number]) - shard.count)
            here = min(length, shard.count - first)
            parts.append(self._opened(number, kind).read(first, here))
            place, length, number = place + here, length - here, number + 1
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, dtype=np.int64)

    def _open(self, number: int, kind: str) -> _Opened:
        shard = self.index.shards[number]
        if kind == "ids":
            return _Opened(self.folder, shard.ids, np.dtype(shard.dtype), shard.offset)
        assert shard.num_bytes is not None
        return _Opened(self.folder, shard.num_bytes, np.dtype("<u2"), 0)


class _Opened:
    """A file of a shard, closed when nobody reads it any more: threads may read what another one has just let go."""

    def __init__(self, folder: Path, stored: Stored, dtype: np.dtype, offset: int) -> None:
        self.path, self.dtype, self.offset = folder / stored.name, dtype, offset
        self.descriptor = open_stored(folder, stored)
        weakref.finalize(self, os.close, self.descriptor)

    def read(self, first: int, count: int) -> np.ndarray:
        size = self.dtype.itemsize
        return np.frombuffer(read_exactly(self.descriptor, count * size, self.offset + first * size, self.path), self.dtype)


def open_store(data: DataSettings, vocabulary: Vocabulary) -> dict[str, StoredPart]:
    """The parts of the text of these settings, from the cache or else tokenised into it.

    Raises ValueError for a text that can't be read or has no document in one of the parts, and OSError.
    """
    folder = Path(data.cache).expanduser() / f"{_key(data, vocabulary)}.store"
    index = read_index(folder)
    if index is None:
        with alone(folder):
            # Another process may have made it meanwhile.
            index = read_index(folder) or _made(folder, data, vocabulary)
    for part, each in index.parts.items():
        if each.lost:
            check_lost(data.tokenizer, each.lost, each.total)
        if not each.count:
            raise ValueError(f"data.path: no document is in the {part} text; {_remedy(data)}")
    return {part: StoredPart(folder, each, vocabulary) for part, each in index.parts.items()}


def _made(folder: Path, data: DataSettings, vocabulary: Vocabulary) -> Index:
    jobs = [
        Job(
            number=number,
            unit=unit,
            folder=str(folder),
            rows=data.rows,
            fraction=data.validation_fraction,
            tokenizer=None if data.tokenizer is None else str(data.tokenizer),
            bos=data.bos,
            vocab_size=vocabulary.size,
            fingerprint=vocabulary.fingerprint,
        )
        for number, unit in enumerate(_units(data))
    ]
    index = make_store(folder, jobs, workers=data.workers, name=f"data={data.name}")
    # It may have changed before it was read, too.
    if f"{_key(data, vocabulary)}.store" != folder.name:
        raise ValueError(f"data={data.name}: its files have changed while they were read")
    write_index(folder, index)
    return index


def _units(data: DataSettings) -> Sequence[AnyUnit]:
    if data.format in IDS:
        return ids_units(data)
    return hub_units(data) if data.path is None else local_units(data)


def _key(data: DataSettings, vocabulary: Vocabulary) -> str:
    """What decides the files of a store, as a name."""
    held_out = data.validation_fraction if data.validation_path is None else None
    parts = STORE_FORMAT, vocabulary.fingerprint, data.format, data.text_field, data.rows, held_out, *_source(data)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _source(data: DataSettings) -> list[object]:
    """What is read: files by what they hold, which is found out once; files of ids by their identity; a data set by its name."""
    if data.path is None:
        return [data.repository, data.subset, data.revision, data.train_split, data.validation_split]
    cache, found = Path(data.cache).expanduser(), list[object]()
    for paths in filter(None, (data.path, data.validation_path)):
        if data.format in IDS:
            found.append([(str(file.resolve()), _identity(file), data.dtype) for file in matching_files(paths)])
            continue
        found.append(files_digest(paths, limit=ANY_BYTES, cache=cache))
        for file in matching_files(paths):
            remembered.keep(file, cache)
    return found


def _identity(file: Path) -> tuple[int, ...]:
    with named(file):
        each = FileIdentity.of(file)
    return each.size, each.mtime_ns, each.ctime_ns, each.inode


def _remedy(data: DataSettings) -> str:
    return "give data.validation_path, another data.validation_fraction, or more documents" if data.path else "give another split"
