"""How a run is trained, which decides its numbers, and how it is computed, which does not."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from conf.settings import (
    LARGEST,
    OUTSIDE,
    Count,
    Name,
    Natural,
    Neutral,
    Positive,
    Refusal,
    RequestError,
    Settings,
    Share,
    above,
    below,
    text,
    within,
)

BelowOne = Annotated[float, below(0, 1)]
Seconds = Annotated[float, within(0, 1e9)]
Tokens = Annotated[int, within(1, 2**53)]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{16}$", description="16 hexadecimal digits")]
Flops = Annotated[float, above(0, 1e30)]


class Train(Settings, kw_only=True):
    """The settings in conf/train. steps=0 trains nothing, for a task that has nothing to learn.

    tokens, flops: how long a request wants to train, in the place of steps; decay_share: the part of the steps that is the
    decay, in the place of decay_steps. All three are settled into steps before a run is named (suite/request/length.py), and
    None after. schedule: what follows the warm-up, a cosine to the lowest rate, one rate, or one rate and behind it a decay
    to the lowest rate (wsd) over the last decay_steps. decay_shape: of that decay. warmup_from: the rate before the first step.
    final_lr: the lowest rate, in the place of final_lr_fraction times lr. hold_steps: steps of one rate, such as an epoch's.
    decays: what weight decay is for, the weights of linear maps or all parameters. gradient_clip: None for no clipping.
    validate_steps: after so many steps, again and again, the validation split is scored; None for the end alone.
    keep: the weights of the last step, or of the validation with the lowest loss. stop_at: the accuracy on validation at
    which training ends. nonfinite: whether a step whose loss or gradient is not finite ends the training, or is left out.
    optimizer: AdamW for all parameters, or Muon for the matrices within blocks (suite/compute/muon.py).
    start_from: the run whose trained weights are the initial ones; start_digest: what they are, settled before a run is named.
    continue_from: a run that has taken the same first steps, which are not taken again (suite/beginning.py).
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
    tokens: Annotated[Tokens | None, Neutral(None)]
    flops: Annotated[Flops | None, Neutral(None)]
    schedule: Annotated[Literal["cosine", "constant", "wsd"], Neutral("cosine")]
    decay_steps: Annotated[Count | None, Neutral(None)]
    decay_share: Annotated[Share | None, Neutral(None)]
    decay_shape: Annotated[Literal["linear", "sqrt"], Neutral("linear")]
    warmup_from: Annotated[Annotated[float, within(0, LARGEST)], Neutral(0.0)]
    final_lr: Annotated[Annotated[float, within(0, LARGEST)] | None, Neutral(None)]
    hold_steps: Annotated[Count, Neutral(1)]
    decays: Annotated[Literal["linear", "all"], Neutral("linear")]
    validate_steps: Annotated[Count | None, Neutral(None)]
    keep: Annotated[Literal["last", "best"], Neutral("last")]
    stop_at: Annotated[Share | None, Neutral(None)]
    nonfinite: Annotated[Literal["stop", "skip"], Neutral("stop")]
    optimizer: Annotated[Literal["adamw", "muon"], Neutral("adamw")]
    start_from: Annotated[Name | None, OUTSIDE, Neutral(None)]
    start_digest: Annotated[Digest | None, Neutral(None)]
    continue_from: Annotated[Name | None, OUTSIDE, Neutral(None)]

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
        if self.optimizer == "muon" and self.nonfinite == "skip":
            raise Refusal("nonfinite", self.nonfinite, "stop with train.optimizer=muon, which leaves no step out")
        self._check_decay()

    def _check_decay(self) -> None:
        """Raises Refusal for a decay that its schedule does not have, or that does not fit behind the warm-up."""
        longest = self.steps - self.warmup_steps
        if self.schedule != "wsd":
            for key, value, without in (("decay_steps", self.decay_steps, None), ("decay_shape", self.decay_shape, "linear")):
                if value != without:
                    raise Refusal(key, value, f"{text(without)} without train.schedule=wsd")
        elif self.steps and (self.decay_steps is None or self.decay_steps > longest):
            permitted = f"1 to {longest}, what train.warmup_steps leaves of train.steps, or train.decay_share in its place"
            raise Refusal("decay_steps", self.decay_steps, f"{permitted}, with train.schedule=wsd")


class Compute(Settings, kw_only=True):
    """The settings in conf/compute.

    parallel: how the processes that torchrun starts train one run together, each with its rows of every batch: by itself, with
    the whole model on every rank (ddp), or in shards (fsdp). reshard_after_forward: whether a block under fsdp gives its whole
    weights up behind the forward pass, and gathers them again; auto where all of them are no small part of a GPU's memory.
    micro_batch: sequences that a rank computes at a time, whose gradients are added up; None for all of its share. keep_last:
    checkpoints that a training has at a time, of which the last is gone on from. keep_every: the checkpoints after a multiple of
    so many steps stay after the run's end; None for none.
    """

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
    parallel: Literal["none", "ddp", "fsdp"]
    reshard_after_forward: Literal["auto"] | bool
    micro_batch: Annotated[int, within(1, 2**20)] | None
    keep_last: Annotated[int, within(1, 2**10)]
    keep_every: Count | None

    def __post_init__(self) -> None:
        if self.parallel != "none" and self.jobs not in ("auto", 1):
            raise Refusal("jobs", self.jobs, f"auto and 1 with compute.parallel={self.parallel}, where all ranks train one run")
        if self.cuda_graph is True and (self.parallel != "none" or self.micro_batch is not None):
            with_ = f"parallel={self.parallel}" if self.parallel != "none" else f"micro_batch={self.micro_batch}"
            raise Refusal("cuda_graph", True, f"auto and false with compute.{with_}, of which no step is one graph")


Seed = Annotated[int, within(0, 2**32 - 1)]


def check_one_place(compute: Compute, other: Compute) -> None:
    """Raises RequestError where two cells of one run ask for two devices, logs or ways to share it out: it is computed once."""
    for key in ("device", "threads", "log", "parallel", "micro_batch"):
        one, two = getattr(compute, key), getattr(other, key)
        if one != two:
            raise RequestError(f"compute.{key} is {one} and {two} for one run, permitted is one value a request")
