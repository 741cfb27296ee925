"""Files of ids that others have made: .bin of modded-nanogpt, and .npy of OLMo with or without the header of NumPy."""

from __future__ import annotations

import hashlib
import os
import tokenize
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from tasks.files import open_regular
from tasks.language.remembered import FileIdentity
from tasks.language.settings import DataSettings
from tasks.language.shards import FileWriter, Job, Report, Shard, Stored, id_type
from tasks.language.text_files import matching_files, named
from tasks.language.units import IdsUnit, Part

# 256 int32 stand in front of a .bin: this number, a version, and how many ids follow, as uint16.
BIN_HEADER, BIN_MAGIC, BIN_VERSION = 256, 20240520, 1
NPY_MAGIC = b"\x93NUMPY"
READ_IDS = 2**20
UNIT_IDS = 2**26


def ids_units(data: DataSettings) -> list[IdsUnit]:
    """The units of files of ids. Without data.validation_path the end is held out, from the first BOS in its share on.

    Raises ValueError, naming the file, for what is no such file.
    """
    assert data.path is not None
    if data.validation_path is None:
        return _split(_opened(data.path, data), data)
    train, held_out = (_opened(paths, data) for paths in (data.path, data.validation_path))
    return [*_parts(train, "train"), *_parts(held_out, "validation")]


def _parts(files: Sequence[IdsUnit], part: Part) -> Iterator[IdsUnit]:
    for file in files:
        for first in range(file.first, file.last, UNIT_IDS):
            last = min(first + UNIT_IDS, file.last)
            size = (last - first) * np.dtype(file.dtype).itemsize
            yield msgspec.structs.replace(file, part=part, first=first, last=last, size=size)


def _split(files: Sequence[IdsUnit], data: DataSettings) -> list[IdsUnit]:
    total = sum(file.last for file in files)
    cut, before = total - round(data.validation_fraction * total), 0
    units: list[IdsUnit] = []
    is_cut = False
    for file in files:
        if not is_cut and before + file.last > cut:
            place = _next_bos(file, max(0, cut - before), data.bos)
            if is_cut := place is not None:
                train, held_out = (msgspec.structs.replace(file, last=place), msgspec.structs.replace(file, first=place))
                units += [*_parts([train], "train"), *_parts([held_out], "validation")]
                continue
        before += file.last
        units += _parts([file], "validation" if is_cut else "train")
    return units


def _next_bos(file: IdsUnit, first: int, bos: int | None) -> int | None:
    """The place of the first BOS from `first` on, None where there is none."""
    with _reading(file) as opened:
        for place, ids in _chunks(opened, file, first):
            if len(found := np.flatnonzero(ids == bos)):
                return place + int(found[0])
    return None


def _opened(paths: Sequence[str], data: DataSettings) -> list[IdsUnit]:
    files = []
    for file in matching_files(paths):
        with named(file), open(open_regular(file, follow=True), "rb") as opened:
            offset, dtype, count = (_bin if data.format == "bin" else _npy)(opened, data)
            if not count:
                raise ValueError("is empty")
        path = os.path.abspath(file)
        files.append(IdsUnit(part=None, size=0, file=path, offset=offset, dtype=dtype.str, first=0, last=count))
    return files


def _bin(file: BinaryIO, data: DataSettings) -> tuple[int, np.dtype, int]:
    size, front = os.fstat(file.fileno()).st_size, file.read(4 * BIN_HEADER)
    header = np.frombuffer(front.ljust(4 * BIN_HEADER, b"\0"), "<i4")
    if header[0] != BIN_MAGIC or header[1] != BIN_VERSION:
        wanted_header = f"256 int32 in front, {BIN_MAGIC}, {BIN_VERSION} and the number of its uint16 ids"
        raise ValueError(f"is no .bin file of ids: such a file has {wanted_header}")
    count, dtype = int(header[2]), np.dtype("<u2")
    if size != (wanted := 4 * BIN_HEADER + count * dtype.itemsize):
        raise ValueError(f"has {size:,} bytes, and {wanted:,} with the {count:,} ids that its header says: it is not whole")
    return 4 * BIN_HEADER, dtype, count


