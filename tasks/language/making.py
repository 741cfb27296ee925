"""A large text tokenised once, by several processes, unit by unit; a unit that is done stays done, whatever ends the command."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from tasks.files import read_regular, remove_temporaries
from tasks.language.crew import Crew
from tasks.language.index import Index, PartIndex, is_there, read_values
from tasks.language.shards import FileWriter, Job, Report, Shard, report_path, source_of
from tasks.language.units import Part
from tasks.progress import tell

MOST_REPORT_BYTES = 2**20

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within the block no other process makes the store in this folder. Waits for one that does, and says so in the log."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another process tokenises for %s; waiting", folder)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            # Without locks two processes do the same work, of which each file is whole and the same.
            logger.info("%s has no locks", folder)
        yield


def make_store(folder: Path, jobs: Sequence[Job], *, workers: int | None, name: str) -> Index:
    """Has every job done that isn't, and makes the index, without writing it. name: what the text is called where people watch.

    Raises ValueError for a text that can't be read, and OSError.
    """
    remove_temporaries(folder)
    left = [job for job in jobs if read_report(folder, job) is None]
    logger.info("tokenising for %s: %d of %d units are left", folder, len(left), len(jobs))
    index = _Indexing(folder, jobs)
    total = sum(job.unit.size for job in jobs)
    finished, running = total - sum(job.unit.size for job in left), dict[int, int]()
    count = min(len(left), workers or _cores())
    with Crew(count) as crew:
        for job, told in crew.work(left):
            if told.is_done:
                running.pop(job.number, None)
                finished += job.unit.size
                index.go_on()
            else:
                # A compressed unit has more bytes of text than of its own.
                running[job.number] = min(told.done, job.unit.size)
            tell(f"tokenising {name}", finished + sum(running.values()), total)
    index.go_on()
    return index.finish()


def _cores() -> int:
    """The cores that this process may use, or where the system does not say (macOS), those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_report(folder: Path, job: Job) -> Report | None:
    """What became of a unit, None where it isn't done, its text has changed, or one of its files is gone."""
    try:
        report = msgspec.json.decode(read_regular(report_path(folder, job.number), limit=MOST_REPORT_BYTES), type=Report)
    except (OSError, ValueError):
        return None
    stored = [each for shard in report.shards.values() for each in (shard.ids, shard.boundaries, shard.num_bytes) if each]
    alike = report.unit == job.unit and report.source == source_of(job.unit)
    return report if alike and all(is_there(folder, each) for each in stored) else None


class _Counting:
    """Digest and counts of the ids of one part, shard after shard."""

    def __init__(self, vocab_size: int) -> None:
        self.ids, self.num_bytes = hashlib.sha256(), hashlib.sha256()
        self.counts, self.shards = np.zeros(vocab_size, dtype=np.int64), list[Shard]()
        self.total = self.lost = 0

    def add(self, folder: Path, report: Report, part: Part) -> None:
        shard = report.shards[part]
        for ids in read_values(folder, shard.ids, np.dtype(shard.dtype), offset=shard.offset, count=shard.count):
            self.ids.update(ids.tobytes())
            self.counts += np.bincount(ids, minlength=len(self.counts))
        if shard.num_bytes is not None:
            for values in read_values(folder, shard.num_bytes, np.dtype("<u2"), offset=0, count=shard.count):
                self.num_bytes.update(values.tobytes())
        self.shards.append(shard)
        self.total += report.total.get(part, 0)
        self.lost += report.lost.get(part, 0)

    def close(self, folder: Path, part: Part) -> PartIndex:
        writer = FileWriter(folder, f"{part}.counts")
        writer.write(self.counts.astype("<u8"))
        return PartIndex(
            digest=hashlib.sha256(f"{self.ids.hexdigest()} {self.num_bytes.hexdigest()}".encode()).hexdigest(),
            count=sum(shard.count for shard in self.shards),
            total=self.total,
            lost=self.lost,
            shards=self.shards,
            counts=writer.close(),
        )


class _Indexing:
    """Goes through the units in their order as they are done: a digest of all ids, however they lie in shards."""

    def __init__(self, folder: Path, jobs: Sequence[Job]) -> None:
        self.folder, self.left = folder, iter(jobs)
        self.vocab_size, self.fingerprint = jobs[0].vocab_size, jobs[0].fingerprint
        self.next = next(self.left, None)
        self.parts: dict[Part, _Counting] = {part: _Counting(self.vocab_size) for part in ("train", "validation")}

    def go_on(self) -> None:
        """Takes what is done and follows on what was taken."""
        while self.next is not None and (report := read_report(self.folder, self.next)):
            for part in report.shards:
                self.parts[part].add(self.folder, report, part)
            self.next = next(self.left, None)

    def finish(self) -> Index:
        if self.next is not None:
            raise ValueError("a text has changed while it was read")
        parts = {part: each.close(self.folder, part) for part, each in self.parts.items()}
        return Index(fingerprint=self.fingerprint, vocab_size=self.vocab_size, parts=parts)
