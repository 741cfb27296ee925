"""A whole training split on a GPU, of which the steps of a run read rows: nothing is copied or made between them."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from suite.compute.scoring import TrainingInputs
from tasks.task import IGNORE, Batch, Task, Tokens

# Ids and targets take 16 bytes a token: 2 GiB of a GPU at most.
MOST_TOKENS = 2**27
# Examples that are made at once.
CHUNK = 2**14


def is_resident(task: Task, *, examples_read: int) -> bool:
    """Whether a training split is worth keeping on a GPU: it ends, it fits, and a run reads all of it at least once."""
    count = task.num_examples("train")
    if count is None or not isinstance(task.interface, Tokens):
        return False
    return count <= examples_read and count * task.seq_len <= MOST_TOKENS


class Resident(NamedTuple):
    """A training split [N, ...]: ids [N, T], and of each example all its targets [N, T] or those that ask something [N, K].

    targets: IGNORE where an example asks less than another. places: where in its example each target stands, None for all.
    """

    tokens: Tensor
    targets: Tensor
    places: Tensor | None
    starts: Tensor | None

    @classmethod
    def of(cls, task: Task, device: torch.device) -> Resident:
        """The training split of a task; one that several runs of a process read is kept."""
        return _resident(task, device)

    def batch(self, indices: Tensor) -> TrainingInputs:
        """The examples at these indices [B], as `training_inputs` gives them."""
        rows = indices.to(self.tokens.device, non_blocking=True)
        tokens, targets = self.tokens.index_select(0, rows), self.targets.index_select(0, rows).flatten()
        starts = None if self.starts is None else self.starts.index_select(0, rows)
        if self.places is None:
            return TrainingInputs(tokens, targets, None, starts)
        places = self.places.index_select(0, rows).add_(_first_places(len(rows), tokens.shape[1], rows.device))
        return TrainingInputs(tokens, targets, places.flatten(), starts)


@functools.lru_cache(maxsize=4)
def _first_places(batch_size: int, seq_len: int, device: torch.device) -> Tensor:
    """Where each example begins among the positions of a batch [B, 1]."""
    return torch.arange(0, batch_size * seq_len, seq_len, device=device)[:, None]


# A sweep goes through the runs of one split one after another.
@functools.lru_cache(maxsize=1)
def _resident(task: Task, device: torch.device) -> Resident:
    count = task.num_examples("train")
    assert count is not None, "a split without end lies nowhere"
    chunks = [task.batch("train", range(first, min(first + CHUNK, count))) for first in range(0, count, CHUNK)]
    most = max(int(chunk.asked.sum(1).max()) for chunk in chunks)
    tokens = torch.cat([chunk.tokens for chunk in chunks]).to(device)
    resets = [chunk.starts for chunk in chunks if chunk.starts is not None]
    starts = torch.cat(resets).to(device) if resets else None
    if 2 * most > task.seq_len:
        return Resident(tokens, torch.cat([chunk.targets for chunk in chunks]).to(device), None, starts)
    targets, places = zip(*(_narrow(chunk, most) for chunk in chunks), strict=True)
    return Resident(tokens, torch.cat(targets).to(device), torch.cat(places).to(device), starts)


def _narrow(batch: Batch, most: int) -> tuple[Tensor, Tensor]:
    """The targets that ask something, and their places, each [N, most]; behind them IGNORE at place 0."""
    places = batch.asked.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    targets = batch.targets.gather(1, places)
    return targets, torch.where(targets == IGNORE, 0, places)
