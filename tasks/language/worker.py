"""A process that tokenises units of a large text, one after another, as it is told on its standard input.

Its lines are JSON: in come `Job`s, out go `Told`s. It imports no torch, so that many of them fit beside each other.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from tasks.language.documents import read_fragments
from tasks.language.ids_files import scanned
from tasks.language.pieces import Piece, batches
from tasks.language.shards import Job, Report, ShardWriter, id_type, source_of, write_report
from tasks.language.tokenizer import load_tokenizer
from tasks.language.units import IdsUnit, Part
from tasks.tokenizer import Tokenizer

MOST_BYTES_A_TOKEN = np.iinfo(np.uint16).max


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """done: bytes of the text in the unit that was asked for. is_done: whether the unit is. fault: why it can't be, or ""."""

    done: int
    is_done: bool
    fault: str


def main() -> None:
    # The parent hears of Ctrl-C, too, and ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a library prints is no line of ours.
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    serve(sys.stdin.buffer, out)


def serve(jobs: BinaryIO, out: BinaryIO) -> None:
    """Does the jobs until there are no more, or nobody hears what is told."""

    def tell(told: Told) -> None:
        try:
            out.write(msgspec.json.encode(told) + b"\n")
        except BrokenPipeError:
            sys.exit(1)

    for line in jobs:
        job = msgspec.json.decode(line, type=Job)
        try:
            report = work(job, lambda done: tell(Told(done=done, is_done=False, fault="")))
            write_report(Path(job.folder), job.number, report)
        except (OSError, ValueError) as error:
            tell(Told(done=0, is_done=False, fault=" ".join(str(error).split()) or type(error).__name__))
        else:
            tell(Told(done=0, is_done=True, fault=""))


def work(job: Job, progress: Callable[[int], None]) -> Report:
    """Writes the shards of a unit. progress: is told how many bytes of text are done."""
    if isinstance(job.unit, IdsUnit):
        return scanned(job, job.unit, progress)
    tokenizer = load_tokenizer(job.tokenizer, job.bos)
    if tokenizer.fingerprint != job.fingerprint:
        raise ValueError(f"data.tokenizer={tokenizer.name!r} has changed since the command was started")
    return _tokenised(job, tokenizer, progress)


def _tokenised(job: Job, tokenizer: Tokenizer, progress: Callable[[int], None]) -> Report:
    unit = job.unit
    assert not isinstance(unit, IdsUnit)
    writers: dict[Part, ShardWriter] = {}
    total: dict[Part, int] = {}
    lost: dict[Part, int] = {}
    source = source_of(unit)
    try:
        for pieces in batches(read_fragments(unit, job.rows), unit.part, job.fraction):
            part = pieces[0].part
            if part not in writers:
                dtype, held_out = id_type(tokenizer.vocab_size), part == "validation"
                writers[part] = ShardWriter(
                    Path(job.folder), job.number, part, dtype=dtype, bos=tokenizer.bos, keeps_bytes=held_out
                )
            size = sum(len(piece.text.encode()) for piece in pieces)
            credited = _write(pieces, tokenizer, writers[part])
            total[part], lost[part] = total.get(part, 0) + size, lost.get(part, 0) + size - credited
            progress(sum(total.values()))
        if source_of(unit) != source:
            raise ValueError("a text has changed while it was read")
        shards = {part: writer.close() for part, writer in writers.items()}
        return Report(unit=unit, source=source, shards=shards, total=total, lost=lost)
    except BaseException:
        for writer in writers.values():
            writer.discard()
        raise


def _write(pieces: list[Piece], tokenizer: Tokenizer, writer: ShardWriter) -> int:
    """Writes the ids of pieces, BOS in front of each document; the bytes of text that the ids are credited with."""
    texts = [piece.text for piece in pieces]
    if writer.num_bytes is None:
        every = tokenizer.encode_many(texts)
        writer.write(np.concatenate(list(_with_bos(pieces, [ids for ids, _ in every], tokenizer.bos))), None)
        return sum(credited for _, credited in every)
    aligned = tokenizer.align(texts)
    if (most := max(int(num_bytes.max(initial=0)) for _, num_bytes in aligned)) > MOST_BYTES_A_TOKEN:
        raise ValueError(f"data.tokenizer: one token covers {most} bytes of the text; {MOST_BYTES_A_TOKEN} are permitted")
    ids = np.concatenate(list(_with_bos(pieces, [ids for ids, _ in aligned], tokenizer.bos)))
    num_bytes = np.concatenate(list(_with_bos(pieces, [num_bytes for _, num_bytes in aligned], 0)))
    writer.write(ids, num_bytes)
    return int(num_bytes.sum())


def _with_bos(pieces: list[Piece], values: list[np.ndarray], front: int) -> Iterator[np.ndarray]:
    for piece, each in zip(pieces, values, strict=True):
        if piece.begins:
            yield np.array([front], dtype=np.uint32)
        yield each


if __name__ == "__main__":
    main()
