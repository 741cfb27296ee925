"""Training state on disk: tensors in safetensors, nothing pickled, the last two kept.

A checkpoint is one file that is renamed into place, so it is whole or absent. Its header carries the Progress, the run
that it belongs to and a digest of all that, which is checked when it is read: a disk may have changed it since.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from suite.canonical import canonical_json
from suite.store.foreign import check_no_link, parse_json, reason_of
from suite.store.run_directory import READING, Damaged, RunDirectory
from tasks.files import read_regular

FINAL = "model.safetensors"
# A file with more bytes than the weights, both moments and this is none of ours.
MOST_HEADER = 2**26


@dataclass(frozen=True)
class Progress:
    """step: optimiser steps done. first_loss: of the first of them. losses: of the last of them.

    seconds: spent on the steps so far, over all attempts. work_seconds: of these, in forward, backward and optimiser.
    best_step, best_loss: of the validation with the lowest loss. ended: whether training ends before its last step.
    """

    step: int = 0
    seconds: float = 0.0
    work_seconds: float = 0.0
    first_loss: float = 0.0
    losses: tuple[float, ...] = ()
    best_step: int = 0
    best_loss: float | None = None
    ended: bool = False

    @property
    def mean_loss(self) -> float:
        return sum(self.losses) / len(self.losses)


def save_checkpoint(
    directory: RunDirectory,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    best: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes step-<n>.safetensors and removes all but it and the one before. Raises OSError and Superseded.

    best: the weights of the best validation, where they are kept.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in (best or {}).items()}
    names = _parameter_names(model, optimizer)
    for parameter, state in optimizer.state.items():
        tensors |= {f"optimizer.{names[parameter]}.{key}": value for key, value in state.items()}
    _write(directory, f"step-{progress.step:09d}.safetensors", tensors, progress)
    for old in _newest_first(directory.checkpoints)[2:]:
        old.unlink()


def load_checkpoint(
    directory: RunDirectory, model: nn.Module, optimizer: torch.optim.Optimizer, on_note: Callable[[str], None]
) -> tuple[Progress, dict[str, Tensor] | None]:
    """Restores the newest checkpoint that is whole; returns its Progress, and the best weights where it has some.

    Without a checkpoint the Progress is that of no step. on_note: is told of every file that is not whole.
    """
    for path in _newest_first(directory.checkpoints):
        try:
            tensors, progress = _read(directory, path, model)
            best = _under("best.", tensors)
            if best:
                # Read before the model's own, so that both are known to be of this model.
                _fill(path, model, best)
            _fill(path, model, _under("model.", tensors))
        except Damaged as error:
            on_note(f"{error}; going on from what was before it")
            continue
        for parameter, name in _parameter_names(model, optimizer).items():
            moments = _under(f"optimizer.{name}.", tensors)
            optimizer.state[parameter] = {key: t.to(parameter.device) for key, t in moments.items()}
        return progress or Progress(), best or None
    return Progress(), None


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, by what follows it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def save_final(directory: RunDirectory, model: nn.Module) -> None:
    """Writes the trained weights; equal ones in equal bytes."""
    _write(directory, FINAL, model.state_dict(), None)


def load_final(directory: RunDirectory, model: nn.Module) -> None:
    """Fills a model with its trained weights. Raises Damaged where they are missing or not what was written."""
    path = directory.checkpoints / FINAL
    _fill(path, model, _read(directory, path, model)[0])


def remove_checkpoints(directory: RunDirectory) -> None:
    """Removes the training state, which nothing needs once the run's training stage is written."""
    for path in _newest_first(directory.checkpoints):
        with contextlib.suppress(OSError):
            path.unlink()


def _write(directory: RunDirectory, name: str, tensors: Mapping[str, Tensor], progress: Progress | None) -> None:
    here = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = {"run_id": directory.run_id, "progress": progress and dataclasses.asdict(progress)}
    # One entry: safetensors writes several in any order.
    metadata = {"about": json.dumps({**about, "digest": _digest(here, about)})}
    directory.write(directory.checkpoints / name, save(here, metadata))


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
            if about.pop("digest") != _digest(tensors, about):
                raise ValueError("its content is not what was written")
            if about["run_id"] != directory.run_id:
                raise ValueError(f"it belongs to run {about['run_id']!r}")
        elif set(metadata) <= {"progress"}:
            # Written before there were digests.
            about = {"progress": json.loads(metadata.get("progress", "null"))}
        else:
            raise ValueError("its header is not what was written")
        progress = about["progress"]
        if (progress is None) != (path.name == FINAL):
            raise ValueError("it does not say how far training was")
        return tensors, progress and Progress(**{**progress, "losses": tuple(progress["losses"])})
    except (*READING, OverflowError, SafetensorError) as error:
        raise Damaged(f"checkpoint/{path.name} is not whole ({reason_of(error)})") from error


def _fill(path: Path, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise Damaged(f"checkpoint/{path.name} is not of this model ({reason_of(error)})") from error


def _digest(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    """Over names, kinds, shapes and bytes of tensors on the CPU, and over what is said of them."""
    whole = hashlib.sha256(canonical_json(about).encode())
    for name, tensor in sorted(tensors.items()):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return whole.hexdigest()


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors"), reverse=True)


def _parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, str]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {parameter: names[parameter] for group in optimizer.param_groups for parameter in group["params"]}
