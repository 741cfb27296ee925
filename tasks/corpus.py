"""Text as lists of documents: the documentation of the installed Python, or any files of the user's."""

from __future__ import annotations

import ast
import contextlib
import functools
import glob
import hashlib
import lzma
import os
import re
import sysconfig
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.files import open_regular

SEPARATOR = re.compile(r"^<\|endoftext\|>(?:\r?\n|\Z)", re.MULTILINE)
# What may be meant as a separator, once white space and marks that are not seen are off its line.
MARKER = re.compile(r"<\|(?i:end_?of_?text)\|>")
UNSEEN = " \t\xa0\u200b\u2060\ufeff"
# Files whose documents stand in fields, by suffix or by their beginning.
TABLES = {".json": "JSON", ".jsonl": "JSON lines", ".ndjson": "JSON lines", ".csv": "a table", ".tsv": "a table"}
JSON = re.compile(r'\s*(?:\[\s*)?\{\s*"[^"\n]*"\s*:')
COMPRESSED = (".gz", ".xz", ".zst")
# A text is held several times over while it is decoded and split, so it may have this part of the machine's memory.
MEMORY_PARTS = 8
READ_BYTES = 2**20
COMPRESSED_BYTES = 2**9  # so few at once, since they may become 16 MiB
STDLIB_VALIDATION_FRACTION = 0.1  # what conf/data/stdlib.yaml holds out
STDLIB_EXCLUDED = {"test", "tests", "idle_test", "encodings", "site-packages", "dist-packages", "__pycache__"}
MIN_DOCUMENT_CHARACTERS = 200


@dataclass(frozen=True)
class Corpus:
    """digest: hexadecimal, changes whenever the documents may have changed; far cheaper than `read`."""

    digest: str
    read: Callable[[], list[str]]


def open_corpus(name: str, path: str | Sequence[str] | None) -> Corpus:
    """The corpus of a `data` configuration; its text isn't read yet.

    name: "stdlib" for the documentation of the installed Python (path is then None), any other name for files.
    Raises ValueError when the two contradict each other and when no file matches.
    """
    if name == "stdlib":
        if path is not None:
            raise ValueError(f"data.path={path!r} has no meaning with data=stdlib; files are read with data=text")
        modules = [(str(module), module.stat().st_size, module.stat().st_mtime_ns) for module in stdlib_modules()]
        return Corpus(hashlib.sha256(repr(modules).encode()).hexdigest(), stdlib_documents)
    # The suffix decides how the bytes are read; nothing else of the name matters.
    source = repr([(_digest(file), file.suffix) for file in matching_files(path)])
    return Corpus(hashlib.sha256(source.encode()).hexdigest(), lambda: text_documents(path))


def stdlib_modules() -> Iterator[Path]:
    """The standard library's source files but tests and tables, in sorted order."""
    for folder, folders, files in os.walk(sysconfig.get_path("stdlib")):
        folders[:] = sorted(set(folders) - STDLIB_EXCLUDED)
        yield from (Path(folder, file) for file in sorted(files) if file.endswith(".py"))


def stdlib_documents() -> list[str]:
    """The prose of the standard library, read from its sources and never imported.

    One document a module, its documentation strings in order, and one a topic of the language reference that `help()`
    shows. A string that an earlier module had is dropped, so that none is both trained on and held out.
    Raises ValueError when this Python comes without its sources.
    """
    return list(_stdlib_documents())


@functools.cache
def _stdlib_documents() -> tuple[str, ...]:
    documents, seen = [], set()
    for module in stdlib_modules():
        try:
            tree = ast.parse(module.read_bytes())
        except (SyntaxError, ValueError):
            # Distributions ship templates and data that end in .py and are not Python.
            continue
        topics = module.parts[-2:] == ("pydoc_data", "topics.py")
        texts = _topics(tree) if topics else _docstrings(tree)
        new = [text for text in dict.fromkeys(texts) if text not in seen]
        seen.update(new)
        documents += new if topics else ["\n\n".join(new)]
    documents = [document + "\n" for document in documents if len(document) >= MIN_DOCUMENT_CHARACTERS]
    if not documents:
        raise ValueError(f"data=stdlib finds no sources in {sysconfig.get_path('stdlib')!r}; use data=text data.path=FILES")
    return tuple(documents)


def _docstrings(node: ast.AST) -> Iterator[str]:
    """The documentation strings of a module and of what it defines, in order; looks into statements only."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node)
        if docstring:
            yield docstring
    for block in ("body", "handlers", "orelse", "finalbody"):
        children = getattr(node, block, [])
        # A lambda's or a conditional expression's body is one expression.
        for child in children if isinstance(children, list) else []:
            yield from _docstrings(child)


def _topics(tree: ast.Module) -> Iterator[str]:
    """The string values of the dictionaries in a module: how pydoc keeps the language reference."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            yield from (value.value for value in node.values if isinstance(value, ast.Constant) and isinstance(value.value, str))


def heldout_stdlib_documents() -> list[str]:
    """The documents that the language task holds out with data=stdlib: what a model trained there has never seen."""
    return split_documents(stdlib_documents(), STDLIB_VALIDATION_FRACTION)["validation"]


