"""Triadic Gated DeltaNet (arXiv 2609.36529) on the shared backbone of MesaNet (arXiv 2506.05233): a state of several slices.

Glossary, our name to the paper's letter: query q, key k, value v, second query q2 and second key k2 (q' and k' of E numbers),
log_decay log(alpha), beta beta, joint key kappa, state G (S, with its slices side by side and transposed).
"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn
from torch.nn import functional as F

from conf.settings import within
from models.components import MambaDecay, ShortConvolution
from models.linear_rnn import DecayRates, LinearRNN, Read
from models.mixer import State
from models.ops import generalized_delta_rule


class TriadicGatedDeltaNet(LinearRNN):
    """G_t = G_{t-1} Diag(alpha_t) (I - beta_t kappa_t kappa_t^T) + beta_t v_t kappa_t^T,   o_t = G_t (q'_t (x) q_t)

        kappa_t = k'_t (x) k_t,   q', k' = softplus(conv(W x)) / |softplus(conv(W x))|

    Gated DeltaNet over the Kronecker product of two keys, whose slice e of G has a decay of its own: alpha is one number for the
    K channels of a slice. The joint key is a unit vector as k is. Two slices make G as large as MesaNet's G and H together where
    value_dim is key_dim. The second keys are convolved where the first are. The authors' factor K^-1/2 of the read-out is left
    out: behind the norm of a head it changes the weight of norm_eps alone. The bias of beta is the shared frame's.
    """

    name = "triadic_gdn.TriadicGatedDeltaNet"
    op = generalized_delta_rule

    class Settings(LinearRNN.Settings, kw_only=True):
        """num_slices: E, the numbers of a second key. With one it would always be 1, and the layer a Gated DeltaNet."""

        num_slices: Annotated[int, within(2, 2**16)]
        decay_rates: DecayRates

    settings: Settings

    def __init__(self, settings: Settings, *, d_model: int, backend: str) -> None:
        super().__init__(settings, d_model=d_model, backend=backend)
        channels = 2 * self.num_heads * settings.num_slices
        self.second_projection = nn.Linear(d_model, channels, bias=False)
        self.second_convolution: ShortConvolution | None = None
        if settings.convolution in ("query_key", "query_key_value"):
            self.second_convolution = ShortConvolution(channels=channels, width=settings.conv_width)

    def _decay(self, d_model: int, rates: DecayRates) -> MambaDecay:
        """One with a rate for every slice."""
        slices = self.num_heads * self.settings.num_slices
        return MambaDecay(d_model=d_model, num_heads=slices, channels=None, rank=None, bound=None, rates=rates)

    def log_decay(self, x: Tensor) -> Tensor:
        """log(alpha), [B, T, H, E]."""
        return super().log_decay(x).unflatten(-1, (self.num_heads, -1))

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        """The gates of the base class, and the projected second queries and keys [B, T, 2 H E]."""
        return {**super().gates(x), "second": self.second_projection(x)}

    def recurrence_inputs(self, x: Tensor, state: State, *, starts: Tensor | None) -> Read:
        """Those of the base class, but q, k and log_decay [B, T, H, E K] of the joint keys."""
        read = super().recurrence_inputs(x, state, starts=starts)
        inputs, held = dict(read.inputs), read.held
        second = inputs.pop("second")
        if self.second_convolution is not None:
            second, conv = self.second_convolution(second, state["second_conv"], starts=starts)
            held = held | {"second_conv": conv}
        positive = F.softplus(second.to(inputs["beta"].dtype)).unflatten(-1, (2, self.num_heads, -1))
        q2, k2 = F.normalize(positive, dim=-1).unbind(2)
        joint = {"q": kronecker(q2, inputs["q"]), "k": kronecker(k2, inputs["k"])}
        log_decay = inputs["log_decay"].repeat_interleave(self.key_dim, dim=-1)
        return read._replace(inputs={**inputs, **joint, "log_decay": log_decay}, held=held)

    def recurrence(
        self, *, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: State
    ) -> tuple[Tensor, State]:
        beta = beta.unsqueeze(-1)
        keys = {"q": q, "e": k, "a": k, "u": v}
        return self.by_op({**keys, "log_decay": log_decay, "erase": beta, "write": beta}, state)

    def recurrence_flops_per_token(self) -> float:
        """What G returns for the joint key, the outer product written into it and the read-out."""
        return 6.0 * self.num_heads * self.value_dim * self.settings.num_slices * self.key_dim

    def init_state(self, batch_size: int) -> State:
        """G [B, H, V, E K], slice by slice, and the states of both convolutions, if there are any."""
        state = super().init_state(batch_size)
        if self.second_convolution is not None:
            state["second_conv"] = self.second_convolution.init_state(batch_size)
        return state | {"G": state["G"].repeat(1, 1, 1, self.settings.num_slices)}


def kronecker(second: Tensor, first: Tensor) -> Tensor:
    """[..., E] and [..., K] -> [..., E K], whose entry e K + i is second_e first_i."""
    return (second.unsqueeze(-1) * first.unsqueeze(-2)).flatten(-2)
