"""How a run is trained, which decides its numbers, and how it is computed, which does not."""

from __future__ import annotations

from typing import Annotated, Literal

from conf.settings import LARGEST, Count, Natural, Neutral, Positive, Refusal, Settings, Share, above, below, text, within

BelowOne = Annotated[float, below(0, 1)]
Seconds = Annotated[float, within(0, 1e9)]


class Train(Settings, kw_only=True):
    """The settings in conf/train. steps=0 trains nothing, for a task that has nothing to learn.

    schedule: what follows the warm-up, a cosine to the lowest rate, or one rate. warmup_from: the rate before the first step.
    final_lr: the lowest rate, in the place of final_lr_fraction times lr. hold_steps: steps of one rate, such as an epoch's.
    decays: what weight decay is for, the weights of linear maps or all parameters. gradient_clip: None for no clipping.
    validate_steps: after so many steps, again and again, the validation split is scored; None for the end alone.
    keep: the weights of the last step, or of the validation with the lowest loss. stop_at: the accuracy on validation at
    which training ends.
    """

    steps: Natural
    batch_size: Annotated[int, within(1, 2**20)]
    warmup_steps: Natural
    lr: Positive
    weight_decay: Annotated[float, within(0, 1e6)]
    betas: tuple[BelowOne, BelowOne]
    eps: Annotated[float, above(0, 1)]
    final_lr_fraction: Share
    gradient_clip: Positive | None
    autocast: Literal["none", "bfloat16"]
    schedule: Annotated[Literal["cosine", "constant"], Neutral("cosine")]
    warmup_from: Annotated[Annotated[float, within(0, LARGEST)], Neutral(0.0)]
    final_lr: Annotated[Annotated[float, within(0, LARGEST)] | None, Neutral(None)]
    hold_steps: Annotated[Count, Neutral(1)]
    decays: Annotated[Literal["linear", "all"], Neutral("linear")]
    validate_steps: Annotated[Count | None, Neutral(None)]
    keep: Annotated[Literal["last", "best"], Neutral("last")]
    stop_at: Annotated[Share | None, Neutral(None)]

    def __post_init__(self) -> None:
        if self.warmup_steps > self.steps:
            raise Refusal("warmup_steps", self.warmup_steps, f"0 to train.steps={self.steps}")
        if self.warmup_from > self.lr:
            raise Refusal("warmup_from", self.warmup_from, f"0 to train.lr={self.lr}")
        if self.final_lr is not None and self.final_lr > self.lr:
            raise Refusal("final_lr", self.final_lr, f"null, 0 to train.lr={self.lr}")
        for key, value, without in (("keep", self.keep, "last"), ("stop_at", self.stop_at, None)):
            if self.validate_steps is None and value != without:
                raise Refusal(key, value, f"{text(without)} without train.validate_steps")


class Compute(Settings, kw_only=True):
    """The settings in conf/compute."""

    device: Literal["auto", "cpu", "cuda"]
    jobs: Literal["auto"] | Annotated[int, within(1, 4096)]
    mps: Literal["auto", "off"]
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
