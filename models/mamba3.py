"""The published Mamba-3 block with one input and output a head (SISO; arXiv 2603.15569), on the shared backbone.

Glossary, our name to the paper's letter: query C, key B, value x, gate z, step size Delta (dt), decay A, blend lambda (what of
a step's trapezoid weighs its own end), phase the sum of Delta theta, by which keys and queries turn, state S (h there),
key_dim N (state size), value_dim P (head dimension), skip D.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conf.settings import Count, Positive, Refusal, Share
from models.backends import resolve
from models.components import HeadRMSNorm, linear_flops_per_token
from models.initialization import uniform_
from models.linear_rnn import NormEps
from models.mixer import SequenceMixer, State
from models.ops import decayed_linear_attention
from models.ops.decay import join_chunks, split_chunks

TURN = 2.0 * math.pi


class Mamba3(SequenceMixer):
    """linear((S_t C_t + D x_t) * silu(z_t)), where one linear map gives z, x, B, C, dt, a, l and theta; no convolution.

        Delta = softplus(dt + bias),  A = -max(f(a), decay_floor),  alpha = exp(Delta A),  lambda = sigmoid(l)
        phi_t = phi_{t-1} + pi tanh(theta_t) Delta_t                      modulo 2 pi, in every head
        k_t   = R(phi_t) (norm(B_t) + bias),   q_t = R(phi_t) (norm(C_t) + bias)
        S_t   = alpha_t S_{t-1} + (1 - lambda_t) Delta_t alpha_t x_{t-1} k_{t-1}^T + lambda_t Delta_t x_t k_t^T

    R turns the pairs of channels (2i, 2i + 1) of the first rotated_share of the channels. f is softplus in the releases up to
    2.3.2.post1, and since June 2026 "heavy_tail": 1 + a for a >= 0, else 1 / (1 - a). S is the sum of two decayed linear
    attentions over the same decays, one of each end of the step: unlike one sum over tokens with both weights, whose weight
    of token s needs lambda_{s+1}, neither reads a later token. Where a document starts, the state before it is gone, the end
    x_{t-1} k_{t-1}^T of its first step with it, and phi starts from 0.

    Matrices start as in every mixer here; the authors take PyTorch's uniform numbers. Weight decay reaches linear maps alone;
    the authors' code spares the bias of Delta and D, and not the biases of B and C.
    """

    name = "mamba3.Mamba3"
    op = decayed_linear_attention

    class Settings(SequenceMixer.Settings, kw_only=True):
        """expand: width / d_model. value_dim: width of a head. num_groups: sets of B and C, each shared by neighbouring heads.

        rotated_share: of the channels of B and C; 0 turns none. decay_map: f. decay_floor: the least -A.
        output_norm: an RMSNorm of every head in front of the gate. step_size_min, step_size_max: range of Delta at the start,
        log-uniform. norm_eps: of all norms. chunk_size: tokens a chunk of the chunked form.
        """

        expand: Count
        key_dim: Count
        value_dim: Count
        num_groups: Count
        rotated_share: Share
        decay_map: Literal["softplus", "heavy_tail"]
        decay_floor: Positive
        output_norm: bool
        step_size_min: Positive
        step_size_max: Positive
        norm_eps: NormEps
        chunk_size: Count

        def __post_init__(self) -> None:
            if self.step_size_min > self.step_size_max:
                raise Refusal("step_size_min", self.step_size_min, f"numbers up to step_size_max, {self.step_size_max}")

    settings: Settings

    def __init__(self, settings: Settings, *, d_model: int, backend: str) -> None:
        super().__init__(settings, d_model=d_model, backend=backend)
        self.key_dim, self.value_dim, self.num_groups = settings.key_dim, settings.value_dim, settings.num_groups
        self.width = settings.expand * d_model
        if self.width % self.value_dim:
            raise Refusal("value_dim", self.value_dim, f"divisors of the width {self.width}")
        self.num_heads = self.width // self.value_dim
        if self.num_heads % self.num_groups:
            raise Refusal("num_groups", self.num_groups, f"divisors of the number of heads {self.num_heads}")
        self.num_angles = int(settings.rotated_share * self.key_dim) // 2
        keys = self.num_groups * self.key_dim
        # z, x, B, C, dt, a, l, theta
        self.widths = [self.width, self.width, keys, keys, *3 * [self.num_heads], self.num_angles]
        self.input_projection = nn.Linear(d_model, sum(self.widths), bias=False)
        self.key_norm = HeadRMSNorm(num_heads=1, dim=self.key_dim, eps=settings.norm_eps)
        self.query_norm = HeadRMSNorm(num_heads=1, dim=self.key_dim, eps=settings.norm_eps)
        self.key_bias = nn.Parameter(torch.empty(self.num_heads, self.key_dim))
        self.query_bias = nn.Parameter(torch.empty(self.num_heads, self.key_dim))
        self.step_size_bias = nn.Parameter(torch.empty(self.num_heads))
        self.skip = nn.Parameter(torch.empty(self.num_heads))
        self.output_norm: HeadRMSNorm | None = None
        if settings.output_norm:
            self.output_norm = HeadRMSNorm(num_heads=self.num_heads, dim=self.value_dim, eps=settings.norm_eps)
        self.output_projection = nn.Linear(self.width, d_model, bias=False)

    def forward(self, x: Tensor, state: State | None = None, *, starts: Tensor | None = None) -> tuple[Tensor, State]:
        state = self.init_state(x.shape[0]) if state is None else state
        read, phases = self._read(x, state["phi"], starts)
        # Autocast would narrow the products of the recurrence, whose state is a sum over the whole sequence.
        with torch.autocast(x.device.type, enabled=False):
            y, S = self._recurrence(read, state)
        y = y + self.skip.unsqueeze(-1) * read.v
        y = y if self.output_norm is None else self.output_norm(y)
        y = y * F.silu(read.gate.to(self._wide))
        last = {"phi": phases[:, -1], "k": read.k[:, -1].to(self._wide), "x": read.v[:, -1].to(self._wide)}
        return self.output_projection(y.flatten(2).to(x.dtype)), {"S": S, **last}

    def _read(self, x: Tensor, phi: Tensor, starts: Tensor | None) -> tuple[Read, Tensor]:
        """What the recurrence and the gate take of the input [B, T, d_model], and the phases [B, T, H, R]."""
        z, v, B, C, dt, a, blend, theta = self.input_projection(x).split(self.widths, dim=-1)
        step_size = F.softplus(dt.to(self._wide) + self.step_size_bias)
        a = a.to(self._wide)
        rate = F.softplus(a) if self.settings.decay_map == "softplus" else heavy_tail(a)
        log_decay = -step_size * rate.clamp(min=self.settings.decay_floor)
        if starts is not None:
            log_decay = log_decay.masked_fill(starts.unsqueeze(-1), float("-inf"))
        turned = math.pi * torch.tanh(theta.to(self._wide)).unsqueeze(2) * step_size.unsqueeze(-1)
        phases = phases_of(turned, starts, phi, chunk_size=self.settings.chunk_size)
        blend = torch.sigmoid(blend.to(self._wide))
        read = Read(
            q=self._turned(C, self.query_norm, self.query_bias, phases),
            k=self._turned(B, self.key_norm, self.key_bias, phases),
            v=v.unflatten(-1, (self.num_heads, self.value_dim)),
            log_decay=log_decay,
            before=(1.0 - blend) * step_size * log_decay.exp(),
            now=blend * step_size,
            gate=z.unflatten(-1, (self.num_heads, self.value_dim)),
        )
        return read, phases

    def _turned(self, channels: Tensor, norm: HeadRMSNorm, bias: Tensor, phases: Tensor) -> Tensor:
        """Keys or queries [B, T, H, N] of the channels [B, T, G N], in their dtype."""
        groups = norm(channels.unflatten(-1, (self.num_groups, self.key_dim)).to(self._wide))
        heads = groups.repeat_interleave(self.num_heads // self.num_groups, dim=2) + bias
        return rotated(heads, phases).to(channels.dtype)

    def _recurrence(self, read: Read, state: State) -> tuple[Tensor, Tensor]:
        """The read-outs [B, T, H, P] and S after the last token."""
        k_before, v_before = (
            torch.cat([before.unsqueeze(1), each[:, :-1].to(before.dtype)], dim=1)
            for before, each in ((state["k"], read.k), (state["x"], read.v))
        )
        if read.q.shape[1] == 1:
            return _step(read, k_before, v_before, state["S"])
        op = resolve(decayed_linear_attention, self.kernel, length=read.q.shape[1], chunk_size=self.settings.chunk_size)
        op = partial(op, q=read.q, log_decay=read.log_decay)
        begins = {"k": k_before.to(read.k.dtype), "v": v_before.to(read.v.dtype), "beta": read.before}
        begun, S_begun = op(**begins, state=state["S"])
        ended, S_ended = op(k=read.k, v=read.v, beta=read.now, state=torch.zeros_like(state["S"]))
        return begun + ended, S_begun + S_ended

    @property
    def _wide(self) -> torch.dtype:
        """The dtype of gates and states: that of the parameters, but at least float32."""
        return torch.promote_types(self.skip.dtype, torch.float32)

    def init_state(self, batch_size: int) -> State:
        """S, the phase, and the key (turned) and value of the token before."""
        return {
            "S": self.zeros(batch_size, self.num_heads, self.value_dim, self.key_dim),
            "phi": self.zeros(batch_size, self.num_heads, self.num_angles),
            "k": self.zeros(batch_size, self.num_heads, self.key_dim),
            "x": self.zeros(batch_size, self.num_heads, self.value_dim),
        }

    def forward_flops_per_token(self, seq_len: int) -> float:
        """The linear maps, two outer products written into S and the read-out."""
        return linear_flops_per_token(self) + 6.0 * self.width * self.key_dim

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator) -> None:
        super().reset_parameters(generator)
        low, high = math.log(self.settings.step_size_min), math.log(self.settings.step_size_max)
        dt = uniform_(self.step_size_bias, low=low, high=high, generator=generator).exp()
        # softplus(x) = dt, hence x = log(exp(dt) - 1) = dt + log(1 - exp(-dt)), which is exact near 0.
        self.step_size_bias.copy_(dt + torch.log(-torch.expm1(-dt)))
        for ones in (self.key_bias, self.query_bias, self.skip):
            nn.init.ones_(ones)


class Read(NamedTuple):
    """q, k [B, T, H, N], turned, v [B, T, H, P] and its gate; log_decay and the weights [B, T, H] of a step's two ends."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor
    before: Tensor
    now: Tensor
    gate: Tensor


