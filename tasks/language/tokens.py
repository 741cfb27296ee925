"""Text tokenised once, kept in files that are read as they are needed."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tasks.files import open_regular, read_regular, remove_temporaries, write_atomically
from tasks.progress import tell
from tasks.tokenizer import Tokenizer

FORMAT = 2  # raised when the same text and tokenizer would give other files
PIECE_CHARACTERS = 2**18
BATCH_CHARACTERS = 2**22
READ_RECORDS = 2**20

logger = logging.getLogger(__name__)
# A line that is to be said once, however many runs of a request read the same text.
warn_once = functools.cache(logger.warning)


@dataclass(frozen=True)
class Records:
    """N records of a file: field "id", and "num_bytes", the UTF-8 bytes of the text that are predicted with the id.

    They are read when they are asked for, since a mapping of a file that is cut meanwhile would kill the process.
    """

    file: BinaryIO
    path: Path
    dtype: np.dtype
    count: int

    def __post_init__(self) -> None:
        # When nobody reads it any more, and at the end of the process, for which caches hold it.
        weakref.finalize(self, self.file.close)

    def runs(self, starts: Sequence[int] | np.ndarray, length: int) -> np.ndarray:
        """`length` records from each of the starts [B] on, [B, length]. Raises OSError where the file has been cut."""
        size = length * self.dtype.itemsize
        data = b"".join([os.pread(self.file.fileno(), size, int(start) * self.dtype.itemsize) for start in starts])
        if len(data) != len(starts) * size:
            raise OSError(f"{str(self.path)!r} was cut while it was read; it is made again when the command is started again")
        return np.frombuffer(data, self.dtype).reshape(len(starts), length)

    def chunks(self) -> Iterator[np.ndarray]:
        """All records in order, READ_RECORDS at a time."""
        for start in range(0, self.count, READ_RECORDS):
            yield self.runs([start], min(READ_RECORDS, self.count - start))[0]

    def __getitem__(self, field: str) -> np.ndarray:
        """One field of all records [N]."""
        return np.concatenate([chunk[field] for chunk in self.chunks()])


@dataclass
class StoredTokens:
    """The tokens of one part of a text: in a file without a name until they are kept, else in the cache.

    digest: SHA-256 of all records. lost, total: how many UTF-8 bytes of the text no id predicts, and how many it has.
    """

    records: Records
    digest: str
    lost: int
    total: int

    def keep(self) -> None:
        """Places them in the cache unless they are there, and tidies it. Where it can't be written that is said once."""
        path = self.records.path
        try:
            remove_temporaries(path.parent)
            if _unkept.get(path) is self:
                write_atomically(path, (chunk.tobytes() for chunk in self.records.chunks()))
                write_atomically(path.with_suffix(".sha256"), _about(self.digest, self.lost, self.total))
                # From here on without the file that has no name, which takes room.
                self.records = (_from_cache(path, self.records.dtype) or self).records
                del _unkept[path]
        except OSError as error:
            warn_once(f"tokens are not kept in paths.cache={str(path.parent)!r}, and made again next time: {error.strerror}")


_unkept: weakref.WeakValueDictionary[Path, StoredTokens] = weakref.WeakValueDictionary()
"""What this process has tokenised and not kept, so that the runs of one request share it."""


def record_type(vocab_size: int) -> np.dtype:
    """One token on disk; ids take two bytes where they fit."""
    return np.dtype([("id", "<u2" if vocab_size <= 2**16 else "<u4"), ("num_bytes", "<u2")])


def load_tokens(
    folder: str,
    *,
    source: Sequence[object],
    documents: Callable[[], Iterable[str]],
    tokenizer: Tokenizer,
    seq_len: int,
    name: str = "a text",
) -> StoredTokens:
    """The tokens of `documents`, with BOS between any two of them, from the cache or else tokenised; `keep` writes them there.

    name: what the text is called where people watch.
    source: what decides the documents; with the tokenizer and FORMAT it names the cache file. A file that isn't whole
    by its digest is made again.
    Raises ValueError when one token covers more than 65535 bytes, when there are fewer than seq_len tokens, and when the
    tokenizer loses more than half of the text; says it in the log when it loses some.
    """
    key = hashlib.sha256(repr((FORMAT, tokenizer.fingerprint, *source)).encode()).hexdigest()[:16]
    path, dtype = Path(folder).expanduser() / f"{key}.tokens", record_type(tokenizer.vocab_size)
    tokens = _unkept.get(path) or _from_cache(path, dtype)
    if tokens is None:
        tokens = _unkept[path] = _tokenised(documents(), tokenizer, path, name)
    if (count := tokens.records.count) < seq_len:
        raise ValueError(f"task.seq_len={seq_len} is more than the {count} tokens that one part of the text has")
    if tokens.lost:
        check_lost(tokenizer.name, tokens.lost, tokens.total)
    return tokens


