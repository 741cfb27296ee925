"""How a run's model is made to train fast, from outside of it: its parameters keep their names and its numbers their meaning.

compute.compile: every block's training output is compiled, but that of a mixer whose steps differ
(random_steps, solve_from), and so are the embedding and the last norm; blocks of one shape share one compilation.
compute.activation_checkpointing: "blocks" keeps only what enters a block, and computes the rest again on the way back.
compute.cuda_graph: the whole step is one graph; auto does so on a GPU where a step is so small that launching its
kernels takes longer than running them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.backbone import Backbone, TrainingForms
from models.backbone.blocks import Block
from suite.compute.settings import Compute, Train
from suite.compute.step import CapturedStep, EagerStep, Step

# A GPU that reaches 200 TFLOP/s is done with this in 5 ms, which is about what the host needs to launch a small model's
# kernels one by one.
SMALL_STEP_FLOPS = 1e12


def accelerate(model: Backbone, compute: Compute) -> None:
    """Compiles and checkpoints the parts of a model as `compute` says; for training alone, nothing else is changed."""
    plain = checkpointed_output if compute.activation_checkpointing == "blocks" else Block.output
    enter: Callable[[Backbone, Tensor], tuple[Tensor, Tensor | None]] = type(model).enter
    output: Callable[..., tuple[Tensor, Tensor]] = plain
    leave = type(model).leave
    if compute.compile:
        # What was compiled for earlier models of this process would count against the limit of recompilations.
        torch.compiler.reset()
        # As without a compiler: what is added up in float32 on the way forward is so on the way back.
        torch._functorch.config.backward_pass_autocast = "off"
        enter = torch.compile(enter_in_two_terms, dynamic=False)
        output = torch.compile(plain, dynamic=False)
        leave = torch.compile(leave, dynamic=False)
    # What draws a number for every batch would be compiled anew for each.
    outputs = [plain if block.mixer.draws else output for block in model.blocks]
    model.training_forms = TrainingForms(enter, outputs, leave)


def enter_in_two_terms(model: Backbone, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
    """`Backbone.enter` with zeros for a second term, of the dtype that blocks have there and with a gradient.

    A block is compiled anew for what is no tensor, or has no gradient, so without them the first one would be.
    """
    x = model.embed(tokens)
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    return x, (x * 0.0).to(dtype)


def checkpointed_output(block: Block, x: Tensor, *, added: Tensor | None, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    """Block.output, of which nothing but x + added is kept for the way back."""
    x = x if added is None else x + added
    # Nothing random is drawn within a block.
    return checkpoint(Block.output, block, x, added=None, starts=starts, use_reentrant=False, preserve_rng_state=False)


def training_step(
    model: Backbone,
    optimizer: torch.optim.Optimizer,
    train: Train,
    compute: Compute,
    *,
    flops: float,
) -> Step:
    """The step of a model that stands on its device. flops: what a step costs, about.

    Raises ValueError for a graph that was asked for and can't be.
    """
    step = EagerStep(model, optimizer, train)
    asked = compute.cuda_graph
    draws = any(block.mixer.draws for block in model.blocks)
    if asked is True and draws:
        raise ValueError("compute.cuda_graph=true, permitted with random_steps or solve_from are auto and false: steps differ")
    # Its rate is a number of the host, which a graph would hold for ever.
    is_muon = train.optimizer == "muon"
    if asked is True and is_muon:
        raise ValueError("compute.cuda_graph=true, permitted with train.optimizer=muon are auto and false")
    if asked is True and step.device.type != "cuda":
        raise ValueError("compute.cuda_graph=true, permitted on a CPU are auto and false")
    if asked is False or draws or is_muon or step.device.type != "cuda" or (asked == "auto" and flops > SMALL_STEP_FLOPS):
        return step
    return CapturedStep(step, required=asked is True)
