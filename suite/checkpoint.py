"""Training state on disk: tensors in safetensors, nothing pickled, the last two kept.

A checkpoint is one file that is renamed into place, so it is whole or absent. Its header carries the Progress.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from suite.store import write_atomically

FINAL = "model.safetensors"


@dataclass(frozen=True)
class Progress:
    """step: optimiser steps done. first_loss: of the first of them. losses: of the last of them.

    seconds: spent on the steps so far, over all attempts. work_seconds: of these, in forward, backward and optimiser.
    """

    step: int = 0
    seconds: float = 0.0
    work_seconds: float = 0.0
    first_loss: float = 0.0
    losses: tuple[float, ...] = ()

    @property
    def mean_loss(self) -> float:
        return sum(self.losses) / len(self.losses)


def save_checkpoint(directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Writes step-<n>.safetensors and removes all but it and the one before."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    names = _parameter_names(model, optimizer)
    for parameter, state in optimizer.state.items():
        tensors |= {f"optimizer.{names[parameter]}.{key}": value for key, value in state.items()}
    metadata = {"progress": json.dumps(dataclasses.asdict(progress))}
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata)
    write_atomically(directory / f"step-{progress.step:09d}.safetensors", content)
    for old in _newest_first(directory)[2:]:
        old.unlink()


def load_checkpoint(directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Restores the newest checkpoint that is whole; Progress() when there is none."""
    for path in _newest_first(directory):
        # A file cut short by a full disk is passed over: the one before it is whole.
        with contextlib.suppress(SafetensorError):
            return _restore(path, model, optimizer)
    return Progress()


def _restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    with safe_open(path, framework="pt") as file:
        progress = json.loads(file.metadata()["progress"])
    tensors = load_file(path)
    model.load_state_dict({name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")})
    for parameter, name in _parameter_names(model, optimizer).items():
        prefix = f"optimizer.{name}."
        moments = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
        optimizer.state[parameter] = {key: t.to(parameter.device) for key, t in moments.items()}
    return Progress(**{**progress, "losses": tuple(progress["losses"])})


def save_final(directory: Path, model: nn.Module) -> None:
    """Writes the trained weights."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(directory / FINAL, save(tensors))


def remove_checkpoints(directory: Path) -> None:
    """Removes the training state, which nothing needs once the run's training stage is written."""
    for path in _newest_first(directory):
        path.unlink()


def load_final(directory: Path, model: nn.Module) -> None:
    """Fills a model with its trained weights. Raises FileNotFoundError where training has not ended."""
    model.load_state_dict(load_file(directory / FINAL))


def _newest_first(directory: Path) -> list[Path]:
    return sorted(directory.glob("step-*.safetensors"), reverse=True)


def _parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, str]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {parameter: names[parameter] for group in optimizer.param_groups for parameter in group["params"]}
