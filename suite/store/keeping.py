"""Which checkpoints of a run there are, and which of them stay.

checkpoint/step-<9 digits> is a folder that several ranks wrote, checkpoint/step-<9 digits>.safetensors a file that one process
wrote. Those in checkpoint/kept stay after the run's end. What ends in .tmp was never finished.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from suite.store.foreign import check_no_link
from suite.store.run_directory import RunDirectory

STEP = re.compile(r"step-(\d{9})(\.safetensors)?")
LEFT = re.compile(r"step-\d{9}\..*\.tmp")
FILE = ".safetensors"


@dataclass(frozen=True)
class Keeping:
    """last: how many checkpoints a training has at a time. every: those after a multiple of so many steps stay for good."""

    last: int
    every: int | None

    def is_kept(self, step: int) -> bool:
        """Whether the checkpoint after so many steps stays."""
        return self.every is not None and step % self.every == 0

    def place(self, directory: RunDirectory, step: int) -> Path:
        """Where the checkpoint after so many steps lies; one process adds .safetensors to the name."""
        folder = directory.kept if self.is_kept(step) else directory.checkpoints
        return folder / f"step-{step:09d}"


@dataclass(frozen=True)
class Shared:
    """The checkpoints of another run that are on a run's own way: after these steps, the newest first."""

    directory: RunDirectory
    steps: tuple[int, ...]


LAST_TWO = Keeping(last=2, every=None)


def step_of(path: Path) -> int:
    """After how many steps a checkpoint was written."""
    found = STEP.fullmatch(path.name)
    assert found is not None, path
    return int(found[1])


def stored(directory: RunDirectory) -> list[Path]:
    """The checkpoints of a run, newest first; whether they are whole is not looked at."""
    return sorted([*_in(directory.checkpoints), *kept(directory)], key=step_of, reverse=True)


def kept(directory: RunDirectory) -> list[Path]:
    """The checkpoints that stay, newest first; whether they are whole is not looked at."""
    return sorted(_in(directory.kept), key=step_of, reverse=True)


def _in(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return [Path(entry) for entry in os.scandir(folder) if STEP.fullmatch(entry.name)]
    return []


def prune(directory: RunDirectory, step: int, keeping: Keeping) -> None:
    """Removes what the checkpoint after `step` makes superfluous: the older ones, and any newer one, which was not whole.

    Raises OSError.
    """
    passing = sorted(_in(directory.checkpoints), key=step_of, reverse=True)
    older = [path for path in passing if step_of(path) <= step]
    for path in (*(path for path in passing if step_of(path) > step), *older[keeping.last :]):
        remove(path, directory.root)


def remove(path: Path, root: Path) -> None:
    """Removes a checkpoint; a folder loses its name first, so that no half of it counts as one. Raises OSError."""
    check_no_link(path.parent, root)
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    gone = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    path.rename(gone)
    shutil.rmtree(gone)


def remove_checkpoints(directory: RunDirectory) -> None:
    """Removes the training state that does not stay: nothing needs it once the run's training stage is written."""
    remove_leftovers(directory)
    for path in _in(directory.checkpoints):
        with contextlib.suppress(OSError):
            remove(path, directory.root)


def remove_leftovers(directory: RunDirectory) -> None:
    """Removes the folders of checkpoints that were never finished. Only for the worker that holds the run."""
    for folder in (directory.checkpoints, directory.kept):
        with contextlib.suppress(OSError):
            check_no_link(folder, directory.root)
            for entry in os.scandir(folder):
                if LEFT.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
