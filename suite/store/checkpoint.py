"""Training state on disk: tensors in safetensors, nothing pickled, the last ones kept.

A checkpoint of one process is one file that is renamed into place, so it is whole or absent. Its header carries the Progress,
the run that it belongs to and a digest of all that, which is checked when it is read: a disk may have changed it since. What
several ranks wrote (suite/store/sharded.py) is read here too.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from suite.canonical import canonical_json
from suite.store.foreign import check_no_link, parse_json, reason_of
from suite.store.keeping import FILE, LAST_TWO, Keeping, kept, prune, step_of, stored
from suite.store.run_directory import READING, Damaged, RunDirectory
from suite.store.shards import (
    DTYPES,
    MOST_HEADER,
    Layout,
    Manifest,
    Part,
    TensorFile,
    check_file,
    fill,
    read_manifest,
    serialized,
    title,
)
from tasks.files import read_regular

FINAL = "model.safetensors"
Held = TypeVar("Held")


@dataclass(frozen=True)
class Progress:
    """step: optimiser steps done. first_loss: of the first of them. losses: of the last of them.

    seconds: spent on the steps so far, over all attempts. work_seconds: of these, in forward, backward and optimiser.
    best_step, best_loss: of the validation with the lowest loss. ended: whether training ends before its last step.
    skipped: steps that were not finite and were left out, see train.nonfinite.
    """

    step: int = 0
    seconds: float = 0.0
    work_seconds: float = 0.0
    first_loss: float = 0.0
    losses: tuple[float, ...] = ()
    best_step: int = 0
    best_loss: float | None = None
    ended: bool = False
    skipped: int = 0

    @property
    def mean_loss(self) -> float:
        return sum(self.losses) / len(self.losses) if self.losses else math.nan


def training_state(model: nn.Module, optimizer: torch.optim.Optimizer, best: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """All tensors of a training by name: weights, the optimiser's state, and the weights of the best validation if kept."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in (best or {}).items()}
    names = parameter_names(model, optimizer)
    for parameter, state in optimizer.state.items():
        tensors |= {f"optimizer.{names[parameter]}.{key}": value for key, value in state.items()}
    return tensors


def save_checkpoint(
    directory: RunDirectory, tensors: Mapping[str, Tensor], progress: Progress, keeping: Keeping = LAST_TWO
) -> None:
    """Writes step-<n>.safetensors, and removes those that are not to be kept. Raises OSError and Superseded.

    tensors: what `training_state` gives.
    """
    path = keeping.place(directory, progress.step)
    _write(directory, path.with_name(path.name + FILE), tensors, progress)
    prune(directory, progress.step, keeping)


def load_checkpoint(
    directory: RunDirectory,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    on_note: Callable[[str], None],
    steps: Collection[int] | None = None,
) -> tuple[Progress, dict[str, Tensor] | None]:
    """Restores the newest checkpoint that is whole; returns its Progress, and the best weights where it has some.

    Without a checkpoint the Progress is that of no step. on_note: is told of every file that is not whole. steps: those whose
    checkpoints count; None for all.
    """
    for path in stored(directory):
        if steps is not None and step_of(path) not in steps:
            continue
        try:
            tensors, progress = _read_any(directory, path, model)
            moments = _moments(directory, path, tensors, model, optimizer)
            best = under("best.", tensors)
            if best:
                # Read before the model's own, so that both are known to be of this model.
                _fill(directory, path, model, best)
            _fill(directory, path, model, under("model.", tensors))
        except Damaged as error:
            on_note(f"{error}; going on from what was before it")
            continue
        for parameter, held in moments.items():
            optimizer.state[parameter] = {key: t.to(parameter.device) for key, t in held.items()}
        return progress or Progress(), best or None
    return Progress(), None


