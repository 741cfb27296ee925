"""A large text cut into units: what one process tokenises at a time, decided by the text and not by the number of processes.

A unit owns the documents that begin in it. So nothing is lost or read twice at its ends, and the shards of the units, one after
another, are the documents in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from tasks.files import open_regular
from tasks.language.settings import DataSettings
from tasks.language.tables import row_groups
from tasks.language.text_files import COMPRESSED, matching_files, named

LEAST_BYTES = 2**24  # of a unit: some seconds of work are lost with a process that is killed
MOST_UNITS = 2**10  # of a text, if its units have more than LEAST_BYTES: bounds the number of files

Part = Literal["train", "validation"]


class Unit(msgspec.Struct, frozen=True, tag_field="kind", tag="unit", kw_only=True):
    """part: the part to which all of its documents belong; None where each is asked. size: bytes, for telling progress."""

    part: Part | None
    size: int


class TextUnit(Unit, frozen=True, tag="text", kw_only=True):
    """Bytes begin to end of a text file, or all of a compressed one."""

    file: str
    begin: int
    end: int


class LinesUnit(Unit, frozen=True, tag="jsonl", kw_only=True):
    """Bytes begin to end of a file of JSON lines, or all of a compressed one."""

    file: str
    begin: int
    end: int
    field: str


class TableUnit(Unit, frozen=True, tag="parquet", kw_only=True):
    """Row groups first to last - 1 of a parquet file."""

    file: str
    first: int
    last: int
    field: str


class HubUnit(Unit, frozen=True, tag="huggingface", kw_only=True):
    """Shard number `shard` of `shards` of a split of a data set of the Hugging Face hub."""

    repository: str
    subset: str | None
    revision: str | None
    split: str
    shard: int
    shards: int
    field: str


class IdsUnit(Unit, frozen=True, tag="ids", kw_only=True):
    """Ids first to last - 1 of a file of ids that begin at byte `offset`."""

    file: str
    offset: int
    dtype: str
    first: int
    last: int


AnyUnit = TextUnit | LinesUnit | TableUnit | HubUnit | IdsUnit


def local_units(data: DataSettings) -> list[AnyUnit]:
    """The units of the text in local files. Raises ValueError, naming the file that can't be read or is of another format."""
    assert data.path is not None
    if data.validation_path is None:
        return _units(data.path, data, None)
    return [*_units(data.path, data, "train"), *_units(data.validation_path, data, "validation")]


def _units(paths: Sequence[str], data: DataSettings, part: Part | None) -> list[AnyUnit]:
    sizes = {}
    for file in matching_files(paths):
        with named(file), open(open_regular(file, follow=True), "rb") as opened:
            if not (size := opened.seek(0, 2)):
                raise ValueError("is empty")
            sizes[file] = size
    least = unit_bytes(sum(sizes.values()))
    units: list[AnyUnit] = []
    for file, size in sizes.items():
        with named(file):
            units += _of_file(file, size, least, data, part)
    return units


def unit_bytes(total: int) -> int:
    """How many bytes a unit of a text of `total` bytes has: a power of two."""
    least = LEAST_BYTES
    while least * MOST_UNITS < total:
        least *= 2
    return least


def _of_file(file: Path, size: int, least: int, data: DataSettings, part: Part | None) -> Iterator[AnyUnit]:
    kind, path = format_of(file, data), str(file)
    # A stream can't be entered in its middle, and a document of lines may begin in the unit before.
    whole = file.suffix.lower() in COMPRESSED or (data.rows == "lines" and kind != "text")
    if kind == "parquet":
        assert data.text_field is not None
        for first, last, group_bytes in row_groups(path, data.text_field, size if whole else least):
            yield TableUnit(part=part, size=group_bytes, file=path, first=first, last=last, field=data.text_field)
        return
    for begin in range(0, size, size if whole else least):
        end = min(size, begin + (size if whole else least))
        if kind == "text":
            yield TextUnit(part=part, size=end - begin, file=path, begin=begin, end=end)
        else:
            assert data.text_field is not None
            yield LinesUnit(part=part, size=end - begin, file=path, begin=begin, end=end, field=data.text_field)


def format_of(file: Path, data: DataSettings) -> str:
    """The format of a local file; files of a data set of the hub tell theirs by their suffix. Raises ValueError."""
    if data.format != "huggingface":
        return data.format
    suffix = ([""] + [each for each in map(str.lower, file.suffixes) if each not in COMPRESSED])[-1]
    if suffix not in (known := {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}):
        raise ValueError(f"ends in {suffix!r}; permitted with data={data.name} are {', '.join(known)}, also with .gz, .xz, .zst")
    return known[suffix]
