"""AdamW, its schedule and the order of the data (MesaNet, arXiv 2506.05233, App. G.5)."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import nn

from models.components import linear_maps
from suite.compute.settings import Train


def build_optimizer(model: nn.Module, train: Train) -> torch.optim.AdamW:
    """AdamW that decays the weights of linear maps alone: not the embedding, norms, gates' biases, convolutions or Lambda.

    With train.decays=all it decays these, too.
    On a GPU the learning rate is a tensor there, so that an update needs nothing from the host and can be captured.
    """
    decayed = {id(p) for p in model.parameters()} if train.decays == "all" else {id(m.weight) for m in linear_maps(model)}
    groups = [
        {"params": [p for p in model.parameters() if id(p) in decayed], "weight_decay": train.weight_decay},
        {"params": [p for p in model.parameters() if id(p) not in decayed], "weight_decay": 0.0},
    ]
    device = next(model.parameters()).device
    lr = train.lr if device.type == "cpu" else torch.tensor(train.lr, device=device)
    return torch.optim.AdamW(groups, lr=lr, betas=train.betas, eps=train.eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the rate of the next step, for all parameters."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def learning_rate(step: int, train: Train) -> float:
    """The rate of a step, numbered from 0: linear from train.warmup_from to train.lr, then a cosine to the lowest rate.

    The lowest rate is train.final_lr, or else train.final_lr_fraction of train.lr; with train.schedule=constant it is train.lr.
    """
    step -= step % train.hold_steps
    warmup, steps = train.warmup_steps, train.steps
    if step < warmup:
        return train.warmup_from + (train.lr - train.warmup_from) * (step + 1) / warmup
    if train.schedule == "constant":
        return train.lr
    low = train.final_lr_fraction if train.final_lr is None else train.final_lr / train.lr
    done = (step - warmup) / max(1, steps - warmup)
    return train.lr * (low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * done)))


def example_indices(step: int, *, batch_size: int, num_examples: int | None, seed: int) -> list[int]:
    """The training examples of a step: a fresh permutation every epoch, a function of its arguments alone.

    All models of a seed see the same examples in the same order. A split without a bound is read in order.
    """
    first = step * batch_size
    if num_examples is None:
        return list(range(first, first + batch_size))
    epochs, places = np.divmod(np.arange(first, first + batch_size), num_examples)
    orders = [_epoch_order(epoch, num_examples, seed)[places[epochs == epoch]] for epoch in range(epochs[0], epochs[-1] + 1)]
    return np.concatenate(orders).tolist()


@functools.lru_cache(maxsize=2)
def _epoch_order(epoch: int, num_examples: int, seed: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(num_examples)
