"""Text tokenised once, kept in files that are mapped into memory."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.tokenizer import Tokenizer

FORMAT = 1  # raised when the same text and tokenizer would give other files
PIECE_CHARACTERS = 2**18
BATCH_CHARACTERS = 2**22

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tokens:
    """records [N]: field "id", and "num_bytes", the UTF-8 bytes of the text that the id covers. digest: of all of them."""

    records: np.ndarray
    digest: str


def record_type(vocab_size: int) -> np.dtype:
    """One token on disk; ids take two bytes where they fit."""
    return np.dtype([("id", "<u2" if vocab_size <= 2**16 else "<u4"), ("num_bytes", "<u2")])


def load_tokens(
    folder: str, *, source: Sequence[object], documents: Callable[[], Iterable[str]], tokenizer: Tokenizer, seq_len: int
) -> Tokens:
    """The tokens of `documents`, with BOS between any two of them, from the cache or else tokenised into it.

    source: what decides the documents; with the tokenizer and FORMAT it names the cache file. A file that isn't whole
    by its digest is made again. Two processes may do so at once: they write the same bytes under temporary names.
    Raises ValueError when one token covers more than 65535 bytes, and, before anything is written, when there are
    fewer than seq_len tokens.
    """
    key = hashlib.sha256(repr((FORMAT, tokenizer.fingerprint, *source)).encode()).hexdigest()[:16]
    path, dtype = Path(folder) / f"{key}.tokens", record_type(tokenizer.vocab_size)
    digest = _verified_digest(path)
    if digest is None:
        logger.info("tokenising into %s", path)
        digest = _write_tokens(path, _enough(encode_documents(documents(), tokenizer), seq_len))
    records = np.memmap(path, dtype=dtype, mode="r")
    _enough([records], seq_len)
    return Tokens(records, digest)


def _enough(chunks: Iterable[np.ndarray], seq_len: int) -> Iterator[np.ndarray]:
    """The same chunks; raises ValueError when all of them together have fewer than seq_len records."""
    first, count = [], 0
    chunks = iter(chunks)
    while count < seq_len:
        chunk = next(chunks, None)
        if chunk is None:
            raise ValueError(f"task.seq_len={seq_len} is more than the {count} tokens that one part of the text has")
        first.append(chunk)
        count += len(chunk)
    return itertools.chain(first, chunks)


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


def _verified_digest(path: Path) -> str | None:
    """The SHA-256 of a cache file if it is the one written beside it, else None."""
    try:
        expected = path.with_suffix(".sha256").read_text()
        with open(path, "rb") as file:
            return expected if hashlib.file_digest(file, "sha256").hexdigest() == expected else None
    except (FileNotFoundError, UnicodeDecodeError):
        return None


def _write_tokens(path: Path, chunks: Iterable[np.ndarray]) -> str:
    digest = hashlib.sha256()
    path.parent.mkdir(parents=True, exist_ok=True)

    def content() -> Iterator[bytes]:
        for chunk in chunks:
            data = chunk.tobytes()
            digest.update(data)
            yield data

    _write_atomically(path, content())
    _write_atomically(path.with_suffix(".sha256"), [digest.hexdigest().encode()])
    return digest.hexdigest()


def _write_atomically(path: Path, content: Iterable[bytes]) -> None:
    """Writes under a temporary name, syncs and renames: the path holds the whole content or what it held before."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        # Gone already when it was renamed.
        temporary.unlink(missing_ok=True)
