"""One training step: forward, backward, clipping and AdamW; eager, or captured in a CUDA graph."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from models.backbone import Backbone
from suite.compute.optimization import leave_out
from suite.compute.pieces import clipped_norm
from suite.compute.scoring import TrainingInputs, loss
from suite.compute.settings import Train

# Before a capture a step is taken so often as it is: kernels are tuned and the optimiser's state is there afterwards.
WARM_UP_STEPS = 3

logger = logging.getLogger(__name__)


Step = Callable[[TrainingInputs], Tensor]
"""Updates a model once, from inputs on the host: returns loss and gradient norm [2] on the device, not waited for."""


class EagerStep:
    """A Step, operation by operation."""

    def __init__(self, model: Backbone, optimizer: torch.optim.Optimizer, train: Train) -> None:
        self.model, self.optimizer = model, optimizer
        self.parameters = list(model.parameters())
        self.device = self.parameters[0].device
        self.autocast = train.autocast == "bfloat16"
        self.skips = train.nonfinite == "skip"
        # The norm is measured where nothing is clipped, too.
        self.clip = math.inf if train.gradient_clip is None else train.gradient_clip

    def __call__(self, inputs: TrainingInputs) -> Tensor:
        there = inputs.map(lambda x: x.to(self.device, non_blocking=True))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            step_loss = loss(self.model, there)
        step_loss.backward()
        return self.update(step_loss.detach())

    def update(self, step_loss: Tensor) -> Tensor:
        """Clips the gradients that are there and takes the optimiser's step: loss and gradient norm [2]."""
        norm = self.clipped_norm()
        if self.skips:
            leave_out(self.optimizer, ~(step_loss.isfinite() & norm.isfinite()))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return torch.stack([step_loss, norm])

    def clipped_norm(self) -> Tensor:
        """The norm of all gradients [], which are scaled down where it exceeds the limit."""
        return clipped_norm(self.parameters, self.clip)


class Captured(NamedTuple):
    """A graph, the tensors that it reads, and the one that it writes."""

    graph: torch.cuda.CUDAGraph
    inputs: TrainingInputs
    numbers: Tensor


class CapturedStep:
    """The same as one CUDA graph for each shape of the inputs, which costs the host one launch.

    The first steps of a shape are eager; the last of them finds out whether the host has to wait for the device, which
    no graph can. Where the step can't be captured it stays eager and says so in the log, or, if a graph is `required`,
    raises ValueError.
    """

    def __init__(self, eager: EagerStep, *, required: bool) -> None:
        self.eager, self.required, self.possible = eager, required, True
        self.stream = torch.cuda.Stream(eager.device)
        self.pool = torch.cuda.graph_pool_handle()
        self.taken: dict[tuple, int] = {}
        self.captured: dict[tuple, Captured] = {}

    def __call__(self, inputs: TrainingInputs) -> Tensor:
        shape = tuple(inputs.map(lambda x: x.shape))
        if shape not in self.captured:
            if not self.possible:
                return self.eager(inputs)
            taken = self.taken[shape] = self.taken.get(shape, 0) + 1
            if taken < WARM_UP_STEPS:
                return self._beside(inputs)
            try:
                if taken == WARM_UP_STEPS:
                    return self._without_waiting(inputs)
                self.captured[shape] = self._capture(inputs)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self._give_up(error)
                return self.eager(inputs)
        graph, static, numbers = self.captured[shape]
        for place, new in zip(static, inputs, strict=True):
            if place is not None:
                place.copy_(new, non_blocking=True)
        graph.replay()
        return numbers

    def _beside(self, inputs: TrainingInputs) -> Tensor:
        """An eager step on a stream of its own, as a capture asks of what comes before it."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            numbers = self.eager(inputs)
        torch.cuda.current_stream().wait_stream(self.stream)
        return numbers

    def _without_waiting(self, inputs: TrainingInputs) -> Tensor:
        """The same; raises RuntimeError where the host has to wait for the device."""
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            # It says that not every wait is found, which the capture itself then does.
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error")
        try:
            return self._beside(inputs)
        finally:
            torch.cuda.set_sync_debug_mode(before)

    def _capture(self, inputs: TrainingInputs) -> Captured:
        static, graph = inputs.map(lambda x: x.to(self.eager.device)), torch.cuda.CUDAGraph()
        # Other threads may pin memory meanwhile.
        capture = torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local")
        with capture:
            numbers = self.eager(static)
        return Captured(graph, static, numbers)

    def _give_up(self, error: RuntimeError) -> None:
        self.eager.optimizer.zero_grad(set_to_none=True)
        reason = str(error).strip().splitlines()[0]
        if self.required:
            raise ValueError(f"compute.cuda_graph=true, but a training step of this model can't be captured: {reason}") from error
        self.possible = False
        logger.warning("compute.cuda_graph=auto: the training step is not captured: %s", reason)
