"""Text as lists of documents: the documentation of the installed Python, or any files of the user's."""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.language.text_files import files_digest, most_bytes, text_documents

STDLIB_VALIDATION_FRACTION = 0.1  # what conf/data/stdlib.yaml holds out
STDLIB_EXCLUDED = {"test", "tests", "idle_test", "encodings", "site-packages", "dist-packages", "__pycache__"}
MIN_DOCUMENT_CHARACTERS = 200


@dataclass(frozen=True)
class Corpus:
    """digest: hexadecimal, changes whenever the documents may have changed; far cheaper than `read`."""

    digest: str
    read: Callable[[], Sequence[str]]


def open_corpus(paths: Sequence[str] | None, cache: Path | None = None) -> Corpus:
    """The corpus in these files, or, for None, in the documentation of the installed Python; its text isn't read yet.

    cache: the folder with digests of files that are known, or None.
    Raises ValueError when no file matches.
    """
    if paths is None:
        modules = [(str(module), module.stat().st_size, module.stat().st_mtime_ns) for module in stdlib_modules()]
        return Corpus(hashlib.sha256(repr(modules).encode()).hexdigest(), stdlib_documents)
    digest = files_digest(paths, limit=most_bytes(), cache=cache)

    def read() -> list[str]:
        documents = text_documents(paths)
        if files_digest(paths, limit=most_bytes(), cache=cache) != digest:
            raise ValueError(f"data.path={','.join(paths)!r} has changed while it was read")
        return documents

    return Corpus(digest, read)


def stdlib_modules() -> Iterator[Path]:
    """The standard library's source files but tests and tables, in sorted order."""
    for folder, folders, files in os.walk(sysconfig.get_path("stdlib")):
        folders[:] = sorted(set(folders) - STDLIB_EXCLUDED)
        yield from (Path(folder, file) for file in sorted(files) if file.endswith(".py"))


@functools.cache
def stdlib_documents() -> tuple[str, ...]:
    """The prose of the standard library, read from its sources and never imported.

    One document a module, its documentation strings in order, and one a topic of the language reference that `help()`
    shows. A string that an earlier module had is dropped, so that none is both trained on and held out.
    Raises ValueError when this Python comes without its sources.
    """
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


def split_documents(documents: Sequence[str], validation_fraction: float) -> dict[str, list[str]]:
    """Splits documents into "train" and "validation", each in the given order.

    Held out are the documents whose SHA-256 digests are smallest, whatever their order, up to validation_fraction of
    all characters. The document that crosses this limit is cut at white space and its tail is held out; so a single
    document gives both parts, and a larger fraction holds out all that a smaller one does.
    """
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