def _npy(file: BinaryIO, data: DataSettings) -> tuple[int, np.dtype, int]:
    size = os.fstat(file.fileno()).st_size
    begins, wanted = file.read(len(NPY_MAGIC)) == NPY_MAGIC, data.dtype and np.dtype(data.dtype)
    file.seek(0)
    if begins:
        shape, _, dtype = _header(file)
        if len(shape) != 1 or dtype.str not in ("<u2", "<u4") or (wanted and wanted != dtype):
            raise ValueError(f"holds {dtype} {shape}, permitted is one row of {data.dtype or 'uint16 or uint32'}")
        offset, count = file.tell(), int(shape[0])
    else:
        assert data.vocab_size is not None
        dtype, offset = np.dtype(wanted or id_type(data.vocab_size)).newbyteorder("<"), 0
        count, rest = divmod(size, dtype.itemsize)
        if rest:
            raise ValueError(f"has {size:,} bytes, which is no whole number of {dtype}")
        sample = np.frombuffer(file.read(2**14), "<u2")
        if not wanted and dtype.itemsize == 2 and len(sample) > 1 and sample.any() and not sample[1::2].any():
            raise ValueError("has a 0 behind every id: it seems to hold uint32, which data.dtype=uint32 reads")
    if size != offset + count * dtype.itemsize:
        raise ValueError(f"has {size:,} bytes, and its header says {count:,} ids: it is not whole")
    return offset, dtype, count


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"has a header of version {version}, permitted are (1, 0), (2, 0)")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        return read(file)
    except tokenize.TokenError as error:
        # What is not Python NumPy reads once more, as if it were of Python 2.
        raise ValueError(f"has no header of NumPy: {error.args[0]}") from error


def scanned(job: Job, unit: IdsUnit, progress: Callable[[int], None]) -> Report:
    """Finds the documents of a unit, in files that are read where they are. Raises ValueError for an id above the vocabulary."""
    assert job.bos is not None and unit.part is not None
    dtype, file = np.dtype(unit.dtype), Path(unit.file)
    digest, count, boundaries = hashlib.sha256(), 0, FileWriter(Path(job.folder), f"{job.number:06d}.{unit.part}.bos")
    first: int | None = None
    try:
        with named(file), _reading(unit) as opened:
            identity = FileIdentity.of(file)
            for place, ids in _chunks(opened, unit, unit.first):
                if (largest := int(ids.max())) >= job.vocab_size:
                    raise ValueError(
                        f"has the id {largest} near id {place:,}, permitted are ids below data.vocab_size={job.vocab_size}"
                    )
                digest.update(ids.tobytes())
                found = np.flatnonzero(ids == job.bos) + count
                if first is None and len(found):
                    first = int(found[0])
                boundaries.write(found.astype("<u8"))
                count += len(ids)
                progress(count * dtype.itemsize)
            if count != unit.last - unit.first or FileIdentity.of(file) != identity:
                raise ValueError("has changed while it was read")
    except BaseException:
        boundaries.discard()
        raise
    stored = Stored(name=unit.file, identity=identity, sha256=digest.hexdigest())
    offset = unit.offset + unit.first * dtype.itemsize
    shard = Shard(
        ids=stored,
        offset=offset,
        dtype=unit.dtype,
        count=count,
        first=first,
        boundaries=boundaries.close(),
        num_bytes=None,
    )
    return Report(unit=unit, source=identity, shards={unit.part: shard}, total={}, lost={})


def _reading(unit: IdsUnit) -> BinaryIO:
    return open(open_regular(unit.file, follow=True), "rb")


def _chunks(opened: BinaryIO, unit: IdsUnit, first: int) -> Iterator[tuple[int, np.ndarray]]:
    """The ids of a unit from `first` on, and the place of the first of them."""
    dtype = np.dtype(unit.dtype)
    opened.seek(unit.offset + first * dtype.itemsize)
    while first < unit.last:
        data = opened.read(min(READ_IDS, unit.last - first) * dtype.itemsize)
        if len(data) % dtype.itemsize or not data:
            return
        ids = np.frombuffer(data, dtype)
        yield first, ids
        first += len(ids)
