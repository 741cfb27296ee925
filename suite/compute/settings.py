"""How a run is trained, which decides its numbers, and how it is computed, which does not."""

from __future__ import annotations

from typing import Annotated, Literal

from conf.settings import Natural, Positive, Refusal, Settings, Share, above, below, within

BelowOne = Annotated[float, below(0, 1)]
Seconds = Annotated[float, within(0, 1e9)]


class Train(Settings, kw_only=True):
    """The settings in conf/train. steps=0 trains nothing, for a task that has nothing to learn."""

    steps: Natural
    batch_size: Annotated[int, within(1, 2**20)]
    warmup_steps: Natural
    lr: Positive
    weight_decay: Annotated[float, within(0, 1e6)]
    betas: tuple[BelowOne, BelowOne]
    eps: Annotated[float, above(0, 1)]
    final_lr_fraction: Share
    gradient_clip: Positive
    autocast: Literal["none", "bfloat16"]

    def __post_init__(self) -> None:
        if self.warmup_steps > self.steps:
            raise Refusal("warmup_steps", self.warmup_steps, f"0 to train.steps={self.steps}")


class Compute(Settings, kw_only=True):
    """The settings in conf/compute."""

    device: Literal["auto", "cpu", "cuda"]
    jobs: Literal["auto"] | Annotated[int, within(1, 4096)]
    prefetch: Literal["auto"] | Annotated[int, within(0, 4096)]
    threads: Annotated[int, within(1, 4096)]
    log_seconds: Seconds
    log: Literal["none", "tensorboard", "wandb", "trackio"]
    checkpoint_seconds: Seconds
    compile: bool
    cuda_graph: Literal["auto"] | bool
    wait: bool
    activation_checkpointing: Literal["none", "blocks"]


Seed = Annotated[int, within(0, 2**32 - 1)]
