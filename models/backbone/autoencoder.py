"""The backbone for sequences that are asked again from what is held after them (MAD's compression, arXiv 2403.17844)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbone.blocks import RMSNorm, Size
from models.backbone.language_model import LanguageModel
from models.components import linear_flops_per_token, reset_children
from models.mixer import SequenceMixer


class Hidden(nn.Module):
    """A layer of the decoder: gelu(linear(norm(x))), without a bias."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.norm = RMSNorm(size.d_model, eps=size.norm_eps)
        self.linear = nn.Linear(size.d_model, size.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.linear(self.norm(x)))

    def reset_parameters(self, generator: torch.Generator) -> None:
        reset_children(self, generator)


class AutoEncoder(LanguageModel):
    """Ids [B, T] to logits [B, T, vocab_size], which depend on the sequence through its last features alone.

    The last features plus a position (sines and cosines, arXiv 1706.03762, section 3.5) go through the decoder, then through the
    last norm and the head. An AutoEncoder reads whole sequences: neither a state that is carried on nor a step has a meaning.

    decoder_layers: linear maps of the decoder, the head not among them.
    """

    def __init__(self, size: Size, mixers: Sequence[SequenceMixer], *, vocab_size: int, decoder_layers: int) -> None:
        super().__init__(size, mixers, vocab_size=vocab_size)
        self.decoder = nn.ModuleList(Hidden(size) for _ in range(decoder_layers))

    def finish(self, x: Tensor) -> Tensor:
        decoded = x[:, -1:] + positions(x.shape[1], self.d_model, x)
        for hidden in self.decoder:
            decoded = hidden(decoded)
        return super().finish(decoded)

    def head_flops_per_token(self) -> float:
        return super().head_flops_per_token() + linear_flops_per_token(self.decoder)

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        super().reset_parameters(seed)
        # A generator of its own leaves the blocks as they are in a model without a decoder.
        reset_children(self.decoder, torch.Generator().manual_seed(seed))


def positions(seq_len: int, d_model: int, like: Tensor) -> Tensor:
    """The sines and cosines of every position [seq_len, d_model], of the dtype and on the device of `like`."""
    places = torch.arange(seq_len, device=like.device, dtype=torch.float32)
    rates = 10_000.0 ** (-torch.arange(0, d_model, 2, device=like.device, dtype=torch.float32) / d_model)
    angles = places[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :d_model].to(like.dtype)
