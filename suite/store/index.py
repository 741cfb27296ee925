"""What the runs of a store say, read from their files or, for many runs that have not changed, from an index of the user's own.

The index lies in the user's cache folder and may be thrown away. A run counts as it stands there as long as all files that
were looked at, and the folders that list them, have the inode, size and times that they had before they were read. A run of
which a file was skipped with a warning is not indexed, so that the warning comes each time. Imports no torch.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from suite.canonical import digest
from suite.store import records as reading
from suite.store.columns import POSITION, WHOLE, Table, joined, tabulated
from suite.store.records import RunFiles
from suite.store.throwaway import keep, load, stamp

READERS: Mapping[str, Callable[[RunFiles], list[dict[str, Any]]]] = {
    "run": RunFiles.run,
    "machine": RunFiles.machine,
    "rows": RunFiles.rows_alone,
}
READ_BY = digest(Path(reading.__file__).read_text(encoding="utf-8"), 32)
"""The state of the code that reads: what another state of it has indexed may lack what this one finds."""
MANY = 200
"""Fewer runs are read from their files alone."""
CHANGED_SHARE = 0.02
"""An index is written again once more than this share of the runs had to be read from their files."""
RACE_NANOSECONDS = 2 * 10**9
"""What was written so shortly before it was read may be written again without another time of writing."""
BATCH = 2000
Seen = dict[str, tuple[int, ...]]
"""The stamp of every file and folder of a run that was looked at."""


class Records(msgspec.Struct, array_like=True, frozen=True):
    """Rows of several runs: those of the first come first. counts: how many each has."""

    run_ids: list[str]
    counts: bytes
    table: Table

    @property
    def rows_of(self) -> np.ndarray:
        return np.frombuffer(self.counts, POSITION)


class Index(msgspec.Struct, array_like=True, frozen=True):
    """Records, and by which files each run of them was read: `listed` has lists of their names, `which` says a run's.

    stamps: those of all files of all runs.
    """

    root: str
    records: Records
    listed: list[list[str]]
    which: list[int]
    stamps: bytes


class Store:
    """Some runs of a store, read part by part, each part once. run_ids: which, None for all that it has."""

    def __init__(self, root: Path, run_ids: Collection[str] | None) -> None:
        self.root, self._is_all = root, run_ids is None
        self._known: dict[str, Records] = {}
        self._runs = root / "runs"
        found = self._all() if run_ids is None else {name: (self._runs / name).is_symlink() for name in run_ids if _is_name(name)}
        # Whatever stands in the place of run.json is read, and then refused, such as a pipe.
        self.run_ids = sorted(name for name in found if os.path.exists(self._runs / name / "run.json"))
        self._links = {name for name, is_link in found.items() if is_link}

    def of(self, run_ids: Collection[str]) -> Store:
        """Some of these runs; a part that was read of all is not read again."""
        own, wanted = copy.copy(self), set(run_ids)
        own._is_all, own._known = False, dict(self._known)
        own.run_ids = [run_id for run_id in self.run_ids if run_id in wanted]
        return own

    def read(self, part: str, run_ids: Sequence[str]) -> Records:
        """What a part of READERS says of these runs, in their order."""
        known = self._known.get(part)
        if known is None or not set(run_ids) <= set(known.run_ids):
            known = self._known[part] = self._read(part, run_ids)
        return known if known.run_ids == run_ids else _together(run_ids, [(known, set(run_ids))])

    def _read(self, part: str, run_ids: Sequence[str]) -> Records:
        place = str(self.root.resolve())
        name, is_indexed = f"{digest([place, part, READ_BY], 32)}.{part}", len(run_ids) >= MANY
        index = load(name, Index) if is_indexed else None
        index = index if index and index.root == place else None
        seen = self._unchanged(index, run_ids) if index else {}
        fresh: dict[str, Seen] = {}
        parts = [
            (records, set(records.run_ids))
            for records in self._from_files(part, [run_id for run_id in run_ids if run_id not in seen], fresh)
        ]
        found = _together(run_ids, [*([(index.records, seen.keys())] if index else []), *parts])
        if is_indexed and len(fresh) > CHANGED_SHARE * len(run_ids):
            self._keep(name, place, found, seen | fresh, index)
        return found

    def _all(self) -> dict[str, bool]:
        """The names of all folders of runs, and whether each is a link."""
        try:
            with os.scandir(self._runs) as entries:
                return {entry.name: entry.is_symlink() for entry in entries}
        except OSError:
            return {}

    def _from_files(self, part: str, run_ids: Sequence[str], settled: dict[str, Seen]) -> Iterator[Records]:
        """What the files say, some runs at a time; `settled` gets the stamps of the runs that may be indexed."""
        rows: list[dict[str, Any]] = []
        counts: dict[str, int] = {}
        for run_id in run_ids:
            before = time.time_ns() - RACE_NANOSECONDS
            files = RunFiles(self.root, run_id)
            read = READERS[part](files)
            rows += read
            counts[run_id] = len(read)
            if files.is_whole and all(each[-1] < before for each in files.seen.values()):
                settled[run_id] = files.seen
            if len(rows) >= BATCH:
                yield _records(counts, tabulated(rows))
                rows, counts = [], {}
        yield _records(counts, tabulated(rows))

    def _unchanged(self, index: Index, run_ids: Sequence[str]) -> dict[str, Seen]:
        """The runs whose files are as they were when they were indexed, with their stamps."""
        wanted = set(run_ids) - self._links
        try:
            folder = os.open(self._runs, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return {}
        try:
            return {
                run_id: known
                for run_id, known in _known(index)
                if run_id in wanted and all(stamp(f"{run_id}/{name}", folder) == then for name, then in known.items())
            }
        finally:
            os.close(folder)

    def _keep(self, name: str, place: str, found: Records, seen: dict[str, Seen], index: Index | None) -> None:
        """Writes an index of what was found of the runs in `seen`, and of what it had of runs that nobody asked for."""
        parts: list[tuple[Records, Collection[str]]] = [(found, set(seen))]
        if index and not self._is_all:
            asked = set(found.run_ids)
            others = {run_id: known for run_id, known in _known(index) if run_id not in asked}
            parts.append((index.records, others.keys()))
            seen = seen | others
        run_ids = sorted(seen)
        listed: dict[tuple[str, ...], int] = {}
        which = [listed.setdefault(tuple(seen[run_id]), len(listed)) for run_id in run_ids]
        stamps = np.array([each for run_id in run_ids for each in seen[run_id].values()], WHOLE).tobytes()
        keep(name, Index(place, _together(run_ids, parts), [*map(list, listed)], which, stamps))


def _is_name(name: object) -> bool:
    """Whether it names a folder below another, and nothing elsewhere: requests of a stranger say which runs are read."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & {"/", "\0"}


