"""What all linear RNNs of the study have in common (MesaNet, arXiv 2506.05233, App. E).

Glossary, our name to the paper's letter: query q, key k, value v, log_decay log(gamma), beta beta (input gate),
state G (and H for Mesa).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conf.settings import Count, above, between
from models.backends import resolve
from models.components import HeadRMSNorm, ScalarGate, ShortConvolution, linear_flops_per_token
from models.mixer import SequenceMixer, State, overwrite

NormEps = Annotated[float, above(0, 1)]
GateStart = Annotated[float, between(0, 1)]
"""The sigmoid of a gate's bias at the start."""


class LinearRNN(SequenceMixer):
    """Projections, short convolution, gates, per-head norm and output projection around a recurrence.

    q and k pass a causal convolution of width conv_width; `feature_map` is what follows: "silu_l2" (SiLU, then unit
    length), "silu" or "identity". The recurrence is the subclass's `op`, on q, k [B, T, H, K], v [B, T, H, V] and the gates,
    log_decay and beta [B, T, H]; a subclass with another state or other gates has its own `recurrence`.
    """

    class Settings(SequenceMixer.Settings, kw_only=True):
        """forget_gate_init, input_gate_init: None is no such gate (log_decay = 0, beta = 1).

        chunk_size: tokens a chunk of the chunked form.
        """

        num_heads: Count
        key_dim: Count
        value_dim: Count
        conv_width: Count
        feature_map: Literal["silu_l2", "silu", "identity"]
        forget_gate_init: GateStart | None
        input_gate_init: GateStart | None
        norm_eps: NormEps
        chunk_size: Count

    settings: Settings

    def __init__(self, settings: Settings, *, d_model: int, backend: str) -> None:
        super().__init__(settings, d_model=d_model, backend=backend)
        num_heads, key_dim, value_dim = settings.num_heads, settings.key_dim, settings.value_dim
        self.num_heads, self.key_dim, self.value_dim = num_heads, key_dim, value_dim
        self.query_key_projection = nn.Linear(d_model, 2 * num_heads * key_dim, bias=False)
        self.value_projection = nn.Linear(d_model, num_heads * value_dim, bias=False)
        self.convolution = ShortConvolution(channels=2 * num_heads * key_dim, width=settings.conv_width)
        self.forget_gate = self._gate(d_model, settings.forget_gate_init)
        self.input_gate = self._gate(d_model, settings.input_gate_init)
        self.norm = HeadRMSNorm(num_heads=num_heads, dim=value_dim, eps=settings.norm_eps)
        self.output_projection = nn.Linear(num_heads * value_dim, d_model, bias=False)

    def _gate(self, d_model: int, initial: float | None) -> ScalarGate | None:
        return None if initial is None else ScalarGate(d_model=d_model, num_heads=self.num_heads, initial=initial)

    def recurrence(
        self, *, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: State
    ) -> tuple[Tensor, State]:
        """Read-outs [B, T, H, V] and the new recurrent state, from the recurrent part of the old one: what `op` gives of G."""
        op = resolve(self.op, self.kernel, length=q.shape[1], chunk_size=self.settings.chunk_size)
        o, G = op(q=q, k=k, v=v, log_decay=log_decay, beta=beta, state=state["G"])
        return o, {"G": G}

    def recurrence_(self, inputs: dict[str, Tensor], state: State) -> Tensor:
        """`recurrence` of inputs with T = 1, but the new state is written into the tensors of `state`; returns the read-out."""
        if self.kernel is not None and self.kernel.in_place is not None:
            return self.kernel.in_place(**inputs, state=state["G"])
        o, after = self.recurrence(**inputs, state=state)
        overwrite(state, after)
        return o

    @abstractmethod
    def recurrence_flops_per_token(self) -> float:
        """Contractions of one step of the recurrence, over all heads."""

    def forward(self, x: Tensor, state: State | None = None, *, starts: Tensor | None = None) -> tuple[Tensor, State]:
        state = self.init_state(x.shape[0]) if state is None else state
        inputs, conv = self.recurrence_inputs(x, state, starts=starts)
        # Autocast would narrow the products of an op, whose state is a sum over the whole sequence.
        with torch.autocast(x.device.type, enabled=False):
            o, recurrent = self.recurrence(**inputs, state=state)
        return self._output(o, x.dtype), {"conv": conv, **recurrent}

    def step_(self, x_t: Tensor, state: State) -> Tensor:
        x = x_t.unsqueeze(1)
        inputs, conv = self.recurrence_inputs(x, state, starts=None)
        with torch.autocast(x.device.type, enabled=False):
            o = self.recurrence_(inputs, state)
        state["conv"].copy_(conv)
        return self._output(o, x.dtype).squeeze(1)

    def _output(self, o: Tensor, dtype: torch.dtype) -> Tensor:
        return self.output_projection(self.norm(o).to(dtype).flatten(2))

    def recurrence_inputs(self, x: Tensor, state: State, *, starts: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        """q, k, v and the gates as `recurrence` takes them, and the new state of the convolution."""
        query_key, conv = self.convolution(self.query_key_projection(x), state["conv"], starts=starts)
        q, k = self._features(query_key).unflatten(-1, (2, self.num_heads, self.key_dim)).unbind(2)
        v = self.value_projection(x).unflatten(-1, (self.num_heads, self.value_dim))
        gates = self.gates(x)
        if starts is not None:
            gates["log_decay"] = gates["log_decay"].masked_fill(starts.unsqueeze(-1), float("-inf"))
        return {"q": q, "k": k, "v": v, **gates}, conv

    def _features(self, query_key: Tensor) -> Tensor:
        if self.settings.feature_map == "identity":
            return query_key
        if self.settings.feature_map == "silu":
            return F.silu(query_key)
        heads = F.silu(query_key).unflatten(-1, (-1, self.key_dim))
        return F.normalize(heads, dim=-1).flatten(-2)

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        """log_decay <= 0 and beta in [0, 1], both [B, T, H] in float32 or wider; a subclass may add others."""
        return {"log_decay": self.log_decay(x), "beta": self.beta(x)}

    def log_decay(self, x: Tensor) -> Tensor:
        return self._zeros_like_a_gate(x) if self.forget_gate is None else F.logsigmoid(self.forget_gate(x))

    def beta(self, x: Tensor) -> Tensor:
        return self._zeros_like_a_gate(x) + 1.0 if self.input_gate is None else torch.sigmoid(self.input_gate(x))

    def _zeros_like_a_gate(self, x: Tensor) -> Tensor:
        return x.new_zeros((*x.shape[:2], self.num_heads), dtype=torch.promote_types(x.dtype, torch.float32))

    def init_state(self, batch_size: int) -> State:
        """The convolution's state and a zero G [B, H, V, K], to which a subclass adds what else it holds."""
        G = self.zeros(batch_size, self.num_heads, self.value_dim, self.key_dim)
        return {"conv": self.convolution.init_state(batch_size), "G": G}

    def forward_flops_per_token(self, seq_len: int) -> float:
        return linear_flops_per_token(self) + self.recurrence_flops_per_token()
