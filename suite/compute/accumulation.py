"""A training step of several parts: those that a process computes one after another, and those of other ranks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.backbone import Backbone
from suite.compute.parallel import World
from suite.compute.scoring import TrainingInputs
from suite.compute.settings import Train
from suite.compute.step import EagerStep
from suite.compute.wrapping import clipped_norm, summing


def count_asked(inputs: TrainingInputs) -> Tensor:
    """How many targets the mean loss is the mean over [], on their device, which is not waited for."""
    targets = inputs.targets
    count = torch.tensor(len(targets), device=targets.device) if targets.is_floating_point() else (targets >= 0).sum()
    return count.double()


class AccumulatedStep(EagerStep):
    """A step whose loss and gradient are those of the whole batch, whoever computes which part of it.

    The loss is the sum over all targets of all ranks divided by their number, not a mean of means; so is its gradient. Ranks
    divide the sum of their gradients by how many they are, which is undone here.

    by_rank: what each rank added to the last step's loss [ranks], on the device.
    """

    def __init__(
        self, model: Backbone, optimizer: torch.optim.Optimizer, train: Train, *, module: nn.Module, world: World
    ) -> None:
        super().__init__(model, optimizer, train)
        self.module, self.world = module, world
        self.is_warm = not isinstance(module, DistributedDataParallel)
        self.by_rank = torch.zeros(world.size, dtype=torch.float64, device=self.device)

    def __call__(self, *parts: TrainingInputs) -> Tensor:
        there = [part.map(lambda x: x.to(self.device, non_blocking=True)) for part in parts]
        if not self.is_warm:
            # DDP orders what it sums after the first pass that it sees; a run that goes on from a checkpoint is to sum as before.
            self._pass(there[0], torch.zeros((), dtype=torch.float64, device=self.device), is_last=True)
            self.optimizer.zero_grad(set_to_none=True)
            self.is_warm = True
        counts = torch.stack([count_asked(part) for part in there])
        weights = counts / self.world.add_up(counts.sum()).clamp(min=1)
        by_rank = torch.zeros(self.world.size, dtype=torch.float64, device=self.device)
        for i, (part, weight) in enumerate(zip(there, weights, strict=True)):
            by_rank[self.world.rank] += self._pass(part, weight, is_last=i == len(there) - 1)
        self.by_rank = self.world.add_up(by_rank)
        return self.update(self.by_rank.sum().float())

    def _pass(self, part: TrainingInputs, weight: Tensor, *, is_last: bool) -> Tensor:
        """Adds the gradient of a part, whose share of all targets is `weight`; returns its share of the loss []."""
        with summing(self.module, is_last):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                mean = self.module(part)
            (mean * (weight * self.world.size).to(mean.dtype)).backward()
        return mean.detach() * weight

    def clipped_norm(self) -> Tensor:
        return clipped_norm(self.parameters, self.clip, self.world)
