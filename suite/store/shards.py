"""A checkpoint of several ranks on disk: a folder that holds a safetensors file of every rank, and a manifest.

checkpoint/step-000000100/{manifest.json, rank-00000.safetensors, rank-00001.safetensors, ...}. A rank's file holds parts of
tensors under the tensors' names. The manifest says where each part belongs in its tensor, how many bytes a file has and their
SHA-256, whose checkpoint it is and how far training was, and carries a digest of itself. Any number of ranks can read it.

Files are read and not mapped: one that is cut while it is mapped would end the process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from suite.store.foreign import check_no_link, parse_json, read_json, reason_of, sealed
from suite.store.run_directory import READING, Damaged, RunDirectory
from tasks.files import open_regular, write_atomically

MANIFEST = "manifest.json"
RANK_FILE = re.compile(r"rank-\d{5}\.safetensors")
MOST_HEADER = 2**26
# How safetensors writes the types that a training state has.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Part:
    """A block of a tensor: `sizes` elements from `offsets` on, along every dimension, in the file of a rank."""

    file: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """A tensor as it was before it was dealt to ranks, and where its parts lie."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself. path: the checkpoint. folder: where its files lie.

    files: bytes and SHA-256 of the ranks' files, by name. progress: how far training was, as it was written.
    """

    directory: RunDirectory
    path: Path
    folder: Path
    files: Mapping[str, tuple[int, str]]
    tensors: Mapping[str, Layout]
    progress: Mapping[str, Any]

    @property
    def title(self) -> str:
        """What the checkpoint is called for people."""
        return title(self.directory, self.path)


def title(directory: RunDirectory, path: Path) -> str:
    """What a file or folder of a run is called for people."""
    return str(path.relative_to(directory.path))


def local_part(tensor: Tensor) -> tuple[Tensor, tuple[int, ...], bool]:
    """What of a tensor lies on this rank, where it begins in the whole, and whether this rank is the first to hold it.

    A DTensor says so itself, by the protocol of torch.distributed.checkpoint; any other tensor is whole on every rank.
    """
    if not hasattr(tensor, "__create_chunk_list__"):
        return tensor.detach(), (0,) * tensor.dim(), True
    # Typed as what it is not known to be: its class takes a while to import, and one process has none of it.
    dealt: Any = tensor
    (chunk,) = dealt.__create_chunk_list__()
    along = zip(dealt.placements, dealt.device_mesh.get_coordinate(), strict=True)
    is_first = all(coordinate == 0 for placement, coordinate in along if placement.is_replicate())
    return dealt.to_local().detach(), tuple(chunk.offsets), is_first


def serialized(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> list[bytes | memoryview]:
    """Tensors on the CPU as safetensors, in pieces to be written one after another; none of them is copied."""
    # As safetensors sorts them, so that every tensor begins at a multiple of its element's size.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header, end = dict[str, Any](__metadata__=metadata) if metadata else {}, 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    contents = [tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data for _, tensor in ordered]
    return [len(text).to_bytes(8, "little"), text, *contents]


def write_rank_file(path: Path, tensors: Mapping[str, Tensor]) -> tuple[int, str]:
    """Writes tensors on the CPU as safetensors; returns the file's bytes and their SHA-256. Raises OSError."""
    pieces, digest = serialized(tensors), hashlib.sha256()

    def counted() -> Iterator[bytes | memoryview]:
        for each in pieces:
            digest.update(each)
            yield each

    write_atomically(path, counted())
    return sum(map(len, pieces)), digest.hexdigest()


class TensorFile:
    """A safetensors file that is open. Raises OSError, and ValueError for what is no such file."""

    def __init__(self, path: Path, root: Path) -> None:
        check_no_link(path, root)
        self.descriptor = open_regular(path, follow=False)
        try:
            self.size = os.fstat(self.descriptor).st_size
            length = int.from_bytes(os.pread(self.descriptor, 8, 0), "little")
            if length > min(MOST_HEADER, self.size - 8):
                raise ValueError("its header is longer than the file, or than any of ours")
            self.begin = 8 + length
            self.header = parse_json(bytes(self._read(8, length)))
            self.metadata = self.header.pop("__metadata__", {})
        except BaseException:
            os.close(self.descriptor)
            raise

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self.descriptor)

    def tensor(self, name: str) -> Tensor:
        """A tensor of the file, on the CPU. Raises ValueError where the file does not hold what its header says."""
        if name not in self.header:
            raise ValueError(f"it has no tensor {name}")
        entry = self.header[name]
        dtype, shape = DTYPES[entry["dtype"]], _whole_numbers(entry["shape"])
        begin, end = _whole_numbers(entry["data_offsets"])
        if end - begin != math.prod(shape) * dtype.itemsize or self.begin + end > self.size:
            raise ValueError(f"{name} has more or fewer bytes than its shape")
        if begin == end:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self._read(self.begin + begin, end - begin), dtype=dtype).reshape(shape)

    def _read(self, offset: int, count: int) -> bytearray:
        data = bytearray(count)
        view = memoryview(data)
        while view:
            # A call reads 2 GiB at most.
            read = os.preadv(self.descriptor, [view], offset)
            if not read:
                raise ValueError("it ends too early")
            view, offset = view[read:], offset + read
        return data


