"""Text as lists of documents: the documentation of the installed Python, or any files of the user's."""

from __future__ import annotations

import ast
import functools
import glob
import gzip
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

SEPARATOR = re.compile(r"^<\|endoftext\|>(?:\r?\n|\Z)", re.MULTILINE)
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
    files = matching_files(path)
    digests = [hashlib.sha256(_file_bytes(file)).hexdigest() for file in files]
    # The suffix decides how the bytes are read; nothing else of the name matters.
    source = repr([(digest, file.suffix) for digest, file in zip(digests, files, strict=True)])
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
    if not path:
        raise ValueError("data.path is not set; name text files, e.g. data.path='books/*.txt.xz'")
    patterns = [path] if isinstance(path, str) and os.path.exists(path) else path.split(",") if isinstance(path, str) else path
    files: list[str] = []
    for pattern in (os.path.expanduser(pattern.strip()) for pattern in patterns):
        matches = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        if os.path.isdir(pattern):
            raise ValueError(f"data.path={pattern!r} is a folder; name its files, e.g. data.path='{pattern.rstrip('/')}/*.txt'")
        matches = [match for match in matches if not os.path.isdir(match)]
        if not matches:
            raise ValueError(f"data.path={pattern!r} matches no file")
        files += matches
    return [Path(file) for file in dict.fromkeys(files)]


def text_documents(path: str | Sequence[str]) -> list[str]:
    """The documents of text files, in order; a line that holds exactly <|endoftext|> ends a document.

    path: see `matching_files`. Files are UTF-8, compressed when they end in .gz, .xz or .zst.
    Raises ValueError, naming the file, when one can't be read, is empty or isn't text.
    """
    return [document for file in matching_files(path) for document in _file_documents(file)]


def _file_documents(file: Path) -> list[str]:
    data = _decompressed(file)
    if b"\0" in data:
        raise ValueError(f"data.path: {str(file)!r} is binary, not text (a zero byte at offset {data.index(0)})")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"data.path: {str(file)!r} is not UTF-8 text (at byte {error.start})") from error
    documents = [document for document in SEPARATOR.split(text) if document.strip()]
    if not documents:
        raise ValueError(f"data.path: {str(file)!r} is empty")
    return documents


def _decompressed(file: Path) -> bytes:
    decompress = {".gz": gzip.decompress, ".xz": lzma.decompress, ".zst": _zstd_decompress}.get(file.suffix)
    data = _file_bytes(file)
    if decompress is None or not data:
        return data
    try:
        return decompress(data)
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"data.path: {str(file)!r} is not a whole {file.suffix} file: {error}") from error


def _zstd_decompress(data: bytes) -> bytes:
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise ValueError(".zst files need the package zstandard: pip install zstandard") from error
    try:
        with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
            return reader.read()
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


def _file_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"data.path: {str(file)!r} cannot be read: {error.strerror}") from error


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