def heavy_tail(x: Tensor) -> Tensor:
    """1 + x for x >= 0, else 1 / (1 - x): positive, with a slope that falls only with the square of x."""
    return x.clamp(min=0.0) + 1.0 / (1.0 - x.clamp(max=0.0))


def phases_of(turned: Tensor, starts: Tensor | None, phi: Tensor, *, chunk_size: int) -> Tensor:
    """The phase of every token in [0, 2 pi): phi_t = phi_{t-1} + turned_t, where 0 takes the place of phi_{t-1} at a start.

    turned: [B, T, H, R]. starts: [B, T] bool, or None. phi: [B, H, R], the phase before. Sums are no longer than a chunk
    and a turn, so that they lose few digits to the length of a sequence, and behind a start nothing of one before it is left.
    """
    keep = torch.ones_like(turned[..., :1, :1]) if starts is None else (~starts).to(turned.dtype)[..., None, None]
    local, kept = [], []
    sums, product = turned.new_zeros(()), keep.new_ones(())
    for keep_i, turned_i in zip(*(split_chunks(x, chunk_size).unbind(2) for x in (keep, turned)), strict=True):
        sums, product = torch.addcmul(turned_i, keep_i, sums), keep_i * product
        local.append(sums)
        kept.append(product)
    within, kept_within, before = torch.stack(local, dim=2), torch.stack(kept, dim=2), []
    for sum_n, kept_n in zip(sums.unbind(1), product.unbind(1), strict=True):
        before.append(phi)
        phi = _wrapped(torch.addcmul(sum_n, kept_n, phi))
    inherited = kept_within * torch.stack(before, dim=1).unsqueeze(2)
    return _wrapped(join_chunks(within + inherited, turned.shape[1]))


