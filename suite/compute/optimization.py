"""The optimiser, AdamW as in MesaNet (arXiv 2506.05233, App. G.5) or Muon beside it, and its schedule."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.backbone.blocks import Block
from models.components import linear_maps
from suite.compute.muon import MuonAdamW
from suite.compute.pieces import PiecewiseAdamW
from suite.compute.settings import Train


def build_optimizer(model: nn.Module, train: Train, *, kind: type[torch.optim.AdamW] = PiecewiseAdamW) -> torch.optim.Optimizer:
    """An optimiser that decays the weights of linear maps alone: not the embedding, norms, gates' biases, convolutions or Lambda.

    With train.decays=all it decays these, too.
    On a GPU the learning rate is a tensor there, so that an update needs nothing from the host and can be captured. kind: the
    class of AdamW.
    """
    matrices = _matrices(model) if train.optimizer == "muon" else []
    muon = {id(p) for p in matrices}
    decayed = {id(p) for p in model.parameters()} if train.decays == "all" else {id(m.weight) for m in linear_maps(model)}
    rest = [p for p in model.parameters() if id(p) not in muon]
    groups = [
        {"params": [p for p in rest if id(p) in decayed], "weight_decay": train.weight_decay},
        {"params": [p for p in rest if id(p) not in decayed], "weight_decay": 0.0},
    ]
    device = next(model.parameters()).device
    lr = train.lr if device.type == "cpu" else torch.tensor(train.lr, device=device)
    if matrices:
        return MuonAdamW(matrices, groups, train, lr=lr)
    return kind(groups, lr=lr, betas=train.betas, eps=train.eps, fused=True)


def _matrices(model: nn.Module) -> list[Tensor]:
    """The weights of linear maps within blocks: hidden matrices, neither the embedding nor a head, nor block-diagonal maps."""
    blocks = [part for part in model.modules() if isinstance(part, Block)]
    return [linear.weight for block in blocks for linear in linear_maps(block) if isinstance(linear, nn.Linear)]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the rate of the next step, for all parameters."""
    # One tensor may be the rate of several groups.
    for tensor in {id(group["lr"]): group["lr"] for group in optimizer.param_groups if isinstance(group["lr"], Tensor)}.values():
        tensor.fill_(rate)
    for group in optimizer.param_groups:
        if not isinstance(group["lr"], Tensor):
            group["lr"] = rate


def leave_out(optimizer: torch.optim.Optimizer, unfit: Tensor) -> None:
    """Has the next step leave weights and moments alone where `unfit` [] is true on their device, which nobody waits for.

    A fused AdamW reads `found_inf`, by which torch's scaler of gradients leaves steps out, too.
    """
    vars(optimizer)["found_inf"] = unfit.float()


def learning_rate(step: int, train: Train) -> float:
    """The rate of a step, numbered from 0: linear from train.warmup_from to train.lr, then as train.schedule says.

    cosine: half a cosine to the lowest rate. constant: train.lr. wsd (warm-up, stable, decay; MiniCPM, arXiv 2404.06395):
    train.lr, and over the last train.decay_steps down to the lowest rate, in a line or as 1 - sqrt (Hägele et al., arXiv
    2405.18392).
    The lowest rate is train.final_lr, or else train.final_lr_fraction of train.lr.
    """
    step -= step % train.hold_steps
    if step < train.warmup_steps:
        return train.warmup_from + (train.lr - train.warmup_from) * (step + 1) / train.warmup_steps
    if train.schedule == "constant":
        return train.lr
    low = train.final_lr_fraction if train.final_lr is None else train.final_lr / train.lr
    return train.lr * (low + (1.0 - low) * _height(step, train))


def _height(step: int, train: Train) -> float:
    """How high a step behind the warm-up is between the lowest rate, 0, and the peak, 1."""
    if train.decay_steps is None:
        done = (step - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
        return 0.5 * (1.0 + math.cos(math.pi * done))
    done = max(0.0, step - train.steps + train.decay_steps) / train.decay_steps
    return 1.0 - (math.sqrt(done) if train.decay_shape == "sqrt" else done)
