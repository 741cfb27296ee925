"""Any causal language model of transformers behind the backbone's contract: a baseline that is evaluated as it was saved.

It needs `pip install 'linear-rnn-suite[hf]'`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional as F

from conf.paths import UserPath
from conf.settings import OUTSIDE, Refusal
from models.backbone.language_model import LanguageModel, parts_of_vocabulary
from models.hf import folder
from models.hf.cache import Held, constant, copied, gathered, growing, has_room, only_grows, recurrent
from models.hf.library import built, library, loaded, refused
from models.mixer import SequenceMixer, State

SLICE_ELEMENTS = 2**25
"""Logits that are held at a time where answers are scored."""
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{16}$", description="16 hexadecimal digits")]


class HFModel(LanguageModel):
    """Ids [B, T] to next-token logits [B, T, vocab_size] by a model of transformers; the state is its cache.

    vocab_size is the model's own, which may have more ids than the tokenizer. No batch is padded before or among its tokens:
    sequences that are read together begin together. The model is never trained, and resets no state within a sequence.
    """

    name = "hf"

    class Settings(SequenceMixer.Settings, kw_only=True):
        """path: the folder. dtype: of the weights and all that is computed. digest: of the weights, settled by itself."""

        path: Annotated[UserPath, OUTSIDE]
        dtype: Literal["float32", "bfloat16"]
        digest: Digest | None

    settings: Settings

    def __init__(self, settings: Settings) -> None:
        """Raises RequestError for a folder that holds no causal model of transformers."""
        nn.Module.__init__(self)
        self.settings = settings
        self.folder = Path(settings.path).absolute()
        self.causal = built(self.folder, settings.dtype)
        text = self.causal.config.get_text_config(decoder=True)
        self.d_model, self.vocab_size = int(text.hidden_size), int(text.vocab_size)
        self.blocks = nn.ModuleList()
        self.ends = frozenset(_listed(text.eos_token_id))
        self._takes = frozenset(inspect.signature(self.causal.base_model.forward).parameters)
        self._cache_name = next((name for name in ("cache", "past_key_values") if name in self._takes), "")
        if not self._cache_name or self.causal.get_output_embeddings() is None:
            raise refused(self.folder, "keeps no cache of transformers' own", "models that do")

    @classmethod
    def backends(cls, settings: SequenceMixer.Settings) -> tuple[str, ...]:
        return ("torch",)

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Fills the model with the weights of the folder, whatever the seed. Raises RequestError for others than were planned."""
        if self.settings.digest is not None and folder.digest(self.folder) != self.settings.digest:
            raise refused(self.folder, "is not what the run was planned with", f"weights of digest {self.settings.digest}")
        saved = loaded(self.folder, self.causal.config, self.settings.dtype)
        own = _tensors(self.causal)
        for name, tensor in _tensors(saved).items():
            own[name].copy_(tensor)
        self._try()

    def _try(self) -> None:
        """Raises RequestError for a model whose own logits are not those that come about here, piece by piece."""
        device = self.causal.get_output_embeddings().weight.device
        tokens = torch.randint(self.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0)).to(device)
        was_training = self.training
        self.eval()
        whole = self.causal(input_ids=tokens, use_cache=False).logits
        answers, state = [], None
        for part in tokens.split([5, 2, 1, 1], dim=1):
            features, state = self.features(part, state)
            answers.append(self.head(features))
        self.train(was_training)
        if not self._agree(torch.cat(answers, 1), whole):
            fault = f"is a {self.causal.config.model_type}, whose logits don't come of its output embedding and cache alone"
            raise refused(self.folder, fault, "models whose logits do")

    def _agree(self, logits: Tensor, others: Tensor) -> bool:
        """Whether logits that come about in two ways differ by rounding alone."""
        difference = (logits - others).abs().max() / others.abs().max().clamp(min=1.0)
        return bool(difference < (1e-3 if self.settings.dtype == "float32" else 0.1))

    def embed(self, tokens: Tensor) -> Tensor:
        return self.causal.get_input_embeddings()(tokens)

    def finish(self, x: Tensor) -> Tensor:
        return x

    def features(
        self, tokens: Tensor, state: list[State] | None = None, *, starts: Tensor | None = None
    ) -> tuple[Tensor, list[State]]:
        """Raises ValueError for starts, and for more tokens than the model has learnt positions for."""
        if starts is not None:
            raise Refusal("task.reset_at_bos", True, "false with model=hf, which resets no state")
        before = state[0] if state and isinstance(state[0], Held) else None
        cache, filled = (copied(before.cache), before.filled) if before is not None else (self._new_cache(), None)
        seen = 0 if not state else cache.get_seq_length() if self.longest is not None else 0
        self._check_length(seen + tokens.shape[1])
        # Some recurrences of transformers go on from a state by single tokens alone.
        parts = tokens.split(1, dim=1) if state and recurrent(cache) else [tokens]
        made = [self._read(part, cache, filled) for part in parts]
        return torch.cat(made, dim=1), [Held(cache, filled)]

    def _read(self, tokens: Tensor, cache: Any, filled: Tensor | None = None) -> Tensor:
        """What the head reads of tokens behind those of a cache, which then has them too. filled: see `Held`."""
        about: dict[str, Any] = {self._cache_name: cache}
        if filled is not None:
            seen = cache.get_seq_length()
            slots = torch.arange(seen + tokens.shape[1], device=tokens.device)
            about |= {"attention_mask": (slots >= filled[:, None]).long(), "position_ids": slots[seen:] - filled[:, None]}
        made: Tensor = self.causal.base_model(input_ids=tokens, use_cache=True, **about).last_hidden_state
        return made

    def _check_length(self, length: int) -> None:
        if self.longest is not None and length > self.longest:
            permitted = f"up to {self.longest}: task.seq_len and eval.max_length bound them"
            raise refused(self.folder, f"has no positions for {length} tokens", permitted)

    def _new_cache(self) -> Any:
        return library().DynamicCache(config=self.causal.config)

    def training_features(self, tokens: Tensor, *, starts: Tensor | None) -> Tensor:
        return self.features(tokens, starts=starts)[0]

    def head(self, features: Tensor) -> Tensor:
        """The output embedding, and behind it what some kinds of models have; `_try` holds the logits to the model's own."""
        return self.capped(self.causal.get_output_embeddings()(features))

    def head_parts(self, features: Tensor) -> Iterator[Tensor]:
        output = self.causal.get_output_embeddings()
        if type(output) is not nn.Linear:
            return iter([self.head(features)])
        weight, bias = output.weight, output.bias
        parts = parts_of_vocabulary(len(weight), features)
        return (self.capped(F.linear(features, weight[own], None if bias is None else bias[own])) for own in parts)

    def capped(self, logits: Tensor) -> Tensor:
        scale, cap = self._scale_and_cap
        if scale != 1.0:
            logits = logits * scale
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @functools.cached_property
    def _scale_and_cap(self) -> tuple[float, float | None]:
        text = self.causal.config.get_text_config(decoder=True)
        scale = (getattr(text, "logit_scale", None) or 1.0) / (getattr(text, "logits_scaling", None) or 1.0)
        return scale, getattr(text, "final_logit_softcapping", None)

    def mean_loss(self, features: Tensor, targets: Tensor) -> Tensor:
        asked = targets >= 0
        return F.cross_entropy(self.head(features[asked]).float(), targets[asked], reduction="sum") / max(1, int(asked.sum()))

    @torch.no_grad()
    def score(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        size = max(1, SLICE_ELEMENTS // self.vocab_size)
        nll, prediction = [], []
        # One slice of nothing where there are no features.
        for first in range(0, max(1, len(features)), size):
            logits = self.head(features[first : first + size]).float()
            nll.append(F.cross_entropy(logits, targets[first : first + size], reduction="none"))
            prediction.append(logits.argmax(-1))
        return torch.cat(nll), torch.cat(prediction)

    def init_state(self, batch_size: int) -> list[State]:
        """No state at all: a cache is begun by the first tokens."""
        return []

    def reserve(self, state: list[State], num_tokens: int) -> list[State]:
        return [Held(each.cache, each.filled, num_tokens) for each in state if isinstance(each, Held)]

    def gathered(self, rows: Sequence[tuple[list[State], int]]) -> list[State]:
        return [gathered([(state[0], row) for state, row in rows if isinstance(state[0], Held)])]

    @functools.cached_property
    def mixes_lengths(self) -> bool:
        """A cache of transformers has one number of tokens for all sequences, so shorter ones are filled up in front.

        That is for keys and values alone, where a model takes which of them count and where its tokens stand, and steps from
        states side by side as from each by itself.
        """
        if not only_grows(self._first) or not {"attention_mask", "position_ids"} <= self._takes:
            return False
        tokens = torch.arange(7, device=self.causal.get_output_embeddings().weight.device).unsqueeze(0) % self.vocab_size
        with torch.no_grad():
            states = [self.features(tokens[:, :length])[1] for length in (6, 2)]
            alone = [self.step(tokens[0, -1:], state)[0] for state in states]
            joined = self.gathered([(self.reserve(state, 1), 0) for state in states])
            together = self.step_(tokens[0, -1:].repeat(2), joined)
        return self._agree(together, torch.cat(alone))

    @property
    def goes_on(self) -> bool:
        """What goes on from a state by single tokens alone is read as a whole."""
        return not recurrent(self._first)

    def step_(self, tokens: Tensor, state: list[State]) -> Tensor:
        before = state[0] if state else None
        if not isinstance(before, Held) or not has_room(before.cache, 1):
            answers, state[:] = self.step(tokens, state)
            return answers
        self._check_length(before.cache.get_seq_length() + 1)
        made = self._read(tokens.unsqueeze(1), before.cache, before.filled)
        state[:] = [Held(before.cache, before.filled, before.room)]
        return self.head(made[:, -1])

    @property
    def capturable(self) -> bool:
        return False

    @functools.cached_property
    def longest(self) -> int | None:
        """The most tokens that the model has learnt positions for; None where positions are computed, or there are none."""
        most = getattr(self.causal.config.get_text_config(decoder=True), "max_position_embeddings", None)
        tables = (part for part in self.causal.modules() if isinstance(part, nn.Embedding))
        learnt = any(part is not self.causal.get_input_embeddings() and part.num_embeddings >= (most or 0) for part in tables)
        return most if most is not None and learnt else None

    @functools.cached_property
    def _first(self) -> Any:
        """The cache after one token of one sequence: what layers hold."""
        cache = self._new_cache()
        token = torch.zeros(1, 1, dtype=torch.int64, device=self.causal.get_output_embeddings().weight.device)
        try:
            with torch.no_grad():
                self._read(token, cache)
        # A config.json of fitting types may still say what its architecture can't compute.
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
            told = str(error).strip().splitlines()[0]
            raise refused(self.folder, f"can't read a token ({told})", "models that can") from error
        return cache

    def state_elements(self, seq_len: int) -> int:
        kept = sum(each * (seq_len if window is None else min(seq_len, window - 1)) for each, window in growing(self._first))
        return kept + constant(self._first)

    def state_bytes(self, seq_len: int, dtype: torch.dtype) -> int:
        """In the dtype of the model, which is not the training's."""
        return self.state_elements(seq_len) * getattr(torch, self.settings.dtype).itemsize

    def head_flops_per_token(self) -> float:
        return 2.0 * self.causal.get_output_embeddings().weight.numel()

    def forward_flops_per_token(self, seq_len: int) -> float:
        """As for models of this suite: two for every weight of a linear map or a convolution; with each key that a token sees
        the contractions of all heads; and four for every number in the state of a recurrence. Of experts, the share that a
        token is sent to. Raises RequestError for a length that the model has no positions for.
        """
        self._check_length(seq_len)
        text = self.causal.config.get_text_config(decoder=True)
        heads = getattr(text, "num_attention_heads", 1)
        shared = heads / (getattr(text, "num_key_value_heads", None) or heads)
        attended = sum(each * shared * _mean_keys(seq_len, window) for each, window in growing(self._first))
        return 2.0 * (self._multiplied(text) + attended) + 4.0 * recurrent(self._first)

    def _multiplied(self, text: Any) -> float:
        """The weights that a token is multiplied with."""
        conv1d = library().pytorch_utils.Conv1D
        maps = [part for part in self.causal.modules() if isinstance(part, nn.Linear | nn.Conv1d | conv1d)]
        total = float(sum(part.weight.numel() for part in maps))
        named = ("num_local_experts", "num_experts", "n_routed_experts")
        experts = next((getattr(text, name) for name in named if getattr(text, name, None)), None)
        if experts is None:
            return total
        # Routers and experts are matrices that lie in no linear map: [E, d] and [E, d_out, d_in].
        loose = [
            part
            for part in self.causal.parameters()
            if part.shape[0] == experts and id(part) not in {id(each.weight) for each in maps}
        ]
        routers, stacked = (sum(part.numel() for part in loose if part.ndim == ndim) for ndim in (2, 3))
        return total + routers + stacked * text.num_experts_per_tok / experts

    def measured_flops_per_token(self, tokens: Tensor, *, starts: Tensor | None = None) -> float:
        return self.forward_flops_per_token(tokens.shape[1])


def _mean_keys(seq_len: int, window: int | None) -> float:
    full = seq_len if window is None else min(seq_len, window)
    return (full * (full + 1) / 2 + (seq_len - full) * full) / seq_len


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _listed(ids: int | list[int] | None) -> Iterator[int]:
    yield from () if ids is None else ids if isinstance(ids, list) else (ids,)
