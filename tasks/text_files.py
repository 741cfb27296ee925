"""Text files of the user's as lists of documents: whole, of bounded size, and nothing but text."""

from __future__ import annotations

import codecs
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

SEPARATOR = re.compile(r"^<\|endoftext\|>(?:\r?\n|\Z)", re.MULTILINE)
# What may be meant as a separator, what ends a line somewhere, and what is not seen beside it.
MARKER = re.compile(r"<\|(?i:end_?of_?text)\|>")
LINE_END = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
INVISIBLE = "\ufeff\u200b\u2060"
# Files whose documents stand in fields, by suffix or by their beginning.
TABLES = {".json": "JSON", ".jsonl": "JSON lines", ".ndjson": "JSON lines", ".csv": "a table", ".tsv": "a table"}
JSON = re.compile(r'\s*(?:\[\s*)?\{\s*"[^"\n]*"\s*:')
BOMS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32"}
BOMS |= {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}
KINDS = {b"PAR1": "Parquet", b"ARROW1": "Arrow", b"\x93NUMPY": "NumPy", b"%PDF": "PDF", b"PK\x03\x04": "zip", b"BZh": ".bz2"}
KINDS |= {b"\x1f\x8b": ".gz", b"\xfd7zXZ": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}
COMPRESSED = (".gz", ".xz", ".zst")
# A text is held several times over while it is decoded and split, so it may have this part of the machine's memory.
MEMORY_PARTS = 8
READ_BYTES = 2**20
# So few at once: 512 bytes of a .zst may become 16 MiB.
COMPRESSED_BYTES = 2**9


def most_bytes() -> int:
    """The most bytes of text that are read on this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MEMORY_PARTS


def matching_files(path: str | Sequence[str] | None) -> list[Path]:
    """Files named by a path, a glob (** included), or several of them as a list or separated by commas, each once.

    Raises ValueError, naming the part of data.path that matches nothing or is a folder.
    """
    if path is None or path == "" or path == []:
        raise ValueError("data.path is not set; name text files, e.g. data.path='books/*.txt.xz'")
    # A number is a name, too.
    named = list(map(str, path)) if isinstance(path, list | tuple) else str(path)
    if isinstance(named, str):
        named = [named] if os.path.exists(os.path.expanduser(named)) else named.split(",")
    files: list[str] = []
    for pattern in map(os.path.expanduser, named):
        pattern = pattern if os.path.exists(pattern) else os.path.expanduser(pattern.strip())
        matches = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        if os.path.isdir(pattern):
            raise ValueError(f"data.path={pattern!r} is a folder; name its files, e.g. data.path='{pattern.rstrip('/')}/*.txt'")
        matches = [match for match in matches if not os.path.isdir(match)]
        if not matches:
            raise ValueError(f"data.path={pattern!r} matches no file; where files have moved, data.path tells the new place")
        files += matches
    return [Path(file) for file in dict.fromkeys(files)]


def file_digest(file: Path) -> str:
    """The SHA-256 of a file's bytes as they are. Raises ValueError, naming it, when it can't be read."""
    digest = hashlib.sha256()
    with _named(file):
        for piece in _pieces(file, most_bytes(), READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def text_documents(path: str | Sequence[str]) -> list[str]:
    """The documents of text files, in order; a line that holds exactly <|endoftext|> ends a document.

    path: see `matching_files`. Files are regular, UTF-8, compressed when they end in .gz, .xz or .zst, and hold at most
    `most_bytes` of text together.
    Raises ValueError, naming the file, when one can't be read, is empty, isn't text or seems to mark documents otherwise.
    """
    documents, left = [], most_bytes()
    for file in matching_files(path):
        with _named(file):
            data = _text_bytes(file, left)
            left -= len(data)
            documents += _documents(file, _decoded(data))
    return documents


@contextlib.contextmanager
def _named(file: Path) -> Iterator[None]:
    """ValueErrors and OSErrors of the block begin with the file's name."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"data.path: {str(file)!r} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"data.path: {str(file)!r} {error}") from error


