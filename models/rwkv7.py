"""RWKV-7's time mixing (Peng et al. 2025, arXiv 2503.14456, section 4.1), on the shared backbone.

Glossary, our name to the paper's letter: query r (receptance), key k (replacement key), removal key kappa, value v, log_decay
log(w), rate a (in-context learning rate), gate g, bonus rho, state G (wkv), token shift mu.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conf.settings import Count, Positive, Share
from models.backends import resolve
from models.components import linear_flops_per_token, reset_children
from models.initialization import uniform_
from models.linear_rnn import NormEps
from models.mixer import SequenceMixer, State
from models.ops import diagonal_plus_low_rank

MIXES = ("query", "decay", "key", "value", "rate", "gate")
STRONGEST = math.exp(-0.5)
"""A log_decay is above -STRONGEST: at least 0.545 of a channel is left by a token."""


class RWKV7(SequenceMixer):
    """A delta rule that erases by one key and writes by another, with a decay and a rate for every key dimension.

        x_m = x_t + mu_m * (x_{t-1} - x_t)                            for each m of query, decay, key, value, rate, gate
        r, c, v = linear(x_query), linear(x_key), linear(x_value)     c is what both keys are made of
        w = exp(-e^(-1/2) sigmoid(w_0 + tanh(x_decay W_1) W_2)),   a = sigmoid(a_0 + x_rate A_1 A_2)
        kappa = unit(c * k_k) in every head,   k = c * (1 + (a - 1) * k_a)
        G_t = G_{t-1} diag(w_t) - (G_{t-1} kappa_t) (a_t * kappa_t)^T + v_t k_t^T
        out = linear((norm(G_t r_t) + (sum_i r_i rho_i k_i) v_t) * (sigmoid(x_gate G_1) G_2))

    Erasing reads the state before its decay, none of which is below 0.545.
    The norm is a LayerNorm of every head with weight and bias (GroupNorm), whose eps counts: nothing scales r.

    Ours against the authors': neither the value residual, by which layers mix in the values of the first one, nor the channel
    mixing of their block, since a mixer here sees one layer and blocks have one MLP. The linear map of the output starts as
    everywhere here and not at 0, where no other parameter of the layer would have a gradient at first. Theirs starts shifts,
    decays and the norm's weight by the layer's place in the depth; here all layers take one place, `depth`, and a weight of 1.
    """

    name = "rwkv7.RWKV7"
    op = diagonal_plus_low_rank

    class Settings(SequenceMixer.Settings, kw_only=True):
        """decay_rank, rate_rank, gate_rank: r in the ranks of w, a and g, which are max(32, 32 round(r sqrt(d_model) / 32)).

        depth: the place of the layer, from 0 for the first to 1 for the last, that shifts and decays start by.
        chunk_size: tokens a chunk of the chunked form.
        """

        num_heads: Count
        key_dim: Count
        value_dim: Count
        decay_rank: Positive
        rate_rank: Positive
        gate_rank: Positive
        depth: Share
        norm_eps: NormEps
        chunk_size: Count

    settings: Settings

    def __init__(self, settings: Settings, *, d_model: int, backend: str) -> None:
        super().__init__(settings, d_model=d_model, backend=backend)
        self.num_heads, self.key_dim, self.value_dim = settings.num_heads, settings.key_dim, settings.value_dim
        keys, values = self.num_heads * self.key_dim, self.num_heads * self.value_dim
        self.token_shift = TokenShift(d_model=d_model, depth=settings.depth)
        self.query_projection = nn.Linear(d_model, keys, bias=False)
        self.key_projection = nn.Linear(d_model, keys, bias=False)
        self.value_projection = nn.Linear(d_model, values, bias=False)
        ranks = [_rank(each, d_model) for each in (settings.decay_rank, settings.rate_rank, settings.gate_rank)]
        self.decay = LowRank(d_model, ranks[0], keys, activation=torch.tanh, bias=True)
        self.rate = LowRank(d_model, ranks[1], keys, activation=None, bias=True)
        self.gate = LowRank(d_model, ranks[2], values, activation=torch.sigmoid, bias=False)
        self.removal_scale, self.rate_in_key, self.bonus = (nn.Parameter(torch.empty(keys)) for _ in range(3))
        self.norm_weight, self.norm_bias = (nn.Parameter(torch.empty(values)) for _ in range(2))
        self.output_projection = nn.Linear(values, d_model, bias=False)

    def forward(self, x: Tensor, state: State | None = None, *, starts: Tensor | None = None) -> tuple[Tensor, State]:
        state = self.init_state(x.shape[0]) if state is None else state
        (x_query, x_decay, x_key, x_value, x_rate, x_gate), shift = self.token_shift(x, state["x"], starts=starts)
        r, c, v = self.query_projection(x_query), self.key_projection(x_key), self.value_projection(x_value)
        r, v = self._by_head(r), v.unflatten(-1, (self.num_heads, self.value_dim))
        log_decay, rate = self.log_decay(x_decay), torch.sigmoid(self._wide(self.rate(x_rate)))
        kappa, k = self._keys(self._wide(c), rate)
        floor = -STRONGEST
        if starts is not None:
            log_decay, floor = log_decay.masked_fill(starts[..., None, None], float("-inf")), float("-inf")
        inputs = {"q": r, "k": k, "v": v, "e": kappa, "a": self._by_head(rate) * kappa, "log_decay": log_decay}
        op = resolve(diagonal_plus_low_rank, self.kernel, length=r.shape[1], chunk_size=self.settings.chunk_size)
        # Autocast would narrow the products of an op, whose state is a sum over the whole sequence.
        with torch.autocast(x.device.type, enabled=False):
            o, G = op(**inputs, state=state["G"], floor=floor)
        bonus = (self._wide(r) * self._by_head(self.bonus) * k).sum(-1, keepdim=True) * v
        y = (self._norm(o) + bonus.flatten(2)).to(x.dtype)
        return self.output_projection(y * self.gate(x_gate)), {"x": shift, "G": G}

    def log_decay(self, x: Tensor) -> Tensor:
        """log(w) in (-STRONGEST, 0), [B, T, H, K] in float32 or wider."""
        return self._by_head(-STRONGEST * torch.sigmoid(self._wide(self.decay(x))))

    def _keys(self, c: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
        """kappa and k, both [B, T, H, K]."""
        kappa = F.normalize(self._by_head(c * self.removal_scale), dim=-1)
        return kappa, self._by_head(c * (1.0 + (rate - 1.0) * self.rate_in_key))

    def _norm(self, o: Tensor) -> Tensor:
        """[B, T, H, V] -> [B, T, H V], a group of the norm being a head."""
        flat = o.flatten(2).flatten(0, 1)
        weight, bias = self.norm_weight.to(o.dtype), self.norm_bias.to(o.dtype)
        return F.group_norm(flat, self.num_heads, weight, bias, self.settings.norm_eps).view(*o.shape[:2], -1)

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.key_dim))

    @staticmethod
    def _wide(x: Tensor) -> Tensor:
        return x.to(torch.promote_types(x.dtype, torch.float32))

    def init_state(self, batch_size: int) -> State:
        """The token before, for the shift, [B, d_model], and G [B, H, V, K]."""
        x = self.zeros(batch_size, self.output_projection.out_features)
        return {"x": x, "G": self.zeros(batch_size, self.num_heads, self.value_dim, self.key_dim)}

    def forward_flops_per_token(self, seq_len: int) -> float:
        """Linear maps, what G returns for kappa, the outer products erased from G and written into it, and the read-out."""
        return linear_flops_per_token(self) + 8.0 * self.num_heads * self.value_dim * self.key_dim

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator) -> None:
        super().reset_parameters(generator)
        bound = 0.5 * self.output_projection.out_features**-0.5
        for linear, scale in ((self.query_projection, 1.0), (self.key_projection, 0.1), (self.value_projection, 1.0)):
            uniform_(linear.weight, low=-scale * bound, high=scale * bound, generator=generator)
        channel = torch.arange(len(self.bonus), dtype=torch.float64)
        along = channel / max(len(channel) - 1, 1)
        # From -1 to 1 over the channels of a head, bent towards 0.
        zigzag = 2.0 * (channel % self.key_dim) / max(self.key_dim - 1, 1) - 1.0
        zigzag = zigzag * zigzag.abs()
        decay = -6.0 + 6.0 * along ** (1.0 + self.settings.depth**0.3) + 0.5 + 2.5 * zigzag
        self.decay.start_at(decay)
        self.rate.start_at(-0.19 + 0.3 * zigzag + 0.4 * (along - 0.5))
        self.removal_scale.copy_(0.71 - 0.1 * (along - 0.5))
        nn.init.constant_(self.rate_in_key, 1.02)
        nn.init.constant_(self.bonus, -0.04)
        nn.init.ones_(self.norm_weight)
        nn.init.zeros_(self.norm_bias)


class TokenShift(nn.Module):
    """x_t + mu_m * (x_{t-1} - x_t) for each of MIXES, 0 before the first token; `weight` is mu [6, d_model]."""

    def __init__(self, *, d_model: int, depth: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(len(MIXES), d_model))
        self.depth = depth

    def forward(self, x: Tensor, state: Tensor, *, starts: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """x: [B, T, d_model]; state: the token before [B, d_model]; starts: [B, T] bool, which have none before them.

        Returns six tensors in the shape and dtype of x, and the new state in the dtype of the old one.
        """
        before = torch.cat([state.unsqueeze(1).to(x.dtype), x[:, :-1]], dim=1)
        if starts is not None:
            before = before.masked_fill(starts.unsqueeze(-1), 0.0)
        return [torch.addcmul(x, mu, before - x) for mu in self.weight.to(x.dtype)], x[:, -1].to(state.dtype)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator) -> None:
        share = torch.arange(self.weight.shape[1], dtype=torch.float64) / self.weight.shape[1]
        powers = {"query": 0.2, "decay": 0.9, "key": 0.7, "value": 0.7, "rate": 0.9, "gate": 0.2}
        for row, name in zip(self.weight, MIXES, strict=True):
            row.copy_(1.0 - share ** (powers[name] * (1.0 - self.depth)))


class LowRank(nn.Module):
    """activation(x W_1) W_2, with a bias or not; an activation of None is none. W_1 starts at 0, W_2 a tenth of orthogonal."""

    def __init__(self, d_in: int, rank: int, d_out: int, *, activation: Callable[[Tensor], Tensor] | None, bias: bool) -> None:
        super().__init__()
        self.bottleneck = nn.Linear(d_in, rank, bias=False)
        self.projection = nn.Linear(rank, d_out, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bottleneck(x)
        return self.projection(inner if self.activation is None else self.activation(inner))

    @torch.no_grad()
    def start_at(self, bias: Tensor) -> None:
        self.projection.bias.copy_(bias)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator) -> None:
        reset_children(self, generator)
        nn.init.zeros_(self.bottleneck.weight)
        self.projection.weight.copy_(nn.init.orthogonal_(torch.empty(self.projection.weight.shape), 0.1, generator=generator))


def _rank(scale: float, d_model: int) -> int:
    return max(32, 32 * round(scale * math.sqrt(d_model) / 32))
