"""The training state of several ranks: each writes its own part while training goes on, and any number of ranks reads it.

Tensors are copied to the host, and a thread of every rank writes the rank's file into checkpoint/step-N.<token>.tmp, forced to
disk. The first rank then writes the manifest and gives the folder its name, so a checkpoint is there whole or not at all. The
next save waits for the one before. A save that fails (a full disk) is told at that next look, and the checkpoints before it stay.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from suite.compute.parallel import World
from suite.store.beside import Beside, Copies, Outcome
from suite.store.checkpoint import Progress, described, progress_of
from suite.store.foreign import check_no_link, reason_of
from suite.store.keeping import Keeping, Shared, prune, remove, remove_leftovers, step_of, stored
from suite.store.lock import Superseded
from suite.store.run_directory import Damaged, RunDirectory
from suite.store.shards import MANIFEST, Layout, Manifest, Part, check_file, fill, local_part, manifest_of, write_rank_file
from tasks.files import sync_folder, write_atomically

BEST = "best."
"""What the names of the best validation's weights begin with."""


@dataclass(frozen=True)
class Snapshot:
    """What a rank is to write. kinds: type and whole shape of every tensor of the training, by name.

    here: copies of this rank's parts. places: where each of them begins in its tensor, and its sizes.
    """

    progress: Progress
    kinds: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    here: Mapping[str, Tensor]
    places: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]


@dataclass(frozen=True)
class Told:
    """What a rank has written: a file of `size` bytes, and the `places` of its parts. error: why it could not."""

    file: str
    size: int
    sha256: str
    places: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    error: str


class Gone(Exception):
    """Another rank has ended, so that nothing can be settled with it."""