def _documents(file: Path, text: str) -> list[str]:
    documents = [document for document in SEPARATOR.split(text) if document.strip()]
    if not documents:
        raise ValueError("is empty")
    if "\r" in text and "\n" not in text:
        raise ValueError(r"has line ends of CR alone: change them to LF, e.g. tr '\r' '\n'")
    markers = list(MARKER.finditer(text))
    others = [marker for marker in markers if not SEPARATOR.match(text, marker.start())]
    for marker in others:
        _check_within_line(text, marker)
    if len(others) < len(markers):
        return documents
    if others:
        raise ValueError(
            f"holds {others[0].group()} {len(others)} times, always within a line, where it separates nothing: a separator is a "
            "line that holds exactly <|endoftext|>. If it is meant as text, end the file with such a line"
        )
    suffix = ([""] + [suffix for suffix in map(str.lower, file.suffixes) if suffix not in COMPRESSED])[-1]
    if suffix in TABLES or JSON.match(text):
        kind = TABLES.get(suffix, "JSON")
        raise ValueError(f"looks like {kind}, not text: write the text of its documents, with a line <|endoftext|> after each")
    return documents


def _check_within_line(text: str, marker: re.Match[str]) -> None:
    """Raises ValueError where nothing visible stands beside a marker that is no separator."""
    before = LINE_END.split(text[max(0, marker.start() - 80) : marker.start()])[-1]
    after = LINE_END.split(text[marker.end() : marker.end() + 80])[0]
    if not (before + after).strip(INVISIBLE + " \t\xa0"):
        number, line = text.count("\n", 0, marker.start()) + 1, before + marker.group() + after
        raise ValueError(f"has the line {line!r} (line {number}); a separator holds exactly <|endoftext|> and ends in LF")


def _decoded(data: bytearray) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text{_looks(data)} (at byte {error.start})") from error


def _looks(data: bytearray) -> str:
    if max(data[:64:2].count(0), data[1:64:2].count(0)) > 8:
        return ", it looks like UTF-16 or UTF-32"
    return next((f", it looks like {kind}" for magic, kind in KINDS.items() if data.startswith(magic)), "")


def _text_bytes(file: Path, limit: int) -> bytearray:
    """What a file holds when it isn't compressed any more. Raises ValueError for more than limit bytes, and binary ones."""
    data = bytearray()
    for piece in _decompressed(file, limit):
        data += piece
        if len(data) > limit:
            raise ValueError(f"holds more than the {limit:,} bytes of text that this machine's memory is for")
        coding = next((coding for bom, coding in BOMS.items() if data.startswith(bom)), None)
        if coding:
            raise ValueError(f"is {coding} text: write it as UTF-8, e.g. iconv -f {coding} -t UTF-8")
        if b"\0" in piece:
            raise ValueError(f"is binary, not text{_looks(data)} (a zero byte at offset {data.index(0)})")
    return data


def _pieces(file: Path, limit: int, size: int) -> Iterator[bytes]:
    """The bytes of a regular file, `size` at a time. Raises ValueError before any is read: of another kind, or above limit."""
    try:
        descriptor = open_regular(file, follow=True)
    except ValueError as error:
        raise ValueError(f"cannot be read: {error}") from error
    with os.fdopen(descriptor, "rb", buffering=READ_BYTES) as opened:
        left = os.fstat(descriptor).st_size
        # Files of /proc say 0, and some have no end.
        if left == 0:
            raise ValueError("is empty")
        if left > limit:
            raise ValueError(f"has {left:,} bytes, more than the {limit:,} of text that this machine's memory is for")
        # No more than it said, should it grow meanwhile.
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


def _decompressed(file: Path, limit: int) -> Iterator[bytes]:
    """What a file holds, by its suffix. Raises ValueError unless its streams are whole and nothing else is there."""
    suffix = file.suffix.lower()
    if suffix not in COMPRESSED:
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
