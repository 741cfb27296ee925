"""Parts that several mixers share."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backends import load
from models.initialization import fan_in_normal_, normal_, uniform_
from models.ops import short_convolution

STEP_SIZES = 1e-3, 1e-1
"""Between which Mamba and all who took its decay draw the step sizes that a model starts with, log-uniformly."""


class BlockDiagonalLinear(nn.Module):
    """A linear map with bias of each block of channels by itself, [..., num_blocks * d_in] -> [..., num_blocks, d_out]."""

    def __init__(self, *, num_blocks: int, d_in: int, d_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_blocks, d_in, d_out))
        self.bias = nn.Parameter(torch.empty(num_blocks, d_out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("...hi,hio->...ho", x.unflatten(-1, self.weight.shape[:2]), self.weight) + self.bias

    def reset_parameters(self, generator: torch.Generator) -> None:
        normal_(self.weight, std=self.weight.shape[1] ** -0.5, generator=generator)
        nn.init.zeros_(self.bias)


def linear_maps(model: nn.Module) -> list[nn.Linear | BlockDiagonalLinear]:
    """The modules of a model whose `weight` is that of a linear map: training decays it, and decoding may keep it narrow."""
    return [module for module in model.modules() if isinstance(module, nn.Linear | BlockDiagonalLinear)]


def linear_flops_per_token(module: nn.Module) -> float:
    """Contractions of the linear maps and short convolutions in a module: a weight is multiplied and added once a token."""
    convolutions = [part for part in module.modules() if isinstance(part, ShortConvolution)]
    return 2.0 * sum(part.weight.numel() for part in (*linear_maps(module), *convolutions))


def reset_children(module: nn.Module, generator: torch.Generator) -> None:
    """Fills what a module is made of in the order of its parts: linear maps first, their biases with 0, then whatever else."""
    linears = [part for part in module.children() if isinstance(part, nn.Linear)]
    for linear in linears:
        fan_in_normal_(linear.weight, generator=generator)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
    for part in module.children():
        if part not in linears:
            part.reset_parameters(generator)


class ShortConvolution(nn.Module):
    """Causal depthwise convolution over time, y_t = sum_j w_j * x_{t-j} with j < width; no bias."""

    def __init__(self, *, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, width))
        self.kernel = load(short_convolution, "triton")

    def forward(self, x: Tensor, state: Tensor, *, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x: [B, T, channels]; state: the last width - 1 inputs [B, width - 1, channels]; starts: [B, T] bool.

        Returns the output in the shape and dtype of x, and the new state in the dtype of the old one.
        """
        convolve, kernel = short_convolution.convolve, self.kernel
        if kernel is not None and kernel.suits is not None and kernel.suits(x):
            convolve = kernel.computes
        return convolve(x, self.weight, state, starts=starts), short_convolution.last_inputs(x, state, starts=starts)

    def init_state(self, batch_size: int) -> Tensor:
        channels, width = self.weight.shape
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        return torch.zeros(batch_size, width - 1, channels, dtype=dtype, device=self.weight.device)

    def reset_parameters(self, generator: torch.Generator) -> None:
        fan_in_normal_(self.weight, generator=generator)


class OutputGate(nn.Module):
    """sigmoid(W x + b), or "swish", which multiplies that by W x + b; W is W_2 W_1 over `rank` numbers, or one matrix."""

    def __init__(self, *, d_model: int, width: int, rank: int | None, activation: Literal["swish", "sigmoid"]) -> None:
        super().__init__()
        self.bottleneck = None if rank is None else nn.Linear(d_model, rank, bias=False)
        self.projection = nn.Linear(d_model if rank is None else rank, width)
        self.activation = F.silu if activation == "swish" else torch.sigmoid

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, d_model] -> [B, T, width], in the dtype that the linear map gives."""
        return self.activation(self.projection(x if self.bottleneck is None else self.bottleneck(x)))

    def reset_parameters(self, generator: torch.Generator) -> None:
        reset_children(self, generator)


class HeadRMSNorm(nn.Module):
    """RMSNorm of every head by itself, with a weight for each of its dimensions (MesaNet, RMSNorm_h)."""

    def __init__(self, *, num_heads: int, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_heads, dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., H, dim], in its own dtype."""
        return F.rms_norm(x, self.weight.shape[-1:], eps=self.eps) * self.weight

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.ones_(self.weight)


class ScalarGate(nn.Module):
    """One logit a head and token, W x + b; `initial` is the gate's sigmoid at the start, in (0, 1)."""

    def __init__(self, *, d_model: int, num_heads: int, initial: float) -> None:
        super().__init__()
        self.projection = nn.Linear(d_model, num_heads)
        self.initial = initial

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, d_model] -> logits [B, T, H] in float32 or wider."""
        logits = self.projection(x)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def reset_parameters(self, generator: torch.Generator) -> None:
        fan_in_normal_(self.projection.weight, generator=generator)
        nn.init.constant_(self.projection.bias, torch.logit(torch.tensor(self.initial)).item())


class MambaDecay(nn.Module):
    """log(gamma) = -rate softplus(W x + b), the decay of Mamba2 (arXiv 2405.21060) as a forget gate; softplus is a step size.

    A rate a head, and a step size a head or, with `channels`, one for every channel of a head. W is W_2 W_1 over `rank`
    numbers, or one matrix. With `bound` it is -bound sigmoid(rate (W x + b)), which forgets no more than that in a token.
    At the start rates are uniform in (rates[0], rates[1]] and softplus(b) is log-uniform in STEP_SIZES.
    """

    def __init__(
        self,
        *,
        d_model: int,
        num_heads: int,
        channels: int | None,
        rank: int | None,
        bound: float | None,
        rates: tuple[float, float],
    ) -> None:
        super().__init__()
        width = num_heads * (channels or 1)
        self.bottleneck = None if rank is None else nn.Linear(d_model, rank, bias=False)
        self.projection = nn.Linear(d_model if rank is None else rank, width, bias=False)
        self.step_size_bias = nn.Parameter(torch.empty(width))
        self.log_rate = nn.Parameter(torch.empty(num_heads))
        self.channels, self.bound, self.rates = channels, bound, rates

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, d_model] -> log(gamma) <= 0, [B, T, H] or [B, T, H, channels], in float32 or wider."""
        logits = self.projection(x if self.bottleneck is None else self.bottleneck(x))
        wide = torch.promote_types(logits.dtype, torch.float32)
        logits, rate = logits.to(wide) + self.step_size_bias, self.log_rate.to(wide).exp()
        if self.channels is not None:
            logits, rate = logits.unflatten(-1, (-1, self.channels)), rate.unsqueeze(-1)
        return -rate * F.softplus(logits) if self.bound is None else -self.bound * torch.sigmoid(rate * logits)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator) -> None:
        reset_children(self, generator)
        low, high = map(math.log, STEP_SIZES)
        step_size = uniform_(self.step_size_bias, low=low, high=high, generator=generator).exp()
        # softplus(b) = s, hence b = log(exp(s) - 1) = s + log(1 - exp(-s)), which is exact near 0.
        self.step_size_bias.copy_(step_size + torch.log(-torch.expm1(-step_size)))
        low, high = self.rates
        # Downwards from the highest, which may be drawn: a rate of 0 would have no logarithm.
        uniform_(self.log_rate, low=high, high=low, generator=generator).log_()
