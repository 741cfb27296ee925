"""Initial values, drawn on the CPU in float32 so that one seed gives the same weights on every device."""

from __future__ import annotations

import math

import torch
from torch import Tensor


@torch.no_grad()
def normal_(tensor: Tensor, *, std: float, generator: torch.Generator) -> Tensor:
    """Fills a tensor with N(0, std^2)."""
    return tensor.copy_(torch.randn(tensor.shape, generator=generator) * std)


@torch.no_grad()
def uniform_(tensor: Tensor, *, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Fills a tensor with U(low, high)."""
    return tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)


def fan_in_normal_(weight: Tensor, *, generator: torch.Generator, variance_scale: float = 1.0) -> Tensor:
    """Fills a matrix [out, in, ...] with N(0, variance_scale / fan_in), the initialisation of MesaNet App. G and Griffin."""
    fan_in = weight[0].numel()
    return normal_(weight, std=math.sqrt(variance_scale / fan_in), generator=generator)