def _moments(
    directory: RunDirectory, path: Path, tensors: Mapping[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[nn.Parameter, dict[str, Tensor]]:
    """The optimiser's state by parameter. Raises Damaged where it is of other parameters, or of some of them alone."""
    names = parameter_names(model, optimizer)
    moments = {parameter: under(f"optimizer.{name}.", tensors) for parameter, name in names.items()}
    whole = all(moments.values()) or not any(moments.values())
    if not whole or sum(map(len, moments.values())) != len(under("optimizer.", tensors)):
        raise Damaged(f"{title(directory, path)} is not of this model (its optimiser has other parameters)")
    return moments


def _read_any(directory: RunDirectory, path: Path, model: nn.Module) -> tuple[dict[str, Tensor], Progress | None]:
    """The whole tensors of a checkpoint, whether one process wrote it or several ranks did. Raises Damaged."""
    if path.suffix == FILE:
        return _read(directory, path, model)
    manifest = described(directory, path)
    for name in manifest.files:
        check_file(manifest, name)
    tensors = {name: torch.empty(each.shape, dtype=each.dtype) for name, each in manifest.tensors.items()}
    fill(manifest, tensors)
    return tensors, progress_of(manifest)


def described(directory: RunDirectory, path: Path) -> Manifest:
    """What a checkpoint holds and where. A file of one process is checked here; the files of ranks are to be, by `check_file`.

    Raises Damaged.
    """
    if path.suffix != FILE:
        return read_manifest(directory, path)
    try:
        with TensorFile(path, directory.root) as file:
            about = parse_json(file.metadata["about"].encode())
            if about.pop("digest") != _digest(((name, file.tensor(name)) for name in sorted(file.header)), about):
                raise ValueError("its content is not what was written")
            if about["run_id"] != directory.run_id:
                raise ValueError(f"it belongs to run {about['run_id']!r}")
            layouts = {}
            for name, entry in file.header.items():
                shape = tuple(entry["shape"])
                layouts[name] = Layout(DTYPES[entry["dtype"]], shape, (Part(path.name, (0,) * len(shape), shape),))
    except READING as error:
        raise Damaged(f"{title(directory, path)} is not whole ({reason_of(error)})") from error
    return Manifest(directory, path, path.parent, {}, layouts, about["progress"])


def progress_of(manifest: Manifest) -> Progress:
    """How far training was. Raises Damaged where it does not say."""
    try:
        return _progress(manifest.progress)
    except READING as error:
        raise Damaged(f"{manifest.title} does not say how far training was") from error


def _progress(plain: Mapping[str, Any]) -> Progress:
    return Progress(**{**plain, "losses": tuple(plain["losses"])})


def under(prefix: str, named: Mapping[str, Held]) -> dict[str, Held]:
    """What has names that begin with a prefix, by what follows it."""
    return {name.removeprefix(prefix): held for name, held in named.items() if name.startswith(prefix)}


def save_final(directory: RunDirectory, model: nn.Module) -> None:
    """Writes the trained weights; equal ones in equal bytes."""
    _write(directory, directory.checkpoints / FINAL, model.state_dict(), None)


def load_final(directory: RunDirectory, model: nn.Module) -> None:
    """Fills a model with its trained weights. Raises Damaged where they are missing or not what was written."""
    path = directory.checkpoints / FINAL
    _fill(directory, path, model, _read(directory, path, model)[0])


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """The digest that `final_weights` gives of these trained weights once they are written."""
    return _digest(sorted(tensors.items()), {})[:16]


def final_weights(directory: RunDirectory) -> tuple[str, dict[str, tuple[int, ...]]]:
    """A digest of a run's trained weights, whichever run's they are, and the shape of each. Raises Damaged."""
    path = directory.checkpoints / FINAL
    try:
        known = os.stat(path, follow_symlinks=False)
        return _final_weights(directory.root, path, known.st_size, known.st_mtime_ns, known.st_ino)
    except READING as error:
        raise Damaged(f"{title(directory, path)} is not whole ({reason_of(error)})") from error


@functools.lru_cache(maxsize=16)
def _final_weights(root: Path, path: Path, *state: int) -> tuple[str, dict[str, tuple[int, ...]]]:
    """state: of the file, which is read once as long as it stays."""
    with TensorFile(path, root) as file:
        digest = _digest(((name, file.tensor(name)) for name in sorted(file.header)), {})
        return digest[:16], {name: tuple(entry["shape"]) for name, entry in file.header.items()}


def load_kept(directory: RunDirectory, model: nn.Module, step: int) -> None:
    """Fills a model with the weights of the checkpoint after so many steps that stays. Raises Damaged."""
    path = next((path for path in kept(directory) if step_of(path) == step), None)
    if path is None:
        raise Damaged(f"checkpoint/kept has none after {step} steps")
    manifest = described(directory, path)
    for name in manifest.files:
        check_file(manifest, name)
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    stands = {name: (each.dtype, each.shape) for name, each in manifest.tensors.items() if name.startswith("model.")}
    if stands != {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}:
        raise Damaged(f"{manifest.title} is not of this model")
    fill(manifest, tensors)


def _write(directory: RunDirectory, path: Path, tensors: Mapping[str, Tensor], progress: Progress | None) -> None:
    here = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = {"run_id": directory.run_id, "progress": progress and dataclasses.asdict(progress)}
    metadata = {"about": json.dumps({**about, "digest": _digest(sorted(here.items()), about)})}
    directory.write(path, serialized(here, metadata))


def _read(directory: RunDirectory, path: Path, model: nn.Module) -> tuple[dict[str, Tensor], Progress | None]:
    """The tensors of a file on the CPU, and its Progress where it has one. Raises Damaged.

    The file is read and not mapped: one that is cut while it is mapped would end the process.
    """
    try:
        check_no_link(path, directory.root)
        limit = MOST_HEADER + 4 * sum(tensor.nbytes for tensor in model.state_dict().values())
        data = read_regular(path, limit=limit)
        metadata = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__") or {}
        tensors = load(data)
        if "about" in metadata:
            about = parse_json(metadata["about"].encode())
            if about.pop("digest") != _digest(sorted(tensors.items()), about):
                raise ValueError("its content is not what was written")
            if about["run_id"] != directory.run_id:
                raise ValueError(f"it belongs to run {about['run_id']!r}")
        elif set(metadata) <= {"progress"}:
            # Written before there were digests.
            about = parse_json(f'{{"progress": {metadata.get("progress", "null")}}}'.encode())
        else:
            raise ValueError("its header is not what was written")
        progress = about["progress"]
        if (progress is None) != (path.name == FINAL):
            raise ValueError("it does not say how far training was")
        return tensors, progress and _progress(progress)
    except (*READING, OverflowError, SafetensorError) as error:
        raise Damaged(f"{title(directory, path)} is not whole ({reason_of(error)})") from error


def _fill(directory: RunDirectory, path: Path, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise Damaged(f"{title(directory, path)} is not of this model ({reason_of(error)})") from error


def _digest(tensors: Iterable[tuple[str, Tensor]], about: Mapping[str, Any]) -> str:
    """Over names, kinds, shapes and bytes of tensors on the CPU, sorted by name, and over what is said of them."""
    whole = hashlib.sha256(canonical_json(about).encode())
    for name, tensor in tensors:
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return whole.hexdigest()


def parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, str]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {parameter: names[parameter] for group in optimizer.param_groups for parameter in group["params"]}
