"""What all linear RNNs of the study have in common (MesaNet, arXiv 2506.05233, App. E).

Glossary, our name to the paper's letter: query q, key k, value v, log_decay log(gamma), beta beta (input gate),
state G (and H for Mesa).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conf.settings import LARGEST, Count, Neutral, Positive, Refusal, above, between, within
from models.backends import resolve
from models.components import HeadRMSNorm, MambaDecay, OutputGate, ScalarGate, ShortConvolution, linear_flops_per_token
from models.mixer import SequenceMixer, State, overwrite

NormEps = Annotated[float, above(0, 1)]
GateStart = Annotated[float, between(0, 1)]
"""The sigmoid of a gate's bias at the start."""

DecayRates = tuple[Annotated[float, within(0, LARGEST)], Positive]
"""Between which the rates of a decay as Mamba has it are drawn."""


class Read(NamedTuple):
    """What a linear RNN reads from its input [B, T, d_model], beside the recurrence.

    inputs: by name what `recurrence` takes. gate: what the normed read-outs are multiplied by [B, T, H V], or None. held: the
    new state of the convolution, as the state names it.
    """

    inputs: dict[str, Tensor]
    gate: Tensor | None
    held: State


class LinearRNN(SequenceMixer):
    """Projections, short convolution, gates, per-head norm, output gate and output projection around a recurrence.

    `feature_map` is what becomes of q and k behind the convolution: "silu_l2" (SiLU, then unit length), "silu" or "identity".
    The recurrence is the subclass's `op`, on q, k [B, T, H, K], v [B, T, H, V] and the gates, log_decay and beta [B, T, H]; a
    subclass with another state or other gates has its own `recurrence`. One that writes n times a token (`num_writes`) has
    k [B, n T, H, K], v [B, n T, H, V] and beta [B, n T, H].
    """

    class Settings(SequenceMixer.Settings, kw_only=True):
        """forget_gate_init, input_gate_init: None is no such gate (log_decay = 0, beta = 1).

        decay_rates: None is a forget gate sigmoid(W x + b). With [low, high] it is Mamba's exp(-rate softplus(W x + b)), rates
            are uniform between both at the start, and forget_gate_init is None.
        convolution: what passes a causal convolution of width conv_width. "query_key": q and k. "query_key_value": v too, which
            then passes a SiLU where q and k do (Gated DeltaNet, KDA). "input": the layer's input, to which the result is added
            (Canon-A of arXiv 2512.17351). "none": nothing, whatever conv_width is.
        affine_keys: a 1 behind q and k, so that what the state has learned of v is an affine map of k; K is key_dim + 1.
        output_gate: multiplies the normed read-outs by sigmoid(W x + b), or by x sigmoid(x) of it ("swish"), where W is a
            product of two matrices over output_gate_rank numbers, or with None one matrix.
        chunk_size: tokens a chunk of the chunked form.
        """

        num_heads: Count
        key_dim: Count
        value_dim: Count
        conv_width: Count
        convolution: Annotated[Literal["query_key", "query_key_value", "input", "none"], Neutral("query_key")]
        feature_map: Literal["silu_l2", "silu", "identity"]
        affine_keys: Annotated[bool, Neutral(False)]
        output_gate: Annotated[Literal["none", "swish", "sigmoid"], Neutral("none")]
        output_gate_rank: Annotated[Count | None, Neutral(None)]
        forget_gate_init: GateStart | None
        decay_rates: Annotated[DecayRates | None, Neutral(None)]
        input_gate_init: GateStart | None
        norm_eps: NormEps
        chunk_size: Count

        def __post_init__(self) -> None:
            if self.output_gate == "none" and self.output_gate_rank is not None:
                raise Refusal("output_gate_rank", self.output_gate_rank, "null with output_gate=none")
            if self.decay_rates is not None and self.forget_gate_init is not None:
                raise Refusal("forget_gate_init", self.forget_gate_init, "null with decay_rates")
            if self.decay_rates is not None and self.decay_rates[0] > self.decay_rates[1]:
                raise Refusal("decay_rates", self.decay_rates, "lists of 2 numbers, the lower first")
            # A rule that has this setting multiplies the state by I - beta k k^T with beta up to 2: longer keys would blow it up.
            if self.affine_keys and getattr(self, "negative_eigenvalues", False):
                raise Refusal("affine_keys", True, "false with negative_eigenvalues")

    settings: Settings

    def __init__(self, settings: Settings, *, d_model: int, backend: str) -> None:
        super().__init__(settings, d_model=d_model, backend=backend)
        self.num_heads, self.value_dim = settings.num_heads, settings.value_dim
        # K of the recurrence, whose keys may be longer than what is projected.
        self.key_dim = settings.key_dim + settings.affine_keys
        keys, width = (1 + self.num_writes) * self.num_heads * settings.key_dim, self.num_heads * self.value_dim
        values = self.num_writes * width
        self.query_key_projection = nn.Linear(d_model, keys, bias=False)
        self.value_projection = nn.Linear(d_model, values, bias=False)
        channels = {"query_key": keys, "query_key_value": keys + values, "input": d_model}.get(settings.convolution)
        self.convolution = None if channels is None else ShortConvolution(channels=channels, width=settings.conv_width)
        self.forget_gate = self._gate(self.num_heads, d_model, settings.forget_gate_init)
        self.decay = None if settings.decay_rates is None else self._decay(d_model, settings.decay_rates)
        self.input_gate = self._gate(self.num_writes * self.num_heads, d_model, settings.input_gate_init)
        self.norm = HeadRMSNorm(num_heads=self.num_heads, dim=self.value_dim, eps=settings.norm_eps)
        self.output_gate: OutputGate | None = None
        if settings.output_gate != "none":
            rank = settings.output_gate_rank
            self.output_gate = OutputGate(d_model=d_model, width=width, rank=rank, activation=settings.output_gate)
        self.output_projection = nn.Linear(width, d_model, bias=False)

    @property
    def num_writes(self) -> int:
        """How many keys and values a token writes."""
        return 1

    def _gate(self, width: int, d_model: int, initial: float | None) -> ScalarGate | None:
        return None if initial is None else ScalarGate(d_model=d_model, num_heads=width, initial=initial)

    def _decay(self, d_model: int, rates: DecayRates) -> MambaDecay:
        """The decay that decay_rates ask for: one a head and token. A subclass whose op takes more of them has its own."""
        return MambaDecay(d_model=d_model, num_heads=self.num_heads, channels=None, rank=None, bound=None, rates=rates)

    def recurrence(
        self, *, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: State
    ) -> tuple[Tensor, State]:
        """Read-outs [B, T, H, V] and the new recurrent state, from the recurrent part of the old one: what `op` gives of G."""
        return self.by_op({"q": q, "k": k, "v": v, "log_decay": log_decay, "beta": beta}, state)

    def by_op(self, inputs: dict[str, Tensor], state: State) -> tuple[Tensor, State]:
        """What `op`, whose state is G alone, gives of what it takes by name."""
        op = resolve(self.op, self.kernel, length=inputs["q"].shape[1], chunk_size=self.settings.chunk_size)
        o, G = op(**inputs, state=state["G"])
        return o, {"G": G}

    def mix(self, inputs: dict[str, Tensor], state: State) -> tuple[Tensor, State]:
        """`recurrence` of what was read; a subclass that reads more than its arguments has its own."""
        return self.recurrence(**inputs, state=state)

    def recurrence_(self, inputs: dict[str, Tensor], state: State) -> Tensor:
        """`recurrence` of inputs with T = 1, but the new state is written into the tensors of `state`; returns the read-out."""
        if self.kernel is not None and self.kernel.in_place is not None:
            return self.kernel.in_place(**inputs, state=state["G"])
        o, after = self.mix(inputs, state)
        overwrite(state, after)
        return o

    @abstractmethod
    def recurrence_flops_per_token(self) -> float:
        """Contractions of one step of the recurrence, over all heads."""

    def forward(self, x: Tensor, state: State | None = None, *, starts: Tensor | None = None) -> tuple[Tensor, State]:
        state = self.init_state(x.shape[0]) if state is None else state
        read = self.recurrence_inputs(x, state, starts=starts)
        # Autocast would narrow the products of an op, whose state is a sum over the whole sequence.
        with torch.autocast(x.device.type, enabled=False):
            o, recurrent = self.mix(read.inputs, state)
        return self._output(o, read.gate, x.dtype), read.held | recurrent

    def step_(self, x_t: Tensor, state: State) -> Tensor:
        read = self.recurrence_inputs(x_t.unsqueeze(1), state, starts=None)
        with torch.autocast(x_t.device.type, enabled=False):
            o = self.recurrence_(read.inputs, state)
        overwrite(state, read.held)
        return self._output(o, read.gate, x_t.dtype).squeeze(1)

    def _output(self, o: Tensor, gate: Tensor | None, dtype: torch.dtype) -> Tensor:
        y = self.norm(o).to(dtype).flatten(2)
        return self.output_projection(y if gate is None else y * gate)

    def recurrence_inputs(self, x: Tensor, state: State, *, starts: Tensor | None) -> Read:
        """q, k, v and the gates as `recurrence` takes them, the gate of the output and the new state of the convolution."""
        x, query_key, v, held = self._projected(x, state, starts)
        q, k = self._queries_and_keys(query_key)
        if self.settings.affine_keys:
            q, k = (F.pad(each, (0, 1), value=1.0) for each in (q, k))
        v = v.unflatten(-1, (-1, self.num_heads, self.value_dim)).flatten(1, 2)
        gates = self.gates(x)
        if starts is not None:
            gates |= {name: _reset(gate, starts) for name, gate in gates.items() if name.endswith("log_decay")}
        gate = None if self.output_gate is None else self.output_gate(x)
        return Read({"q": q, "k": k, "v": v, **gates}, gate, held)

    def _projected(self, x: Tensor, state: State, starts: Tensor | None) -> tuple[Tensor, Tensor, Tensor, State]:
        """The input that all maps read [B, T, d_model], q and k and v [B, T, channels], and the convolution's new state."""
        if self.convolution is None:
            return x, self.query_key_projection(x), self.value_projection(x), {}
        where, conv = self.settings.convolution, state["conv"]
        if where == "input":
            mixed, conv = self.convolution(x, conv, starts=starts)
            x = x + mixed
        query_key, v = self.query_key_projection(x), self.value_projection(x)
        if where == "query_key":
            query_key, conv = self.convolution(query_key, conv, starts=starts)
        elif where == "query_key_value":
            both, conv = self.convolution(torch.cat([query_key, v], dim=-1), conv, starts=starts)
            query_key, v = both.split([query_key.shape[-1], v.shape[-1]], dim=-1)
            v = v if self.settings.feature_map == "identity" else F.silu(v)
        return x, query_key, v, {"conv": conv}

    def _queries_and_keys(self, query_key: Tensor) -> tuple[Tensor, Tensor]:
        """q [B, T, H, K] and k [B, n T, H, K] of what passed the convolution, [B, T, (1 + n) H K]."""
        heads, width = (-1, self.num_heads, self.settings.key_dim), self.num_heads * self.settings.key_dim
        if query_key.shape[1] == 1:
            # Apart, a compiler makes each in one kernel, dense as the kernel of a token takes it.
            parts = query_key.tensor_split([width], dim=-1)
            q, k = (self._features(part).unflatten(-1, heads).flatten(1, 2) for part in parts)
            return q, k
        q_and_k = self._features(query_key).unflatten(-1, heads)
        return q_and_k[:, :, 0], q_and_k[:, :, 1:].flatten(1, 2)

    def _features(self, query_key: Tensor) -> Tensor:
        if self.settings.feature_map == "identity":
            return query_key
        if self.settings.feature_map == "silu":
            return F.silu(query_key)
        heads = F.silu(query_key).unflatten(-1, (-1, self.settings.key_dim))
        return F.normalize(heads, dim=-1).flatten(-2)

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        """log_decay <= 0 and beta in [0, 1], both [B, T, H] in float32 or wider; a subclass may add others.

        Whatever is named so that it ends in log_decay, [B, T, H, ...], becomes -inf where a document starts.
        """
        return {"log_decay": self.log_decay(x), "beta": self.beta(x)}

    def log_decay(self, x: Tensor) -> Tensor:
        if self.decay is not None:
            return self.decay(x)
        return self._zeros_like_a_gate(x) if self.forget_gate is None else F.logsigmoid(self.forget_gate(x))

    def beta(self, x: Tensor) -> Tensor:
        if self.input_gate is None:
            return self._zeros_like_a_gate(x).repeat_interleave(self.num_writes, dim=1) + 1.0
        return torch.sigmoid(self.input_gate(x)).unflatten(-1, (-1, self.num_heads)).flatten(1, 2)

    def _zeros_like_a_gate(self, x: Tensor) -> Tensor:
        return x.new_zeros((*x.shape[:2], self.num_heads), dtype=torch.promote_types(x.dtype, torch.float32))

    def init_state(self, batch_size: int) -> State:
        """The convolution's state, if there is one, and a zero G [B, H, V, K], to which a subclass adds what else it holds."""
        conv = {} if self.convolution is None else {"conv": self.convolution.init_state(batch_size)}
        return {**conv, "G": self.zeros(batch_size, self.num_heads, self.value_dim, self.key_dim)}

    def forward_flops_per_token(self, seq_len: int) -> float:
        return linear_flops_per_token(self) + self.recurrence_flops_per_token()


def _reset(log_decay: Tensor, starts: Tensor) -> Tensor:
    """A log_decay [B, T, ...] that forgets where `starts` [B, T] is True."""
    return log_decay.masked_fill(starts.view(*starts.shape, *(1,) * (log_decay.ndim - 2)), float("-inf"))
