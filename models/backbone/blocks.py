"""A pre-norm residual block of a sequence mixer and a SwiGLU (MesaNet, arXiv 2506.05233, App. E)."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conf.settings import OUTSIDE, Name, Settings, above, within
from models.components import linear_flops_per_token, reset_children
from models.mixer import SequenceMixer, State
from models.ops.cross_entropy import MAX_SOFT_CAP

Width = Annotated[int, within(1, 2**20)]


class Size(Settings, kw_only=True):
    """What is one in all models of a size, whatever their mixers; a mixer reads what it needs through its own settings.

    mlp_dim: 0 for blocks without an MLP.
    """

    name: Annotated[Name, OUTSIDE]
    d_model: Width
    num_blocks: Annotated[int, within(1, 2**10)]
    num_heads: Width
    head_dim: Width
    mlp_dim: Annotated[int, within(0, 2**24)]
    norm_eps: Annotated[float, above(0, 1)]
    logit_soft_cap: Annotated[float, above(0, MAX_SOFT_CAP)]


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis; computed in float32 (Zhang & Sennrich 2019)."""

    def __init__(self, dim: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.rms_norm(x.to(wide), self.weight.shape, self.weight.to(wide), self.eps).to(x.dtype)

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.ones_(self.weight)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases (Shazeer 2020)."""

    def __init__(self, *, d_model: int, mlp_dim: int) -> None:
        super().__init__()
        self.gate_projection = nn.Linear(d_model, mlp_dim, bias=False)
        self.up_projection = nn.Linear(d_model, mlp_dim, bias=False)
        self.output_projection = nn.Linear(mlp_dim, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.output_projection(F.silu(self.gate_projection(x)) * self.up_projection(x))

    def forward_flops_per_token(self) -> float:
        return linear_flops_per_token(self)

    def reset_parameters(self, generator: torch.Generator) -> None:
        reset_children(self, generator)


class Block(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)); with size.mlp_dim=0 the first of the two alone."""

    def __init__(self, size: Size, mixer: SequenceMixer) -> None:
        super().__init__()
        self.mixer_norm = RMSNorm(size.d_model, eps=size.norm_eps)
        self.mixer = mixer
        self.mlp_norm: RMSNorm | None = None
        self.mlp: SwiGLU | None = None
        if size.mlp_dim:
            self.mlp_norm = RMSNorm(size.d_model, eps=size.norm_eps)
            self.mlp = SwiGLU(d_model=size.d_model, mlp_dim=size.mlp_dim)

    def forward(self, x: Tensor, state: State | None, *, starts: Tensor | None) -> tuple[Tensor, State]:
        mixed, state = self.mixer(self.mixer_norm(x), state, starts=starts)
        x, added = self._through_mlp(x, mixed)
        return x + added, state

    def _through_mlp(self, x: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor]:
        """The stream behind the mixer and the MLP, in two terms [..., d_model]: the second is what was computed last."""
        if self.mlp is None or self.mlp_norm is None:
            return x, mixed
        x = x + mixed
        return x, self.mlp(self.mlp_norm(x))

    def forward_flops_per_token(self, seq_len: int) -> float:
        """Contractions of the mixer and the MLP, see `SequenceMixer.forward_flops_per_token`."""
        mlp = 0.0 if self.mlp is None else self.mlp.forward_flops_per_token()
        return self.mixer.forward_flops_per_token(seq_len) + mlp

    def output(self, x: Tensor, *, added: Tensor | None, starts: Tensor | None) -> tuple[Tensor, Tensor]:
        """What `forward` makes of whole sequences x + added, without the state: two terms, whose sum is the stream.

        The next block adds them up: a compiler does so in the kernel of that block's norm, forward and backward. It also leaves
        out what only the state needs.
        """
        x = x if added is None else x + added
        return self._through_mlp(x, self.mixer(self.mixer_norm(x), None, starts=starts)[0])

    def step_(self, x_t: Tensor, state: State) -> Tensor:
        """One token [B, d_model], the new state written into the tensors of `state`."""
        x_t, added = self._through_mlp(x_t, self.mixer.step_(self.mixer_norm(x_t), state))
        return x_t + added

    def reset_parameters(self, generator: torch.Generator, *, output_variance_scale: float) -> None:
        reset_children(self, generator)
        for part in (self.mixer,) if self.mlp is None else (self.mixer, self.mlp):
            # The stream sums two contributions a block; scaling their variance keeps it near 1 at any depth.
            with torch.no_grad():
                part.output_projection.weight.mul_(math.sqrt(output_variance_scale))
