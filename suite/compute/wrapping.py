"""A model that several processes train: DDP holds it whole on every rank, FSDP2 in shards. Both are put around it from outside.

    DDP    Li et al. 2020, arXiv 2006.15704: gradients are summed while the backward pass goes on
    FSDP2  Zhao et al. 2023, arXiv 2304.11277, `fully_shard`: weights are gathered for the turn of their blocks

Parameters keep their names, so a state_dict has the same keys; under FSDP2 its values are DTensors. Weights and gradients stay
float32 on their way between ranks: with train.autocast=bfloat16 a rank narrows them as a single process does, so that decays and
gates, which no autocast touches, are the same numbers.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.adamw import adamw

from models.backbone import Backbone
from models.backbone.blocks import Block
from suite.compute import pieces
from suite.compute.muon import MuonAdamW, begin_muon
from suite.compute.parallel import World
from suite.compute.scoring import TrainingInputs, loss
from suite.compute.settings import Compute

# Whole weights below this share of a GPU's memory stay gathered from the forward to the backward pass.
SMALL_SHARE = 1 / 16
# So many blocks are then gathered at once: the host takes longer for a gathering than a GPU for a small block.
BLOCKS_TOGETHER = 4


class Loss(nn.Module):
    """The mean loss of a model's answers as a module, whose forward DDP and FSDP2 surround.

    gathers_again: whether a block's whole weights, sharded, are given up as soon as its pass is over.
    """

    def __init__(self, model: Backbone, *, gathers_again: bool) -> None:
        super().__init__()
        self.model, self.gathers_again = model, gathers_again

    def forward(self, inputs: TrainingInputs) -> Tensor:
        return loss(self.model, inputs)


def wrapped(model: Backbone, compute: Compute, world: World) -> Loss | DistributedDataParallel:
    """The loss of a model that `accelerate` has seen, as `compute.parallel` says. Sharded, the model's own tensors change kind.

    On all ranks the model has the same weights already.
    """
    if compute.parallel == "none":
        return Loss(model, gathers_again=False)
    if compute.parallel == "ddp":
        if compute.compile:
            # A graph of a block would be cut into pieces by the buckets of gradients, which few kernels of ours permit.
            torch._dynamo.config.optimize_ddp = False
        return DistributedDataParallel(Loss(model, gathers_again=False), gradient_as_bucket_view=True)
    mesh = init_device_mesh(world.device.type, (world.size,))
    again = reshards(model, compute, world)
    blocks = list(model.blocks)
    for block, output in zip(blocks, model.training_forms.outputs, strict=True):
        # FSDP2 gathers before a module's forward, and compiled is what stands within.
        vars(block)["forward"] = types.MethodType(output, block)
    together = 1 if again else BLOCKS_TOGETHER
    for first in range(0, len(blocks), together):
        fully_shard(blocks[first : first + together], mesh=mesh, reshard_after_forward=again)
    model.training_forms = model.training_forms._replace(outputs=[own_forward] * len(blocks))
    whole = Loss(model, gathers_again=again)
    fully_shard(whole, mesh=mesh)
    return whole


def reshards(model: Backbone, compute: Compute, world: World) -> bool:
    """What `compute.reshard_after_forward` says of this model: gathering weights again takes time, keeping them memory."""
    if compute.reshard_after_forward != "auto":
        return compute.reshard_after_forward
    if world.device.type != "cuda":
        return True
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return weights > SMALL_SHARE * torch.cuda.get_device_properties(world.device).total_memory


def own_forward(block: Block, x: Tensor, *, added: Tensor | None, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    """What the block itself has as its forward, with what FSDP2 does before and behind it."""
    return block(x, added=added, starts=starts)


@contextlib.contextmanager
def summing(module: nn.Module, is_last: bool) -> Iterator[None]:
    """Gradients of the passes within are summed over ranks behind the last of them alone.

    Weights that stay gathered from a forward to a backward pass stay so until the last one, since no step changes them before.
    """
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(is_last)
        module.set_is_last_backward(is_last)
        module.set_reshard_after_backward(is_last or bool(module.gathers_again))
    with module.no_sync() if isinstance(module, DistributedDataParallel) and not is_last else contextlib.nullcontext():
        yield


def clipped_norm(parameters: Iterable[nn.Parameter], limit: float, world: World) -> Tensor:
    """The norm of all gradients [], which are scaled down to `limit` where they exceed it, wherever their shards lie."""
    held = list(parameters)
    if not any(isinstance(parameter, DTensor) for parameter in held):
        return pieces.clipped_norm(held, limit)
    # Shards are plain tensors: hundreds of DTensors would take the host longer than a GPU needs for the step.
    shards = [gradient.to_local() for gradient in (parameter.grad for parameter in held) if isinstance(gradient, DTensor)]
    norm = world.add_up(nn.utils.get_total_norm(shards).square()).sqrt()
    pieces.scale_down(shards, norm, limit)
    return norm


class ShardedAdamW(pieces.PiecewiseAdamW):
    """AdamW that updates the shards on this rank as plain tensors, for the same reason; its state are DTensors all the same."""

    def _update(self, group: dict[str, Any]) -> None:
        held = [parameter for parameter in group["params"] if parameter.grad is not None]
        states = [self.state[parameter] for parameter in held]
        adamw(
            [parameter.to_local() for parameter in held],
            [parameter.grad.to_local() for parameter in held],
            [state["exp_avg"].to_local() for state in states],
            [state["exp_avg_sq"].to_local() for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            **self.settings(group),
        )


def whole_tensors(tensors: dict[str, Tensor], world: World) -> dict[str, Tensor]:
    """The tensors as a single process has them, on rank 0; nothing elsewhere. All ranks call it, and gather one by one."""
    held = {}
    for name, tensor in tensors.items():
        made = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if world.is_first:
            held[name] = made
    return held


def begin_moments(optimizer: torch.optim.Optimizer) -> None:
    """Gives an optimiser the state that it would make at its first step, so that a checkpoint can be read into it."""
    if isinstance(optimizer, MuonAdamW):
        begin_muon(optimizer)
        optimizer = optimizer.parts[1]
    assert isinstance(optimizer, torch.optim.AdamW), type(optimizer)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            count = torch.zeros((), dtype=torch.float32, device=parameter.device)
            moments = {name: torch.zeros_like(parameter.detach()) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": count, **moments}