def _known(index: Index) -> Iterator[tuple[str, Seen]]:
    """The runs of an index, with their stamps."""
    stamps = map(tuple, np.frombuffer(index.stamps, WHOLE).reshape(-1, 4).tolist())
    for run_id, which in zip(index.records.run_ids, index.which, strict=True):
        yield run_id, {name: next(stamps) for name in index.listed[which]}


def _records(counts: Mapping[str, int], table: Table) -> Records:
    return Records(list(counts), np.array(list(counts.values()), POSITION).tobytes(), table)


def _together(run_ids: Sequence[str], parts: Iterable[tuple[Records, Collection[str]]]) -> Records:
    """The records of these runs, in their order, of several; each with the runs of which they are taken from it."""
    counts = dict.fromkeys(run_ids, 0)
    for records, chosen in parts:
        counts |= {
            each: int(n) for each, n in zip(records.run_ids, records.rows_of, strict=True) if each in chosen and each in counts
        }
    lengths = np.array(list(counts.values()), np.int64)
    starts = dict(zip(counts, (np.cumsum(lengths) - lengths).tolist(), strict=True))
    moved = []
    for records, chosen in parts:
        to = np.array([starts[each] if each in chosen and each in starts else -1 for each in records.run_ids], np.int64)
        own = records.rows_of.astype(np.int64)
        inner = np.arange(own.sum()) - np.repeat(np.cumsum(own) - own, own)
        first = np.repeat(to, own)
        moved.append(records.table.moved(np.where(first < 0, -1, first + inner), int(lengths.sum())))
    return _records(counts, joined(moved, int(lengths.sum())))