def check_lost(tokenizer: str | None, lost: int, total: int) -> None:
    """Says it in the log that a tokenizer loses some bytes of a text. Raises ValueError where it loses more than half."""
    said = f"data.tokenizer={tokenizer!r}: its ids do not give back {lost:,} of {total:,} bytes of a text"
    if 2 * lost > total:
        raise ValueError(f"{said}; half of them is permitted")
    warn_once(f"{said}, which bits_per_byte leaves out")


def _from_cache(path: Path, dtype: np.dtype) -> StoredTokens | None:
    """The tokens of a cache file if their SHA-256 is the one written beside it, else None."""
    try:
        written = read_regular(path.with_suffix(".sha256"), limit=1000, follow=True)
        expected, lost, total = written.decode().split()[:3]
        file = os.fdopen(open_regular(path, follow=True), "rb")
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        records = Records(file, path, dtype, os.fstat(file.fileno()).st_size // dtype.itemsize)
        whole = digest == expected and written == _about(digest, int(lost), int(total))
        return StoredTokens(records, digest, int(lost), int(total)) if whole else None
    except (OSError, ValueError):
        return None


def _about(digest: str, lost: int, total: int) -> bytes:
    """What stands beside a cache file, with a digest of its own at the end."""
    said = f"{digest} {lost} {total}"
    return f"{said} {hashlib.sha256(said.encode()).hexdigest()[:16]}".encode()


def _tokenised(documents: Iterable[str], tokenizer: Tokenizer, path: Path, name: str) -> StoredTokens:
    """The tokens of documents, in a file without a name; `path` is where they are to be kept. name: of the text, for people."""
    logger.info("tokenising for %s", path)
    documents = list(documents)
    digest, count, lost = hashlib.sha256(), 0, sum(len(document.encode()) for document in documents)
    # It lives as long as its records.
    file, total = tempfile.TemporaryFile(), lost  # noqa: SIM115
    done = 0
    for records in encode_documents(documents, tokenizer):
        digest.update(records)
        file.write(records)
        count += len(records)
        num_bytes = int(records["num_bytes"].sum())
        lost, done = lost - num_bytes, done + num_bytes
        tell(f"tokenising {name}", done, total)
    file.flush()
    return StoredTokens(Records(file, path, record_type(tokenizer.vocab_size), count), digest.hexdigest(), lost, total)


def encode_documents(documents: Iterable[str], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """Records of the documents with BOS between any two, some millions of characters at a time."""
    for texts, begins in _batches(documents):
        for begin, (ids, num_bytes) in zip(begins, tokenizer.align(texts), strict=True):
            if num_bytes.max(initial=0) > np.iinfo(np.uint16).max:
                raise ValueError(f"data.tokenizer: one token covers {num_bytes.max()} bytes of the text; 65535 are permitted")
            records = np.zeros(begin + len(ids), dtype=record_type(tokenizer.vocab_size))
            records["id"][:begin] = tokenizer.bos
            records["id"][begin:], records["num_bytes"][begin:] = ids, num_bytes
            yield records


def _batches(documents: Iterable[str]) -> Iterator[tuple[list[str], list[bool]]]:
    """Pieces of documents in batches of bounded size, and whether each begins a document other than the first."""
    texts, begins, size = [], [], 0
    for number, document in enumerate(documents):
        for start, piece in _pieces(document):
            texts.append(piece)
            begins.append(start == 0 and number > 0)
            size += len(piece)
            if size >= BATCH_CHARACTERS:
                yield texts, begins
                texts, begins, size = [], [], 0
    if texts:
        yield texts, begins


def _pieces(document: str) -> Iterator[tuple[int, str]]:
    """Cuts a long document at ends of lines, so that the memory for one encoding stays bounded; start and piece."""
    start = 0
    while start < len(document):
        end = start + PIECE_CHARACTERS
        if end < len(document):
            end = document.rfind("\n", start, end) + 1 or end
        yield start, document[start:end]
        start = end
