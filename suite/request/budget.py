"""What a run takes before it starts: steps, tokens, FLOPs, memory, disk and time. Nothing is allocated.

FLOPs are those of the model, three forward passes a step, with every mixer's own. Memory, a device:

    weights 4 P, gradients 4 P, moments 8 P bytes            P parameters in float32; sharded by fsdp
    copies of the weights 2 P                                under train.autocast=bfloat16, which training keeps for the way back
    activations  N sum over blocks (80 w + e (8 w + 4 m))    N tokens that a device computes at a time, m = mlp_dim,
                                                             w = max(d_model, num_heads head_dim), e = 2 or 4 bytes a number
    with compute.activation_checkpointing=blocks             N (4 d_model L + one block's), L blocks
    the head  12 N d_model, and a slice of logits            see models/ops/cross_entropy.py

What a block keeps for the way back is one formula for all mixers, fitted to what eager blocks in plain PyTorch were seen to
keep at size=6m (saved tensors counted, in bfloat16 and float32): 0.95 to 1.25 times the formula for Gated DeltaNet, MesaNet,
Mamba2, mLSTM and Hawk, 0.5 to 0.6 for attention, and twice as much for KDA. Kernels and a compiler keep less, and an allocator
rounds up. The sum says what order of memory a run needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from suite.compute.settings import Compute
from suite.machine.peaks import Devices
from suite.request.cost import Cost
from suite.request.length import FORWARDS_PER_STEP
from suite.request.schema import Config

ASSUMED_MFU = 0.3
"""The share of the peak that a plan counts on; result rows `mfu` say what was reached."""
SLICE_OF_LOGITS = 2**27
FLOAT32_WIDTHS, MIXER_WIDTHS, MLP_WIDTHS = 20, 8, 4
SMALL_VOCABULARY = 2**16


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, about. weights: with their copies in bfloat16, where there are some."""

    weights: float
    gradients: float
    moments: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.moments + self.activations


@dataclass(frozen=True)
class Disk:
    """Bytes in the store and the cache, about. checkpoints: of the training while it goes on. weights: the trained ones.

    tokens: of the text; 0 where the task draws its examples.
    """

    checkpoints: float
    weights: float
    tokens: float

    @property
    def total(self) -> float:
        return self.checkpoints + self.weights + self.tokens


def flops_of(config: Config, cost: Cost) -> float:
    """The FLOPs of the whole training."""
    train = config.train
    return FORWARDS_PER_STEP * cost.flops_per_token * train.steps * train.batch_size * config.task.seq_len


def memory_of(config: Config, cost: Cost, compute: Compute, *, vocab_size: int, devices: int) -> Memory:
    """What a training holds on each of the devices that share it. vocab_size: 0 where there are no logits."""
    size, number = config.size, 2 if config.train.autocast == "bfloat16" else 4
    sharing = devices if compute.parallel != "none" else 1
    shards = devices if compute.parallel == "fsdp" else 1
    sequences = min(math.ceil(config.train.batch_size / sharing), compute.micro_batch or config.train.batch_size)
    tokens = sequences * config.task.seq_len
    width = max(size.d_model, size.num_heads * size.head_dim)
    block = 4 * FLOAT32_WIDTHS * width + number * (MIXER_WIDTHS * width + MLP_WIDTHS * size.mlp_dim)
    is_kept_whole = compute.activation_checkpointing == "none"
    kept = block * size.num_blocks if is_kept_whole else 4 * size.d_model * size.num_blocks + block
    logits = 2 * 4 * min(tokens * vocab_size, SLICE_OF_LOGITS)
    copies = 2 * cost.parameters if number == 2 else 0
    return Memory(
        weights=(4 * cost.parameters + copies) / shards,
        gradients=4 * cost.parameters / shards,
        moments=8 * cost.parameters / shards,
        activations=tokens * (kept + 12 * size.d_model) + logits,
    )


def disk_of(config: Config, cost: Cost, compute: Compute, *, vocab_size: int, text_tokens: int) -> Disk:
    """What the run and its text take. text_tokens: of the training split; 0 where the task draws its examples."""
    train = config.train
    # Weights and two moments in float32, and the best weights where they are kept.
    one = (16 if train.keep == "best" else 12) * cost.parameters
    lasting = train.steps // compute.keep_every if compute.keep_every else 0
    return Disk(
        checkpoints=one * (compute.keep_last + lasting) if train.steps else 0.0,
        weights=4.0 * cost.parameters,
        tokens=float(text_tokens * (2 if vocab_size <= SMALL_VOCABULARY else 4)),
    )


def seconds_of(flops: float, devices: Devices, autocast: str) -> float:
    """How long the devices take for so many FLOPs at ASSUMED_MFU of their peak."""
    return flops / (devices.count * devices.flops_per_second(autocast) * ASSUMED_MFU)
