"""Everything that is the same in all arms of the comparison (MesaNet, arXiv 2506.05233, App. E and G).

Blocks between an embedding and a head, which make its two faces: language_model.py has tokens in and logits out,
regressor.py vectors in and out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbone.blocks import Block, RMSNorm, Size
from models.initialization import fan_in_normal_
from models.mixer import SequenceMixer, State


class TrainingForms(NamedTuple):
    """What computes the parts of a model in training: `Backbone.enter`, `Block.output` for every block and `Backbone.leave`, or
    faster forms of these. Between them the stream is in two terms, see `Block.output`.

    All are functions that take the model or the block. A bound method would hold the model that holds it, and such a cycle
    keeps the memory of a model that nobody uses any more.
    """

    enter: Callable[[Backbone, Tensor], tuple[Tensor, Tensor | None]]
    outputs: Sequence[Callable[..., tuple[Tensor, Tensor]]]
    leave: Callable[[Backbone, Tensor, Tensor], Tensor]


class Backbone(nn.Module, ABC):
    """One block per mixer, between an embedding of the tokens and a head, which are a subclass's.

    A token is an id or a vector; a position that asks something has a target, and the loss is what its answer costs.

    mixers: one per block, in order. embedding: what `embed` reads tokens with.
    """

    def __init__(self, size: Size, mixers: Sequence[SequenceMixer], *, embedding: nn.Module) -> None:
        super().__init__()
        self.d_model = size.d_model
        self.embedding = embedding
        self.blocks = nn.ModuleList(Block(size, mixer) for mixer in mixers)
        self.final_norm = RMSNorm(size.d_model, eps=size.norm_eps)
        self.training_forms = TrainingForms(type(self).enter, [Block.output] * len(self.blocks), type(self).leave)

    @abstractmethod
    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T, ...] -> what the first block reads [B, T, d_model]."""

    @abstractmethod
    def head(self, features: Tensor) -> Tensor:
        """Features [..., d_model] -> answers [..., what a target has]. Apply it only where a target is asked."""

    @abstractmethod
    def head_flops_per_token(self) -> float:
        """Contractions of the embedding and the head."""

    @abstractmethod
    def mean_loss(self, features: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of the answers to N positions: features [N, d_model], targets [N, ...]; differentiable.

        A target id below 0 asks nothing. Where nothing is asked, the loss and its gradients are 0.
        """

    @abstractmethod
    def score(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The loss [N] of each answer, and the answers in the shape of the targets [N, ...]; not differentiable."""

    def features(
        self, tokens: Tensor, state: list[State] | None = None, *, starts: Tensor | None = None
    ) -> tuple[Tensor, list[State]]:
        """Tokens [B, T, ...] -> what the head reads [B, T, d_model], and the state of every block after the last token."""
        x = self.embed(tokens)
        states = []
        for i, block in enumerate(self.blocks):
            x, block_state = block(x, None if state is None else state[i], starts=starts)
            states.append(block_state)
        return self.finish(x), states

    def finish(self, x: Tensor) -> Tensor:
        """What the last block gives -> what the head reads, both [..., d_model]."""
        return self.final_norm(x)

    def training_features(self, tokens: Tensor, *, starts: Tensor | None) -> Tensor:
        """The features of whole sequences, without a state, through `training_forms`, which training accelerates."""
        enter, outputs, leave = self.training_forms
        x, added = enter(self, tokens)
        for block, output in zip(self.blocks, outputs, strict=True):
            x, added = output(block, x, added=added, starts=starts)
        assert added is not None, "a model has a block or more"
        return leave(self, x, added)

    def enter(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the first block reads, in two terms, of which there is only the first yet."""
        return self.embed(tokens), None

    def leave(self, x: Tensor, added: Tensor) -> Tensor:
        """What the head reads, from the two terms that the last block gives."""
        return self.finish(x + added)

    def forward(
        self, tokens: Tensor, state: list[State] | None = None, *, starts: Tensor | None = None
    ) -> tuple[Tensor, list[State]]:
        """Tokens [B, T, ...] -> answers [B, T, ...] and the state of every block after the last token."""
        features, state = self.features(tokens, state, starts=starts)
        return self.head(features), state

    def step(self, tokens: Tensor, state: list[State]) -> tuple[Tensor, list[State]]:
        """One token a sequence: tokens [B, ...] -> answers [B, ...] and the new state."""
        answers, state = self(tokens.unsqueeze(1), state)
        return answers.squeeze(1), state

    def reserve(self, state: list[State], num_tokens: int) -> list[State]:
        """The state of every block in tensors that `step_` may write num_tokens tokens into."""
        return [block.mixer.reserve(each, num_tokens) for block, each in zip(self.blocks, state, strict=True)]

    def gathered(self, rows: Sequence[tuple[list[State], int]]) -> list[State]:
        """The states of single sequences as those of one batch, in new tensors.

        rows: the state of a batch and which of its sequences. They are after equally many tokens, or all from `reserve`: then
        what has fewer slots than another is filled up behind them, where a position is that no step sees before it is written.
        """
        return [
            {name: _joined([state[i][name][row : row + 1] for state, row in rows]) for name in block}
            for i, block in enumerate(rows[0][0])
        ]

    @property
    def mixes_lengths(self) -> bool:
        """Whether states from `reserve` after different numbers of tokens can be in one batch."""
        return True

    def step_(self, tokens: Tensor, state: list[State]) -> Tensor:
        """As `step`, but the new state is written into the tensors of `state`, which is from `reserve`; for decoding."""
        x_t = self.embed(tokens.unsqueeze(1)).squeeze(1)
        for block, block_state in zip(self.blocks, state, strict=True):
            x_t = block.step_(x_t, block_state)
        return self.answer(x_t)

    def answer(self, x: Tensor) -> Tensor:
        """What the last block gives [..., d_model] -> answers [..., what a target has]."""
        return self.head(self.finish(x))

    @property
    def capturable(self) -> bool:
        """Whether `step_` asks the host nothing in any block, so that a CUDA graph can hold it."""
        return all(block.mixer.capturable for block in self.blocks)

    @property
    def goes_on(self) -> bool:
        """Whether sequences may be read in pieces: as fast, and with the features that they have as a whole."""
        return all(block.mixer.steps_as_it_reads for block in self.blocks if isinstance(block, Block))

    def begin_step(self, *, seed: int, step: int) -> None:
        """Called before the batch of every training step. All blocks get the same seed, so what they draw is one draw."""
        for block in self.blocks:
            block.mixer.begin_step(seed=seed, step=step)

    def init_state(self, batch_size: int) -> list[State]:
        return [block.mixer.init_state(batch_size) for block in self.blocks]

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Fills every parameter; the same seed gives the same weights on every device."""
        generator = torch.Generator().manual_seed(seed)
        fan_in_normal_(self.embedding.weight, generator=generator)
        for block in self.blocks:
            block.reset_parameters(generator, output_variance_scale=2.0 / len(self.blocks))
        self.final_norm.reset_parameters(generator)

    def state_elements(self, seq_len: int) -> int:
        """Numbers held per sequence after seq_len tokens, over all blocks."""
        return sum(block.mixer.state_elements(seq_len) for block in self.blocks)

    def state_bytes(self, seq_len: int, dtype: torch.dtype) -> int:
        """Bytes that the states of all blocks hold per sequence, see `SequenceMixer.state_bytes`."""
        return sum(block.mixer.state_bytes(seq_len, dtype) for block in self.blocks)

    def forward_flops_per_token(self, seq_len: int) -> float:
        """Contractions per token of the forward pass: mixers, MLPs, embedding and head."""
        return sum(block.forward_flops_per_token(seq_len) for block in self.blocks) + self.head_flops_per_token()

    @torch.no_grad()
    def measured_flops_per_token(self, tokens: Tensor, *, starts: Tensor | None = None) -> float:
        """The contractions that these very tokens [B, T, ...] take: fewer where a solver stops early."""
        x, saved = self.embed(tokens), 0.0
        for block in self.blocks:
            mixed = block.mixer_norm(x)
            declared = block.mixer.forward_flops_per_token(tokens.shape[1])
            saved += declared - block.mixer.measured_flops_per_token(mixed, starts=starts)
            x, _ = block(x, None, starts=starts)
        return self.forward_flops_per_token(tokens.shape[1]) - saved

    @property
    def reach(self) -> int | None:
        """How many earlier tokens an answer can depend on, over all blocks; None when there is no bound."""
        reaches = [block.mixer.reach for block in self.blocks]
        return None if None in reaches else sum(reaches)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Tensors [1, ...] as one [B, ...], each filled up with zeros to the largest sizes."""
    sizes = [max(each) for each in zip(*(part.shape for part in parts), strict=True)]
    fills = [
        [fill for size, own in zip(sizes[:0:-1], part.shape[:0:-1], strict=True) for fill in (0, size - own)] for part in parts
    ]
    return torch.cat([F.pad(part, fill) if any(fill) else part for part, fill in zip(parts, fills, strict=True)])
