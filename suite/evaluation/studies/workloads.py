"""What the study of efficiency times of a layer and of a model, each with the contractions and bytes that it can't do without."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.backbone import Backbone
from models.mesa.layers import mesa_layers
from models.mixer import SequenceMixer
from suite.compute.acceleration import accelerate, training_step
from suite.compute.optimization import build_optimizer, set_learning_rate
from suite.compute.scoring import TrainingInputs, loss, training_inputs
from suite.evaluation.studies.roofline import total_bytes
from suite.evaluation.studies.subject import Subject
from suite.request.cost import product_dtype

# The backward pass has two contractions for every one of the forward pass.
TRAINING_FLOPS = 3.0
# Tokens on which it is measured how many steps a solver that stops early takes.
SOLVED_TOKENS = 1024


@dataclass(frozen=True)
class Workload:
    """The model and the tokens of a stage: batch_size sequences of `length` each."""

    subject: Subject
    batch_size: int
    length: int

    @property
    def model(self) -> Backbone:
        return self.subject.model

    @property
    def tokens(self) -> int:
        return self.batch_size * self.length

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the matrix products."""
        return product_dtype(self.subject.config.train.autocast)

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.subject.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    @property
    def batch_bytes(self) -> int:
        """The bytes of an id and a target for every token, which are int64."""
        return 16 * self.tokens

    def inputs(self) -> TrainingInputs:
        """Tokens [B, T] and targets [B T], on the device."""
        drawn = training_inputs(self.subject.task.draw(self.batch_size, self.length))
        return drawn.map(lambda x: x.to(self.subject.device))


@dataclass(frozen=True)
class Timed:
    """Something to be timed. parts: of how many equal parts it is made, one of which is reported.

    flops: contractions of a part. moved_bytes: the fewest that it has to read and write: weights, inputs, outputs and
    states once each, activations between the blocks not at all. aside_bytes: of memory that is held for something else.
    """

    run: Callable[[], object]
    flops: float
    moved_bytes: float
    parts: int = 1
    aside_bytes: int = 0


def layer_forward(cell: Workload) -> Timed:
    mixers, x = _layers(cell), _layer_input(cell)

    def run() -> None:
        with torch.no_grad(), cell.autocast():
            for mixer in mixers:
                mixer(x)

    moved = weight_bytes(mixers) / len(mixers) + 2 * total_bytes([x]) + state_bytes(mixers, cell) / len(mixers)
    return Timed(run, _layer_flops(mixers, x), moved, parts=len(mixers))


def layer_backward(cell: Workload) -> Timed:
    mixers, x = _layers(cell), _layer_input(cell).requires_grad_()
    gradient = torch.ones_like(x)

    def run() -> None:
        for mixer in mixers:
            with cell.autocast():
                y, _ = mixer(x)
            y.backward(gradient)
            mixer.zero_grad()
        x.grad = None

    # Back, the weights and the input are read again, and the output's gradient; theirs are written.
    moved = 3 * weight_bytes(mixers) / len(mixers) + 5 * total_bytes([x]) + state_bytes(mixers, cell) / len(mixers)
    return Timed(run, TRAINING_FLOPS * _layer_flops(mixers, x), moved, parts=len(mixers))


def _layers(cell: Workload) -> list[SequenceMixer]:
    """One mixer of each kind that the blocks take in turn; a layer's time is their mean."""
    return [block.mixer for block in cell.model.blocks[: len(cell.subject.config.model.pattern)]]


def _layer_input(cell: Workload) -> Tensor:
    """What a norm would give [B, T, d_model]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(cell.batch_size, cell.length, cell.model.d_model, generator=generator).to(cell.subject.device)


def _layer_flops(mixers: Sequence[SequenceMixer], x: Tensor) -> float:
    """Contractions of a forward pass through one of them, a solver's at the steps that it takes."""
    some = x[:1, :SOLVED_TOKENS].detach()
    declared = sum(mixer.forward_flops_per_token(x.shape[1]) for mixer in mixers)
    spared = sum(mixer.forward_flops_per_token(some.shape[1]) - mixer.measured_flops_per_token(some) for mixer in mixers)
    return (declared - spared) / len(mixers) * x.shape[0] * x.shape[1]


def model_forward(cell: Workload) -> Timed:
    """The loss at every token."""
    inputs = cell.inputs()

    def run() -> None:
        with torch.no_grad(), cell.autocast():
            loss(cell.model, inputs)

    moved = weight_bytes([cell.model]) + cell.batch_bytes
    return Timed(run, cell.tokens * flops_per_token(cell), moved)


def model_backward(cell: Workload) -> Timed:
    model, inputs = _trained(cell), cell.inputs()

    def run() -> None:
        with cell.autocast():
            of_batch = loss(model, inputs)
        of_batch.backward()
        model.zero_grad()

    weights = weight_bytes([model])
    flops = TRAINING_FLOPS * cell.tokens * flops_per_token(cell)
    return Timed(run, flops, 3 * weights + 2 * cell.batch_bytes, aside_bytes=weights)


def whole_training_step(cell: Workload) -> Timed:
    """With clipping and the optimiser, as a run trains, at a learning rate of 0."""
    model, inputs = _trained(cell), cell.inputs()
    flops = TRAINING_FLOPS * cell.tokens * flops_per_token(cell)
    train = cell.subject.config.train
    optimizer = build_optimizer(model, train)
    set_learning_rate(optimizer, 0.0)
    step = training_step(model, optimizer, train, cell.subject.compute, flops=flops)
    weights = weight_bytes([model])
    # Besides, the optimiser reads the gradients, and reads and writes the weights and two moments.
    return Timed(lambda: step(inputs), flops, 10 * weights + 2 * cell.batch_bytes, aside_bytes=weights)


def _trained(cell: Workload) -> Backbone:
    """A copy of the model for training, compiled and checkpointed as `compute` says."""
    model = copy.deepcopy(cell.model).train()
    accelerate(model, cell.subject.compute)
    return model


def flops_per_token(cell: Workload) -> float:
    return cell.model.forward_flops_per_token(cell.length) - spared_flops(cell)


@torch.no_grad()
def spared_flops(cell: Workload) -> float:
    """A token's contractions that a solver does without by stopping early, on some of the cell's tokens."""
    if not mesa_layers(cell.model):
        return 0.0
    some = cell.inputs().tokens[:1, :SOLVED_TOKENS]
    with cell.autocast():
        return cell.model.forward_flops_per_token(some.shape[1]) - cell.model.measured_flops_per_token(some)


def weight_bytes(modules: Sequence[nn.Module]) -> int:
    return total_bytes(p for module in modules for p in module.parameters())


def state_bytes(modules: Sequence[SequenceMixer | Backbone], cell: Workload) -> float:
    """The bytes of the states after the workload's sequences."""
    return float(cell.batch_size * sum(module.state_bytes(cell.length, cell.dtype) for module in modules))
