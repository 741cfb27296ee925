"""What a model costs: parameters, state and contractions, counted without allocating anything."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from models.build import Model, Size
from suite.compute.interface import Interface, unfilled_backbone
from suite.request.schema import Config


@dataclass(frozen=True)
class Cost:
    """parameters: trained numbers. state_bytes: held per sequence after seq_len tokens, in the precision of the training.

    flops_per_token: contractions of the forward pass in recurrent form, averaged over seq_len tokens.
    """

    parameters: int
    state_bytes: int
    flops_per_token: float


def model_cost(config: Config, *, interface: Interface) -> Cost:
    """The cost of a settled configuration's model on sequences of its task's length."""
    return _cost(config.model, config.size, interface, config.backend, config.task.seq_len, product_dtype(config.train.autocast))


def product_dtype(autocast: str) -> torch.dtype:
    """What matrix products give under this train.autocast."""
    return torch.bfloat16 if autocast == "bfloat16" else torch.float32


@functools.cache
def _cost(model: Model, size: Size, interface: Interface, backend: str, seq_len: int, dtype: torch.dtype) -> Cost:
    """Kept, since the arms of a sweep share their reference."""
    built = unfilled_backbone(interface, model, size, backend=backend, device=torch.device("meta"))
    return Cost(
        parameters=sum(parameter.numel() for parameter in built.parameters()),
        state_bytes=built.state_bytes(seq_len, dtype),
        flops_per_token=built.forward_flops_per_token(seq_len),
    )
