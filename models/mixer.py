"""The contract that every architecture satisfies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor, nn

import conf.settings
from conf.settings import Name
from models import backends
from models.components import reset_children

State = dict[str, Tensor]
"""What a mixer remembers: every tensor is [B, ...], every key is the paper's symbol."""


class SequenceMixer(nn.Module, ABC):
    """A causal map of sequences that carries a state.

    A class that can be built declares its `name`, the `type` in a model's YAML, and the `Settings` that the YAML holds. It
    is built by `Class(settings, d_model=..., backend=...)`, and ends in the linear map `output_projection` back to the
    residual stream, whose initial variance the backbone scales.

    The members stand in three groups. Core: what every mixer is asked for. Decoding in place: what generation asks for,
    which has a neutral answer here. Draws while training: for a mixer that computes something else at every step.
    """

    name: ClassVar[str]
    """It goes into the names of runs: it stays as it is when a class or its file gets another name."""

    class Settings(conf.settings.Settings, kw_only=True):
        """What a mixer's YAML holds, without `d_model` and the backend."""

        type: Name

        @property
        def drawn_by_step(self) -> tuple[str, ...]:
            """The settings because of which one training step computes something else than the next; none here."""
            return ()

    op: ModuleType | None = None
    """The module of models/ops that computes the recurrence, where a backend other than PyTorch has a kernel for it."""

    settings: Settings
    output_projection: nn.Linear

    def __init__(self, settings: Settings, *, d_model: int, backend: str) -> None:
        """Raises Refusal for a setting that does not go with d_model."""
        super().__init__()
        self.settings = settings
        self.compute_by(backend)

    @classmethod
    def backends(cls, settings: Settings) -> tuple[str, ...]:
        """The backends that compute a mixer of these settings, in the order in which "auto" tries them.

        Whether one can run is not asked.
        """
        return backends.computing(cls.op, settings)

    def compute_by(self, backend: str) -> None:
        """From now on has its op computed by this backend, which is among `backends` for its settings."""
        self.backend, self.kernel = backend, backends.load(self.op, backend)

    @abstractmethod
    def forward(self, x: Tensor, state: State | None = None, *, starts: Tensor | None = None) -> tuple[Tensor, State]:
        """Mixes a sequence.

        x: [B, T, d_model], T >= 1. state: what an earlier call returned, or None for the initial state.
        starts: [B, T] bool; the state is reset just before every token marked True.
        Returns the output [B, T, d_model] in the dtype of x, and the state after the last token.
        """

    @abstractmethod
    def init_state(self, batch_size: int) -> State:
        """The state before the first token, on the device of the parameters, in float32 or wider."""

    def zeros(self, batch_size: int, *shape: int) -> Tensor:
        """A zero state tensor [B, *shape], in the dtype of the parameters but at least float32."""
        weight = self.output_projection.weight
        return torch.zeros(batch_size, *shape, dtype=torch.promote_types(weight.dtype, torch.float32), device=weight.device)

    def state_elements(self, seq_len: int) -> int:
        """Numbers held per sequence after seq_len tokens: constant for an RNN, linear for attention."""
        return sum(x.numel() for x in self.init_state(1).values())

    def state_bytes(self, seq_len: int, dtype: torch.dtype) -> int:
        """Bytes held per sequence after seq_len tokens where matrix products give `dtype`; of a counter, 4 are counted."""
        return 4 * self.state_elements(seq_len)

    @abstractmethod
    def forward_flops_per_token(self, seq_len: int) -> float:
        """Contractions of the forward pass in its recurrent form, averaged over a sequence of seq_len tokens.

        A multiply-add counts as two; norms, activations and gates applied elementwise are not counted.
        """

    def measured_flops_per_token(self, x: Tensor, *, starts: Tensor | None = None) -> float:
        """The contractions that this very input [B, T, d_model] takes: fewer where a solver stops early."""
        return self.forward_flops_per_token(x.shape[1])

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Fills every parameter and buffer from the generator; a mixer may have been built on the meta device.

        Here the modules of the mixer; a subclass adds the parameters that it holds itself.
        """
        reset_children(self, generator)

    @property
    def reach(self) -> int | None:
        """How many earlier tokens an output can depend on; None when there is no bound."""
        return None

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """One token: x_t [B, d_model] -> [B, d_model] and the new state; equals `forward` on a sequence of one."""
        y, state = self(x_t.unsqueeze(1), state)
        return y.squeeze(1), state

    # Decoding in place.

    def reserve(self, state: State, num_tokens: int) -> State:
        """The state in tensors that `step_` may write num_tokens tokens into, num_tokens >= 1; `state` is given up.

        An RNN's state itself is returned, each tensor contiguous, as kernels that write in place need it.
        """
        return {name: value.contiguous() for name, value in state.items()}

    def step_(self, x_t: Tensor, state: State) -> Tensor:
        """`step`, but the new state is written into the tensors of `state`, whose shapes stay: a CUDA graph can hold it.

        state: from `reserve`. For decoding: no gradient goes through what is overwritten.
        """
        y_t, after = self.step(x_t, state)
        overwrite(state, after)
        return y_t

    @property
    def capturable(self) -> bool:
        """Whether `step_` asks the host nothing, such as whether to go on, so that a CUDA graph can hold it."""
        return True

    @property
    def steps_as_it_reads(self) -> bool:
        """Whether a token that is read by itself counts as it does among others, whatever a mixer may be set to save there."""
        return True

    # Draws while training.

    def begin_step(self, *, seed: int, step: int) -> None:
        """Called before the batch of every training step, for a mixer that draws something anew for each.

        A draw is a pure function of (seed, step), so that a resumed run repeats it. Nothing is drawn here.
        """

    @property
    def draws(self) -> bool:
        """Whether `begin_step` changes what a step computes: then one step can't be captured and replayed for all."""
        return bool(self.settings.drawn_by_step)


def overwrite(state: State, after: State) -> None:
    """Copies the tensors of `after` into those of `state`, which have the same names and shapes."""
    for name, value in after.items():
        state[name].copy_(value)