def _whole_numbers(values: Sequence[Any]) -> tuple[int, ...]:
    if any(type(value) is not int or value < 0 for value in values):
        raise ValueError("a size of it is no whole number from 0")
    return tuple(values)


def manifest_of(
    run_id: str, world_size: int, progress: Mapping[str, Any], layouts: Mapping[str, Layout], files: Mapping[str, tuple[int, str]]
) -> bytes:
    """What manifest.json holds."""
    tensors = {
        name: {"dtype": NAMES[each.dtype], "shape": each.shape, "parts": [[p.file, p.offsets, p.sizes] for p in each.parts]}
        for name, each in layouts.items()
    }
    whole = {"run_id": run_id, "world_size": world_size, "progress": progress, "files": files, "tensors": tensors}
    # By way of text, so that the digest is over lists, as it is when they are read.
    return (json.dumps(sealed(json.loads(json.dumps(whole, allow_nan=False)))) + "\n").encode()


def read_manifest(directory: RunDirectory, folder: Path) -> Manifest:
    """What a folder of a run says of itself; its files are not looked at. Raises Damaged."""
    try:
        content = read_json(folder / MANIFEST, directory.root)
        if content["run_id"] != directory.run_id:
            raise ValueError(f"it belongs to run {content['run_id']!r}")
        files = {}
        for name, (size, sha256) in content["files"].items():
            if not RANK_FILE.fullmatch(name):
                raise ValueError(f"{name} is no name of a rank's file")
            files[name] = (_whole_numbers([size])[0], str(sha256))
        tensors = {name: _layout(name, entry, files) for name, entry in content["tensors"].items()}
        if sum(math.prod(each.shape) * each.dtype.itemsize for each in tensors.values()) > sum(n for n, _ in files.values()):
            raise ValueError("its tensors are larger than its files")
        return Manifest(directory, folder, folder, files, tensors, dict(content["progress"]))
    except READING as error:
        raise Damaged(f"{title(directory, folder / MANIFEST)} is not whole ({reason_of(error)})") from error


def _layout(name: str, entry: Mapping[str, Any], files: Mapping[str, Any]) -> Layout:
    shape = _whole_numbers(entry["shape"])
    parts = tuple(Part(file, _whole_numbers(offsets), _whole_numbers(sizes)) for file, offsets, sizes in entry["parts"])
    for part in parts:
        if part.file not in files:
            raise ValueError(f"{name} lies in no file of it")
        ends = [begin + size for begin, size in zip(part.offsets, part.sizes, strict=True)]
        if any(end > length for end, length in zip(ends, shape, strict=True)):
            raise ValueError(f"a part of {name} lies outside of it")
    if sum(math.prod(part.sizes) for part in parts) != math.prod(shape):
        raise ValueError(f"{name} has parts that are missing, or there twice")
    return Layout(DTYPES[entry["dtype"]], shape, parts)


def check_file(manifest: Manifest, name: str) -> None:
    """Raises Damaged where a rank's file is not there, or not what was written."""
    path, (size, sha256) = manifest.folder / name, manifest.files[name]
    try:
        check_no_link(path, manifest.directory.root)
        with os.fdopen(open_regular(path, follow=False), "rb") as file:
            found = os.fstat(file.fileno()).st_size
            if found != size:
                raise ValueError(f"it has {found:,} bytes, written were {size:,}")
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise ValueError("its content is not what was written")
    except READING as error:
        raise Damaged(f"{title(manifest.directory, path)} is not whole ({reason_of(error)})") from error


@torch.no_grad()
def fill(manifest: Manifest, tensors: Mapping[str, Tensor]) -> None:
    """Fills this rank's part of every tensor, in place, from whatever ranks wrote it. Raises Damaged."""
    opened: dict[str, TensorFile] = {}
    with contextlib.ExitStack() as closed:
        for name, tensor in tensors.items():
            here, begins, _ = local_part(tensor)
            for part in manifest.tensors[name].parts:
                first = [max(a, b) for a, b in zip(begins, part.offsets, strict=True)]
                ends = zip(begins, here.shape, part.offsets, part.sizes, strict=True)
                last = [min(a + n, b + m) for a, n, b, m in ends]
                if any(start >= end for start, end in zip(first, last, strict=True)):
                    continue
                path = manifest.folder / part.file
                try:
                    if part.file not in opened:
                        opened[part.file] = closed.enter_context(TensorFile(path, manifest.directory.root))
                    there = opened[part.file].tensor(name)
                    if tuple(there.shape) != part.sizes or there.dtype != here.dtype:
                        raise ValueError(f"{name} is not of the shape and type that the manifest says")
                except READING as error:
                    raise Damaged(f"{title(manifest.directory, path)} is not whole ({reason_of(error)})") from error
                here[_slices(first, last, begins)].copy_(there[_slices(first, last, part.offsets)])


def _slices(first: Sequence[int], last: Sequence[int], origin: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(a - o, b - o) for a, b, o in zip(first, last, origin, strict=True))
