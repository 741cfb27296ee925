"""Texts of any length as documents of ids: the held-out part of a data set in conf/data, or files of the user's."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from conf.groups import options
from conf.settings import RequestError, near
from suite.request.compose import compose_one
from tasks.language.documents import read_fragments
from tasks.language.parts import open_parts
from tasks.language.pieces import batches
from tasks.language.settings import DataSettings
from tasks.language.text_files import COMPRESSED
from tasks.language.units import IdsUnit, local_units
from tasks.language.vocabulary import Vocabulary

SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
"""Formats by the ends of files' names; any other is read as text."""
OF_A_FOLDER = (".txt", *(f".txt{each}" for each in COMPRESSED))
KEPT_TEXTS = 16


@dataclass(frozen=True, eq=False)
class Text:
    """The documents of a text that are scored.

    documents: the ids of each [N], N >= 1, without BOS, in the order of the text. bos: the id in front of a document.
    short: how many documents were passed over since they have fewer ids than were asked for.
    digest: hexadecimal, of the documents and of what ids mean. split: "validation" for the held-out part of a data set, "test"
    for files.
    """

    name: str
    split: str
    documents: tuple[np.ndarray, ...]
    short: int
    bos: int
    digest: str


def text_name(source: str) -> str:
    """What a text is called: the data set itself, or the name of a file or folder without what it ends in."""
    if source in options("data"):
        return source
    name = Path(source).name
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return Path(name).stem or name


@functools.lru_cache(KEPT_TEXTS)
def read_text(source: str, own: DataSettings, *, field: str, least: int, most: int | None, tokens: int) -> Text:
    """The first documents with at least `least` ids that have `tokens` ids together, and one at least.

    source: a name of conf/data, or a file or a folder, whose files in .txt are a document each where no line separates some.
    own: the data of the run, whose tokenizer reads the text. field: of the rows of tables. most: ids of a document that are
    kept, None for all. It is kept for the next stage of the same documents.
    Raises ValueError, naming the source, for what can't be read and for a text that has no such document.
    """
    chosen: list[np.ndarray] = []
    short = longest = total = 0
    try:
        vocabulary = Vocabulary.of(own)
        for ids in _documents(source, own, vocabulary, field, most):
            if len(ids) < least:
                short, longest = short + 1, max(longest, len(ids))
                continue
            if chosen and total + len(ids) > tokens:
                break
            chosen.append(ids)
            total += len(ids)
    except (OSError, ValueError) as error:
        said = str(error).removeprefix("data.path: ").removeprefix(f"{source!r} ")
        raise RequestError(f"eval.texts={source}: {said}") from error
    if not chosen:
        has = f"the longest of {short} has {longest:,}" if short else "it has none"
        raise RequestError(f"eval.texts={source}: no document has the {least:,} tokens of eval.contexts; {has}")
    split = "validation" if source in options("data") else "test"
    return Text(text_name(source), split, tuple(chosen), short, vocabulary.bos, _digest(chosen, vocabulary))


def _digest(documents: Iterable[np.ndarray], vocabulary: Vocabulary) -> str:
    digest = hashlib.sha256(vocabulary.fingerprint.encode())
    for ids in documents:
        digest.update(len(ids).to_bytes(8, "little") + ids.astype("<i4").tobytes())
    return digest.hexdigest()[:16]


def _documents(source: str, own: DataSettings, vocabulary: Vocabulary, field: str, most: int | None) -> Iterator[np.ndarray]:
    """The ids of every document, of each the first `most`."""
    if vocabulary.tokenizer is None and source != own.name:
        raise ValueError(f"needs the tokenizer of the ids of data={own.name}: give data.tokenizer=FILE")
    if source in options("data"):
        return _held_out(_data_of(source, own), vocabulary, most)
    return _of_files(_files_of(source, own, field), vocabulary, most)


def _data_of(name: str, own: DataSettings) -> DataSettings:
    """The settings of a data set, read by the tokenizer of the run."""
    if name == own.name:
        return own
    try:
        read = compose_one([f"data={name}"]).data
    except RequestError as error:
        raise ValueError(f"it is a way to read files: name the files themselves, e.g. eval.texts=FILE ({error})") from error
    return read.replace({key: getattr(own, key) for key in ("tokenizer", "bos", "cache")})


def _held_out(data: DataSettings, vocabulary: Vocabulary, most: int | None) -> Iterator[np.ndarray]:
    stream = open_parts(data, vocabulary, seq_len=1)["validation"]
    begin = 0
    for block in range(stream.num_blocks + 1):
        # Behind the last document stands no BOS.
        ends = stream.boundaries(block) if block < stream.num_blocks else np.array([stream.count])
        for end in map(int, ends):
            length = end - begin if most is None else min(end - begin, most)
            if length > 0:
                yield stream.ids(np.array([begin]), length)[0].astype(np.int32)
            begin = end + 1


def _files_of(source: str, own: DataSettings, field: str) -> DataSettings:
    """What the files of a source are, as the settings of a data set."""
    path = Path(os.path.expanduser(source))
    files = [str(path)]
    if path.is_dir():
        files = sorted(str(each) for each in path.iterdir() if each.name.lower().endswith(OF_A_FOLDER))
        if not files:
            raise ValueError(f"the folder has no files in {', '.join(OF_A_FOLDER)}")
    elif not path.exists():
        raise ValueError(f"there is no such file, and no such data{near(source, options('data'))}")
    suffix = ([""] + [each for each in map(str.lower, path.suffixes) if each not in COMPRESSED])[-1]
    kind = "text" if path.is_dir() else SUFFIXES.get(suffix, "text")
    plain = dict.fromkeys(own.plain()) | {"name": "text", "format": kind, "path": files}
    plain |= {"rows": "documents", "held_out": "each"}
    plain |= {key: getattr(own, key) for key in ("validation_fraction", "tokenizer", "bos", "cache")}
    return DataSettings.read(plain | {"text_field": None if kind == "text" else field}, "data")


def _of_files(data: DataSettings, vocabulary: Vocabulary, most: int | None) -> Iterator[np.ndarray]:
    """Documents as the language task tokenises them, piece by piece, so that no text is held whole."""
    tokenizer = vocabulary.tokenizer
    assert tokenizer is not None
    for unit in local_units(data):
        parts: list[np.ndarray] = []
        assert not isinstance(unit, IdsUnit)
        fragments = read_fragments(unit, data.rows)
        for pieces in batches(fragments, "validation", data.validation_fraction):
            for piece, (ids, _) in zip(pieces, tokenizer.encode_many([each.text for each in pieces]), strict=True):
                if piece.begins and parts:
                    yield np.concatenate(parts)[:most]
                    parts = []
                if most is None or sum(map(len, parts)) < most:
                    parts.append(ids.astype(np.int32))
        if parts and any(map(len, parts)):
            yield np.concatenate(parts)[:most]
