"""What the study of efficiency times of generation: reading prompts, and a token more for each of them."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from models.backbone import Backbone
from models.backbone.generation import captured, narrow
from models.mixer import State
from suite.evaluation.studies.roofline import total_bytes
from suite.evaluation.studies.timing import MOST_REPEATS
from suite.evaluation.studies.workloads import Timed, Workload, flops_per_token, spared_flops, state_bytes, weight_bytes

# A step of decoding is called so often at most: to be timed, to warm up, and before and while a graph is captured.
DECODED_TOKENS = MOST_REPEATS + 8


class NotCaptured(Exception):
    """A step that can't become a CUDA graph."""


def prefill(cell: Workload) -> Timed:
    model, tokens = _decoder(cell), cell.inputs().tokens

    @torch.no_grad()
    def run() -> None:
        features, _ = model.features(tokens)
        model.head(features[:, -1])

    head = model.head_flops_per_token()
    flops = cell.tokens * (flops_per_token(cell) - head) + cell.batch_size * head
    moved = weight_bytes([model]) + state_bytes([model], cell) + total_bytes([tokens])
    return Timed(run, flops, moved, aside_bytes=_aside(cell, model))


def decode(cell: Workload) -> Timed:
    """One token for every prompt, as `generate` does it: on a GPU replayed as a CUDA graph."""
    on_gpu = cell.subject.device.type == "cuda"
    if on_gpu and not cell.model.capturable:
        raise NotCaptured("a step asks the host whether to go on")
    work, state = _stepping(cell)
    if not on_gpu:
        return work
    try:
        step = captured(work.run, [x for block in state for x in block.values()], torch.Generator(cell.subject.device))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise NotCaptured(str(error)) from error
    return replace(work, run=step)


def decode_eagerly(cell: Workload) -> Timed:
    return _stepping(cell)[0]


@torch.no_grad()
def _stepping(cell: Workload) -> tuple[Timed, list[State]]:
    """A step after the prompts, and the state that it changes."""
    model, tokens = _decoder(cell), cell.inputs().tokens
    _, held = model.features(tokens)
    read = total_bytes(x for block in held for x in block.values())
    state, token = model.reserve(held, DECODED_TOKENS), tokens[:, -1].clone()

    @torch.no_grad()
    def run() -> None:
        model.step_(token, state)

    length, flops = cell.length, cell.model.forward_flops_per_token
    # The declared cost is a mean over the sequence: that of its next token alone is a difference.
    of_next = (length + 1) * flops(length + 1) - length * flops(length)
    # What one token writes is what is held after a single one: all of an RNN's state, one key and value of a cache.
    written = read * model.state_bytes(1, cell.dtype) / model.state_bytes(length, cell.dtype)
    moved = weight_bytes([model]) + read + written
    work = Timed(run, cell.batch_size * (of_next - spared_flops(cell)), moved, aside_bytes=_aside(cell, model))
    return work, state


def _decoder(cell: Workload) -> Backbone:
    """The model as it generates: its weights in the precision of the matrix products."""
    if cell.dtype == torch.float32:
        return cell.model
    model = copy.deepcopy(cell.model)
    narrow(model, cell.dtype)
    return model


def _aside(cell: Workload, model: Backbone) -> int:
    """The bytes of the weights of which a model is a copy."""
    return 0 if model is cell.model else weight_bytes([cell.model])