class Sharded:
    """Saves and restores the training state of a run on all its ranks. Every rank calls every method, in the same order.

    A tensor of the model or the optimiser is a DTensor, which lies on the ranks in parts, or is whole on each of them.
    on_note: is told, on the first rank, of a save that failed and of a checkpoint that is not whole. The threads
    of several ranks talk in `world.writers`.
    """

    def __init__(self, directory: RunDirectory, world: World, keeping: Keeping, on_note: Callable[[str], None]) -> None:
        self.directory, self.world, self.keeping, self.on_note = directory, world, keeping, on_note
        self._group = world.writers if world.size > 1 else None
        # A worker that has lost the run may write on for a while: its folder has another name.
        self._token = self._all(uuid.uuid4().hex)[0]
        self._copies, self._beside = Copies(), Beside()

    def save(self, tensors: Mapping[str, Tensor], progress: Progress, *, blocking: bool) -> None:
        """Copies all tensors and writes them beside the training, or, blocking, before it returns. Raises Superseded.

        Waits for the save before it.
        """
        self.look()
        own = {name: local_part(tensor) for name, tensor in self._own(tensors).items()}
        here = self._copies.of({name: local for name, (local, _, _) in own.items()})
        kinds = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        places = {name: (begins, tuple(local.shape)) for name, (local, begins, _) in own.items()}
        self._beside.begin(functools.partial(self._write, Snapshot(progress, kinds, here, places)))
        if blocking:
            self.look()

    def look(self) -> None:
        """Waits for the save that is under way, and tells how it ended. Raises Superseded."""
        left_out = self._beside.ended()
        if left_out and self.world.is_first:
            self.on_note(f"a checkpoint is left out: {left_out}")

    def load(self, tensors: Mapping[str, Tensor], *, way: Shared | None = None) -> Progress:
        """Fills the tensors, in place, from the newest checkpoint that is whole; without one the Progress is that of no step.

        Whatever number of ranks wrote it; one process's is one, too. Its tensors have to be these in name, type and shape, but
        those of the best validation are left as they are where it has none. way: the checkpoints of
        another run that count in the place of this one's. Raises Damaged where a checkpoint changes while it is
        read.
        """
        directory = self.directory if way is None else way.directory
        if self.world.is_first and way is None:
            remove_leftovers(directory)
        there = [path for path in stored(directory) if way is None or step_of(path) in way.steps]
        for name in self._all([str(path.relative_to(directory.path)) for path in there])[0]:
            manifest, fault = self._checked(directory, directory.path / name, tensors)
            faults = [each for each in self._all(fault) if each]
            if faults or manifest is None:
                if self.world.is_first:
                    self.on_note(f"{faults[0]}; going on from what was before it")
                continue
            fill(manifest, {key: tensor for key, tensor in tensors.items() if key in manifest.tensors})
            return progress_of(manifest)
        return Progress()

    def _checked(self, directory: RunDirectory, path: Path, tensors: Mapping[str, Tensor]) -> tuple[Manifest | None, str]:
        """A checkpoint's manifest, and what is wrong with the checkpoint: each rank reads its share of the files."""
        try:
            manifest = described(directory, path)
            progress_of(manifest)
            _check_names(manifest, tensors)
            for name in sorted(manifest.files)[self.world.rank :: self.world.size]:
                check_file(manifest, name)
        except Damaged as error:
            return None, str(error)
        return manifest, ""

    def _own(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of which this rank writes a part; those that are whole on every rank are dealt out by size."""
        own, load = {}, [0] * self.world.size
        for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].nbytes, item[0])):
            local, _, is_first = local_part(tensor)
            if hasattr(tensor, "__create_chunk_list__"):
                if is_first and local.numel():
                    own[name] = tensor
                continue
            writer = load.index(min(load))
            load[writer] += max(1, tensor.nbytes)
            if writer == self.world.rank:
                own[name] = tensor
        return own

    def _write(self, snapshot: Snapshot) -> Outcome:
        """What the thread does: writes this rank's file, and has the first rank finish the whole."""
        place = self.keeping.place(self.directory, snapshot.progress.step)
        folder, file = place.with_name(f"{place.name}.{self._token}.tmp"), f"rank-{self.world.rank:05d}.safetensors"
        try:
            check_no_link(folder, self.directory.root)
            told = Told(file, *write_rank_file(folder / file, snapshot.here), snapshot.places, "")
        except OSError as error:
            told = Told(file, 0, "", {}, f"{reason_of(error)} (rank {self.world.rank})")
        try:
            everything = self._all(told)
            outcome = self._finished(folder, place, everything, snapshot) if self.world.is_first else ""
            return self._all(outcome)[0]
        except Gone as error:
            return str(error)

    def _finished(self, folder: Path, place: Path, everything: Iterable[Told], snapshot: Snapshot) -> Outcome:
        """On the first rank: gives the folder its manifest and its name. Returns why that was not to be, "" where it was."""
        errors = [told.error for told in everything if told.error]
        try:
            if not errors:
                self.directory.lock.check()
                files = {told.file: (told.size, told.sha256) for told in everything}
                layouts, progress = _layouts(everything, snapshot), dataclasses.asdict(snapshot.progress)
                content = manifest_of(self.directory.run_id, self.world.size, progress, layouts, files)
                write_atomically(folder / MANIFEST, content)
                if os.path.lexists(place):
                    remove(place, self.directory.root)
                os.rename(folder, place)
                sync_folder(place.parent)
                prune(self.directory, snapshot.progress.step, self.keeping)
        except OSError as error:
            errors = [reason_of(error)]
        except Superseded as error:
            return error
        if errors:
            shutil.rmtree(folder, ignore_errors=True)
        return errors[0] if errors else ""

    def _all(self, value: Any) -> list[Any]:
        """The values of all ranks. The ranks of one run, between which they are sent, trust each other."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self.world.size
        try:
            dist.all_gather_object(values, value, group=self._group)
        except RuntimeError as error:
            raise Gone("another rank does not answer") from error
        return values


def _layouts(everything: Iterable[Told], snapshot: Snapshot) -> dict[str, Layout]:
    layouts = {}
    for name, (dtype, shape) in snapshot.kinds.items():
        parts = tuple(Part(told.file, *told.places[name]) for told in everything if name in told.places)
        assert sum(math.prod(part.sizes) for part in parts) == math.prod(shape), f"{name} is not written whole"
        layouts[name] = Layout(dtype, shape, parts)
    return layouts


def _check_names(manifest: Manifest, tensors: Mapping[str, Tensor]) -> None:
    """Raises Damaged where a checkpoint's tensors are not those that are to be filled."""
    stands = {name: (each.dtype, each.shape) for name, each in manifest.tensors.items()}
    wanted = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    if not any(name.startswith(BEST) for name in stands):
        wanted = {name: kind for name, kind in wanted.items() if not name.startswith(BEST)}
    differ = sorted(name for name in stands.keys() | wanted.keys() if stands.get(name) != wanted.get(name))
    if differ:
        raise Damaged(f"{manifest.title} is not of this model ({differ[0]} is another, or missing)")
