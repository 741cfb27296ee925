"""Text files of the user's as lists of documents: whole, of bounded size, and nothing but text."""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tasks.files import open_regular
from tasks.language.remembered import remembered

SEPARATOR = re.compile(r"^<\|endoftext\|>(?:\r?\n|\Z)", re.MULTILINE)
# What may be meant as a separator, and what may stand unseen beside it.
MARKER, UNSEEN = re.compile(r"<\|(?i:end_?of_?text)\|>"), " \t\xa0\u200b\u2060\ufeff"
# Files whose documents stand in fields, by suffix or by their beginning.
TABLES = {".json": "JSON", ".jsonl": "JSON lines", ".ndjson": "JSON lines", ".csv": "a table", ".tsv": "a table"}
JSON = re.compile(r'\s*(?:\[\s*)?\{\s*"[^"\n]*"\s*:')
COMPRESSED = (".gz", ".xz", ".zst")
# A text is held several times over while it is decoded and split, so it may have this part of the machine's memory.
MEMORY_PARTS = 8
REMEDY = "data.held_out=each reads a text of any size"
READ_BYTES = 2**20
COMPRESSED_BYTES = 2**9  # so few at once, since they may become 16 MiB


def matching_files(paths: Sequence[str]) -> list[Path]:
    """Files named by paths or globs (** included), each once.

    Raises ValueError, naming the part of data.path that matches nothing or is a folder.
    """
    # A comma separates paths, or belongs to the name of one file.
    if os.path.exists(whole := os.path.expanduser(",".join(paths))):
        paths = [whole]
    files: list[str] = []
    for pattern in (os.path.expanduser(part) for part in paths):
        pattern = pattern if os.path.exists(pattern) else os.path.expanduser(pattern.strip())
        matches = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        if os.path.isdir(pattern):
            raise ValueError(f"data.path={pattern!r} is a folder; name its files, e.g. data.path='{pattern.rstrip('/')}/*.txt'")
        matches = [match for match in matches if not os.path.isdir(match)]
        if not matches:
            raise ValueError(f"data.path={pattern!r} matches no file; where files have moved, data.path tells the new place")
        files += matches
    return [Path(file) for file in dict.fromkeys(files)]


def text_documents(paths: Sequence[str]) -> list[str]:
    """The documents of text files, in order; a line that holds exactly <|endoftext|> ends a document.

    paths: see `matching_files`. Files are regular, UTF-8, compressed when they end in .gz, .xz or .zst, and hold at most
    `most_bytes` of text together.
    Raises ValueError, naming the file, when one can't be read, is empty, isn't text or seems to mark documents otherwise.
    """
    documents, left = [], most_bytes()
    for file in matching_files(paths):
        with named(file):
            data = _whole(file, left)
            left -= len(data)
            documents += _file_documents(file, data)
    return documents


def most_bytes() -> int:
    """The most bytes of text that are read on this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MEMORY_PARTS


@contextlib.contextmanager
def named(file: Path) -> Iterator[None]:
    """What the block raises begins with the file's name."""
    try:
        yield
    except (OSError, ValueError) as error:
        # What pyarrow raises has a text alone, of several lines.
        reason = f"cannot be read: {error.strerror or str(error).splitlines()[0]}" if isinstance(error, OSError) else error
        raise ValueError(f"data.path: {str(file)!r} {reason}") from error


def files_digest(paths: Sequence[str], *, limit: int, cache: Path | None) -> str:
    """A digest of files as they are, wherever they are kept; what is in `cache` of a file isn't computed again.

    Raises ValueError, naming the file, when one can't be read, is empty or has more than limit bytes.
    """
    source = []
    for file in matching_files(paths):
        with named(file):
            digest = remembered(file, cache, functools.partial(_digest, file, limit))
        # The suffix decides how the bytes are read; nothing else of the name matters.
        source.append((digest, file.suffix))
    return hashlib.sha256(repr(source).encode()).hexdigest()


def _digest(file: Path, limit: int) -> str:
    digest = hashlib.sha256()
    for piece in _pieces(file, limit, READ_BYTES):
        digest.update(piece)
    return digest.hexdigest()