def _wrapped(phases: Tensor) -> Tensor:
    """Modulo 2 pi, of which float32 holds too few digits for thousands of turns."""
    return torch.remainder(phases.double(), TURN).to(phases.dtype)


def rotated(x: Tensor, phases: Tensor) -> Tensor:
    """x [..., N] with the pairs (2i, 2i + 1) of its first 2 R channels turned by phases [..., R], and the others as they are."""
    pairs, others = x.split([2 * phases.shape[-1], x.shape[-1] - 2 * phases.shape[-1]], dim=-1)
    even, odd = pairs.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = phases.cos(), phases.sin()
    return torch.cat([torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2), others], dim=-1)


def _step(read: Read, k_before: Tensor, v_before: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, for one token: both ends of its step are written at once and S is read once."""
    keys = torch.stack([k_before, read.k.to(S.dtype)], dim=-2).squeeze(1)  # [B, H, 2, N]
    values = torch.stack([read.before.unsqueeze(-1) * v_before, read.now.unsqueeze(-1) * read.v], dim=-1).squeeze(1)
    S = read.log_decay.exp().view(*S.shape[:2], 1, 1) * S + values.to(S.dtype) @ keys
    return (S @ read.q.to(S.dtype).squeeze(1).unsqueeze(-1)).squeeze(-1).unsqueeze(1), S
