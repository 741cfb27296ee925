"""Clipping and AdamW of a small model by torch's fused kernels, with its large tensors handed over in pieces.

Such a kernel has a program for every CHUNK numbers of a tensor and takes so many tensors a launch (MultiTensorApply.cuh,
kChunkSize and depth_to_max_tensors): an embedding of 524,288 numbers is the work of 8 programs on the 132 multiprocessors of an
H200. Pieces are views, as many as the launches that the whole tensors take have room for, so that no launch is added. Where there
are too many numbers for that, nothing is cut, nor in a step that is not captured: Python makes the views, once for a graph, and
would take longer for them at every step than is gained.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, overload

import torch
from torch import Tensor, nn

CHUNK = 65_536
TURN = 2048
"""Numbers that a program takes at a time, 4 for each of its 512 threads."""
TENSORS_OF_ONE_LIST, TENSORS_OF_FOUR_LISTS = 110, 36
"""A launch's, by what it reads and writes: gradients alone, or weights, gradients and both moments. PyTorch 2.11 has these
limits; what a later one built for CUDA 13 takes is seven times as much, which leaves pieces larger than they could be."""


def is_captured() -> bool:
    """Whether a CUDA graph is recording."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


@functools.lru_cache
def piece_size(counts: tuple[int, ...], room: int) -> int:
    """The length of pieces, a multiple of TURN, of tensors with these counts of numbers; CHUNK where none is to be cut.

    room: tensors of a launch.
    """
    most = room * math.ceil(len(counts) / room)
    if sum(counts) > most * CHUNK:
        return CHUNK
    return next((size for size in range(TURN, CHUNK, TURN) if sum(-(-count // size) for count in counts) <= most), CHUNK)


def cut(lists: Sequence[Sequence[Tensor]], room: int) -> list[list[Sequence[Tensor]]]:
    """The pieces of every tensor of each list. Lists have tensors of the same shapes in turn; room: tensors of a launch."""
    counts = tuple(each.numel() for each in lists[0])
    size = piece_size(counts, room) if is_captured() else CHUNK
    # What is not contiguous has no views of its pieces.
    cuts = [
        size < count and size < CHUNK and all(each.is_contiguous() for each in tensors)
        for count, *tensors in zip(counts, *lists, strict=True)
    ]
    return [[each.view(-1).split(size) if at else (each,) for each, at in zip(tensors, cuts, strict=True)] for tensors in lists]


def clipped_norm(parameters: Sequence[Tensor], limit: float) -> Tensor:
    """The norm of all gradients [], which are scaled down to `limit` where it exceeds that.

    It is summed over whole tensors in every step: sums over pieces, in captured steps alone, would differ in their last digits,
    and a run that goes on, whose first steps are not captured, from one that was never interrupted.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    scale_down(gradients, norm, limit)
    return norm


def scale_down(gradients: Sequence[Tensor], norm: Tensor, limit: float) -> None:
    """Scales gradients of this norm [] down to `limit` where it exceeds that."""
    if gradients:
        (pieces,) = cut([gradients], TENSORS_OF_ONE_LIST)
        torch._foreach_mul_(list(chain.from_iterable(pieces)), torch.clamp(limit / (norm + 1e-6), max=1.0))


class PiecewiseAdamW(torch.optim.AdamW):
    """torch's fused AdamW: the same state, the same numbers to the bit. One dtype, one device, without amsgrad."""

    @overload
    def step(self, closure: None = ...) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step. closure: computes loss and gradients first, as torch's optimisers have it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._update(group)
        return loss

    def settings(self, group: dict[str, Any]) -> dict[str, Any]:
        """What torch's functional AdamW asks of a group, with what its scaler of gradients and `leave_out` leave here."""
        names = ("lr", "weight_decay", "eps", "maximize")
        beta1, beta2 = group["betas"]
        left = {name: getattr(self, name, None) for name in ("found_inf", "grad_scale")}
        return {name: group[name] for name in names} | {"beta1": beta1, "beta2": beta2, "amsgrad": False} | left

    def _update(self, group: dict[str, Any]) -> None:
        weights, gradients, means, squares, maxima, steps = (list[Tensor]() for _ in range(6))
        self._init_group(group, weights, gradients, means, squares, maxima, steps)
        if not steps:
            return
        torch._foreach_add_(steps, 1)
        pieces = cut([weights, gradients, means, squares], TENSORS_OF_FOUR_LISTS)
        weights, gradients, means, squares = (list(chain.from_iterable(each)) for each in pieces)
        # All pieces of a tensor read its one count of steps.
        counts = [step for step, each in zip(steps, pieces[0], strict=True) for _ in each]
        settings = self.settings(group)
        torch._fused_adamw_(weights, gradients, means, squares, maxima, counts, **settings)
        if settings["found_inf"] is not None:
            torch._foreach_sub_(steps, [settings["found_inf"]] * len(steps))