def _file_documents(file: Path, data: bytearray) -> list[str]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text (at byte {error.start})") from error
    documents = [document for document in SEPARATOR.split(text) if document.strip()]
    if not documents:
        raise ValueError("is empty")
    if text.count("\r") > 10 * text.count("\n"):
        raise ValueError(r"has line ends of CR alone: change them to LF, e.g. tr '\r' '\n'")
    separators = len(SEPARATOR.findall(text))
    marked = [line for line in text.splitlines() if "<|" in line and MARKER.search(line)]
    alone = [line for line in marked if MARKER.fullmatch(line.strip(UNSEEN))]
    rule = "a separator is a line that holds exactly <|endoftext|> and ends in LF"
    if len(alone) > separators:
        odd = next((line for line in alone if line != "<|endoftext|>"), alone[0])
        raise ValueError(f"has {len(alone)} lines such as {odd!r}, of which {separators} separate documents: {rule}")
    if marked and not separators:
        raise ValueError(f"has <|endoftext|> within lines alone: {rule}; if it is meant as text, end the file with such a line")
    kind = TABLES.get(([""] + [s for s in map(str.lower, file.suffixes) if s not in COMPRESSED])[-1])
    if not separators and (kind or JSON.match(text)):
        raise ValueError(f"looks like {kind or 'JSON'}, not text: write the text of its documents; {rule}")
    return documents


def _whole(file: Path, limit: int) -> bytearray:
    """What a file holds when it isn't compressed any more. Raises ValueError for more than limit bytes, and binary ones."""
    data = bytearray()
    for piece in decompressed(file, limit):
        data += piece
        if len(data) > limit:
            raise ValueError(f"holds more than the {limit:,} bytes of text that this machine's memory is for; {REMEDY}")
        if data.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
            raise ValueError("is UTF-16 or UTF-32 text: write it as UTF-8, e.g. iconv -f UTF-16 -t UTF-8")
        if b"\0" in piece:
            raise ValueError(f"is binary, not text (a zero byte at offset {data.index(0)})")
    return data


def _pieces(file: Path, limit: int, size: int) -> Iterator[bytes]:
    """The bytes of a regular file, `size` at a time. Raises ValueError before any is read: of another kind, or above limit."""
    with os.fdopen(open_regular(file, follow=True), "rb", buffering=READ_BYTES) as opened:
        left = os.fstat(opened.fileno()).st_size
        # Files of /proc say 0, and some have no end.
        if left == 0:
            raise ValueError("is empty")
        if left > limit:
            raise ValueError(f"has {left:,} bytes, more than the {limit:,} of text that this machine's memory is for; {REMEDY}")
        # It may grow meanwhile.
        while piece := opened.read(min(size, left)):
            left -= len(piece)
            yield piece


def _codec(suffix: str) -> tuple[Callable[[], Any], type[Exception]]:
    """What opens one stream of a compressed file, and what it raises."""
    if suffix == ".gz":
        return functools.partial(zlib.decompressobj, wbits=31), zlib.error
    if suffix == ".xz":
        return lzma.LZMADecompressor, lzma.LZMAError
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise ValueError("needs the package zstandard: pip install zstandard") from error
    return lambda: zstandard.ZstdDecompressor().decompressobj(), zstandard.ZstdError


def decompressed(file: Path, limit: int) -> Iterator[bytes]:
    """What a file holds, by its suffix. Raises ValueError unless its streams are whole and nothing else is there."""
    if (suffix := file.suffix.lower()) not in COMPRESSED:
        yield from _pieces(file, limit, READ_BYTES)
        return
    open_stream, failure = _codec(suffix)
    stream = open_stream()
    try:
        for piece in _pieces(file, limit, COMPRESSED_BYTES):
            # Behind a stream gzip and xz permit zeros.
            while piece := piece.lstrip(b"\0") if stream is None and suffix != ".zst" else piece:
                stream = stream or open_stream()
                yield stream.decompress(piece)
                piece, stream = (stream.unused_data, None) if stream.eof else (b"", stream)
    except failure as error:
        raise ValueError(f"is not a whole {suffix} file: {error}") from error
    if stream is not None:
        raise ValueError(f"is not a whole {suffix} file: it ends too early")