def matching_files(path: str | Sequence[str] | None) -> list[Path]:
    """Files named by a path, a glob (** included), or several of them as a list or separated by commas, each once.

    Raises ValueError, naming the part of data.path that matches nothing or is a folder.
    """
    if path in (None, "", []):
        raise ValueError("data.path is not set; name text files, e.g. data.path='books/*.txt.xz'")
    if not isinstance(path, list | tuple):
        path = [path] if os.path.exists(os.path.expanduser(str(path))) else str(path).split(",")
    files: list[str] = []
    for pattern in (os.path.expanduser(str(part)) for part in path):
        pattern = pattern if os.path.exists(pattern) else os.path.expanduser(pattern.strip())
        matches = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        if os.path.isdir(pattern):
            raise ValueError(f"data.path={pattern!r} is a folder; name its files, e.g. data.path='{pattern.rstrip('/')}/*.txt'")
        matches = [match for match in matches if not os.path.isdir(match)]
        if not matches:
            raise ValueError(f"data.path={pattern!r} matches no file; where files have moved, data.path tells the new place")
        files += matches
    return [Path(file) for file in dict.fromkeys(files)]


def text_documents(path: str | Sequence[str]) -> list[str]:
    """The documents of text files, in order; a line that holds exactly <|endoftext|> ends a document.

    path: see `matching_files`. Files are regular, UTF-8, compressed when they end in .gz, .xz or .zst, and hold at most
    `most_bytes` of text together.
    Raises ValueError, naming the file, when one can't be read, is empty, isn't text or seems to mark documents otherwise.
    """
    documents, left = [], most_bytes()
    for file in matching_files(path):
        with _named(file):
            data = _whole(file, left)
            left -= len(data)
            documents += _file_documents(file, data)
    return documents


def most_bytes() -> int:
    """The most bytes of text that are read on this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MEMORY_PARTS


@contextlib.contextmanager
def _named(file: Path) -> Iterator[None]:
    """What the block raises begins with the file's name."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else error
        raise ValueError(f"data.path: {str(file)!r} {reason}") from error


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with _named(file):
        for piece in _pieces(file, most_bytes(), READ_BYTES):
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
    if "\r" in text and "\n" not in text:
        raise ValueError(r"has line ends of CR alone: change them to LF, e.g. tr '\r' '\n'")
    separators = len(SEPARATOR.findall(text))
    # These lines may end in other ways, too, as in what Python takes for one.
    marked = [line for line in text.splitlines() if "<|" in line and MARKER.search(line)]
    alone = [line for line in marked if MARKER.fullmatch(line.strip(UNSEEN))]
    rule = "a separator is a line that holds exactly <|endoftext|> and ends in LF"
    if len(alone) > separators:
        odd = next((line for line in alone if line != "<|endoftext|>"), alone[0])
        raise ValueError(f"has {len(alone)} lines such as {odd!r}, of which {separators} separate documents: {rule}")
    if marked and not separators:
        raise ValueError(f"has <|endoftext|> within lines alone: {rule}; if it is meant as text, end the file with such a line")
    suffix = ([""] + [suffix for suffix in map(str.lower, file.suffixes) if suffix not in COMPRESSED])[-1]
    if not separators and (suffix in TABLES or JSON.match(text)):
        raise ValueError(f"looks like {TABLES.get(suffix, 'JSON')}, not text: write the text of its documents; {rule}")
    return documents


def _whole(file: Path, limit: int) -> bytearray:
    """What a file holds when it isn't compressed any more. Raises ValueError for more than limit bytes, and binary ones."""
    data = bytearray()
    for piece in _decompressed(file, limit):
        data += piece
        if len(data) > limit:
            raise ValueError(f"holds more than the {limit:,} bytes of text that this machine's memory is for")
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
            raise ValueError(f"has {left:,} bytes, more than the {limit:,} of text that this machine's memory is for")
        # No more than it said, should it grow meanwhile.
        while piece := opened.read(min(size, left)):
            left -= len(piece)
            yield piece


def _codec(suffix: str) -> tuple[Callable[[], Any], type[Exception]]:
    """What opens one stream of a compressed file, and what it raises."""
    if suffix != ".zst":
        gz = functools.partial(zlib.decompressobj, wbits=31)
        return (gz, zlib.error) if suffix == ".gz" else (lzma.LZMADecompressor, lzma.LZMAError)
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


def split_documents(documents: Sequence[str], validation_fraction: float) -> dict[str, list[str]]:
    """Splits documents into "train" and "validation", each in the given order.

    Held out are the documents whose SHA-256 digests are smallest, whatever their order, up to validation_fraction of
    all characters. The document that crosses this limit is cut at white space and its tail is held out; so a single
    document gives both parts, and a larger fraction holds out all that a smaller one does.
    Raises ValueError unless 0 < validation_fraction < 1.
    """
    if not 0 < validation_fraction < 1:
        raise ValueError(f"data.validation_fraction={validation_fraction} must be above 0 and below 1")
    budget = round(validation_fraction * sum(map(len, documents)))
    # Copies of a document share its fate, or one would be trained on and the other held out.
    copies, heads = Counter(documents), {document: document for document in documents}
    for document in sorted(copies, key=lambda document: hashlib.sha256(document.encode()).digest()):
        if budget <= 0:
            break
        share = -(-budget // copies[document])
        heads[document] = "" if len(document) <= share else document[: _cut(document, len(document) - share)]
        budget -= copies[document] * len(document)
    tails = [document[len(heads[document]) :] for document in documents]
    return {"train": [heads[d] for d in documents if heads[d]], "validation": [tail for tail in tails if tail]}


def _cut(document: str, end: int) -> int:
    """The place behind the last white space of document[:end]; end itself where there is none."""
    return max(document.rfind("\n", 0, end), document.rfind(" ", 0, end)) + 1 or end
