"""The published gated linear attention (GLA, Yang et al. 2023, arXiv 2312.06635, section 4.4), on the shared backbone.

Glossary, our name to the paper's letter: query q, key k, value v, log_decay log(alpha), decay_temperature tau, gate r
(of the output), state G (S, transposed).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conf.settings import Count, Positive, Refusal
from models.backends import resolve
from models.components import HeadRMSNorm, linear_flops_per_token
from models.linear_rnn import NormEps
from models.mixer import SequenceMixer, State
from models.ops import gla


class GatedLinearAttention(SequenceMixer):
    """G_t = G_{t-1} diag(alpha_t) + v_t k_t^T, o_t = G_t q_t, out = W (norm(o_t) * silu(W_r x_t + b_r)).

    alpha_t = sigmoid(W_2 W_1 x_t + b)^(1 / tau), a forget gate for every key dimension, by a bottleneck of decay_rank numbers.
    There is no short convolution and no feature map. The norm of a head is RMSNorm, as in all arms and the authors' code
    (LayerNorm in the paper); it takes out the scale that they give q.
    """

    name = "gla_original.GatedLinearAttention"
    op = gla

    class Settings(SequenceMixer.Settings, kw_only=True):
        """key_ratio: key_dim / value_dim of a head. decay_temperature: tau. chunk_size: tokens a chunk of the chunked form."""

        num_heads: Count
        value_dim: Count
        key_ratio: Positive
        decay_rank: Count
        decay_temperature: Positive
        norm_eps: NormEps
        chunk_size: Count

        def __post_init__(self) -> None:
            if self.key_dim < 1 or self.key_dim != self.value_dim * self.key_ratio:
                raise Refusal("key_ratio", self.key_ratio, f"numbers whose product with value_dim {self.value_dim} is whole")

        @property
        def key_dim(self) -> int:
            return int(self.value_dim * self.key_ratio)

    settings: Settings

    def __init__(self, settings: Settings, *, d_model: int, backend: str) -> None:
        super().__init__(settings, d_model=d_model, backend=backend)
        self.num_heads, self.key_dim, self.value_dim = settings.num_heads, settings.key_dim, settings.value_dim
        keys, values = self.num_heads * self.key_dim, self.num_heads * self.value_dim
        self.query_key_projection = nn.Linear(d_model, 2 * keys, bias=False)
        self.value_projection = nn.Linear(d_model, values, bias=False)
        self.decay_bottleneck = nn.Linear(d_model, settings.decay_rank, bias=False)
        self.decay_projection = nn.Linear(settings.decay_rank, keys)
        self.gate_projection = nn.Linear(d_model, values)
        self.norm = HeadRMSNorm(num_heads=self.num_heads, dim=self.value_dim, eps=settings.norm_eps)
        self.output_projection = nn.Linear(values, d_model, bias=False)

    def forward(self, x: Tensor, state: State | None = None, *, starts: Tensor | None = None) -> tuple[Tensor, State]:
        G = self.init_state(x.shape[0])["G"] if state is None else state["G"]
        q, k = self.query_key_projection(x).unflatten(-1, (2, self.num_heads, self.key_dim)).unbind(2)
        v = self.value_projection(x).unflatten(-1, (self.num_heads, self.value_dim))
        log_decay = self.log_decay(x)
        if starts is not None:
            log_decay = log_decay.masked_fill(starts[..., None, None], float("-inf"))
        op = resolve(gla, self.kernel, length=x.shape[1], chunk_size=self.settings.chunk_size)
        # Autocast would narrow the products of an op, whose state is a sum over the whole sequence.
        with torch.autocast(x.device.type, enabled=False):
            o, G = op(q=q, k=k, v=v, log_decay=log_decay, state=G)
        gate = F.silu(self.gate_projection(x))
        return self.output_projection(self.norm(o).to(gate.dtype).flatten(2) * gate), {"G": G}

    def log_decay(self, x: Tensor) -> Tensor:
        """log(alpha) < 0, [B, T, H, K] in float32 or wider."""
        logits = self.decay_projection(self.decay_bottleneck(x)).unflatten(-1, (self.num_heads, self.key_dim))
        return F.logsigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32))) / self.settings.decay_temperature

    def init_state(self, batch_size: int) -> State:
        return {"G": self.zeros(batch_size, self.num_heads, self.value_dim, self.key_dim)}

    def forward_flops_per_token(self, seq_len: int) -> float:
        """The linear maps, the outer product written into G and the read-out."""
        return linear_flops_per_token(self) + 4.0 * self.num_heads * self.value_dim * self.key_dim
