"""lm-eval's interface to a language model of this suite: what a request asks, in tokens, and what the model answers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from conf.settings import text
from models.backbone.language_model import LanguageModel
from suite.evaluation.continuation import Prompt, Sampling, continue_prompts, score_continuations
from tasks.tokenizer import Tokenizer

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""lm-eval's names for the most tokens of an answer."""
GENERATION = ("until", *LENGTHS, "do_sample", "temperature", "top_k", "top_p")
"""What a task may say about how answers are generated."""
RANGES = {"temperature": (0.0, math.inf, "numbers from 0"), "top_k": (1, math.inf, "numbers from 1")}
RANGES |= {"top_p": (0.0, 1.0, "numbers from 0 to 1")}


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Tokens of the context, BOS in front, and of the continuation.

    lm-eval's convention: both are encoded as one text and cut after the tokens of the context alone, whose trailing
    spaces belong to the continuation. Where that cut isn't between the two, since a token has text of both or is another
    one, the continuation is encoded by itself, so that its tokens cover all of it.
    Raises ValueError for a continuation without tokens.
    """
    stripped = context.rstrip()
    answer = context[len(stripped) :] + continuation
    prefix, prefix_ends = tokenizer.encode_with_ends(stripped)
    whole, ends = tokenizer.encode_with_ends(stripped + answer)
    kept, rest = whole[: len(prefix)], whole[len(prefix) :]
    same_text = kept == prefix or tokenizer.decode(kept) == tokenizer.decode(prefix)
    if not (rest and same_text and ends[len(kept) - 1 : len(kept)] == prefix_ends[-1:]):
        rest = tokenizer.encode(answer)
    if not rest:
        raise ValueError(f"the answer {answer!r} has no tokens")
    return [tokenizer.bos, *prefix], rest


def check_generation(settings: Mapping[str, Any]) -> None:
    """Raises ValueError for a way of generating that there is none of here. settings: a task's `generation_kwargs`."""
    for key, value in settings.items():
        if key not in GENERATION and not (key == "num_beams" and value == 1):
            raise ValueError(f"it asks for {key}={text(value)}, permitted are {', '.join(GENERATION)}")
    for key, (low, high, words) in RANGES.items():
        value = settings.get(key)
        if value is not None and not (isinstance(value, int | float) and low <= value <= high):
            raise ValueError(f"it asks for {key}={text(value)}, permitted are {words}")


class TooLong(ValueError):
    """Documents that the model cannot read, even if their requests are cut where that is permitted; it says of the first why."""

    def __init__(self, reasons: Mapping[int, str]) -> None:
        super().__init__(next(iter(reasons.values())))
        self.reasons = dict(reasons)


class BackboneLM(LM):
    """lm-eval's interface to a LanguageModel; decoding ends at BOS, which also separates documents.

    max_length: tokens of a request that the model reads at most, the earliest are left out; None for no bound.
    temperature: of all answers, in place of what tasks say; None for that. sample_seed: draws the answers that are sampled.
    truncated: task, document and number of every request that was cut to that. num_tokens: of every continuation scored.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        max_length: int | None,
        temperature: float | None,
        sample_seed: int,
        device: torch.device | str,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer = model.eval(), tokenizer
        self.batch_size, self.max_length, self._device = batch_size, max_length, torch.device(device)
        self.temperature, self.sample_seed = temperature, sample_seed
        self.truncated: set[tuple[str | None, int | None, int]] = set()
        self.num_tokens: dict[tuple[str, str], int] = {}

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Per request (context, continuation): ln p(continuation | context), and whether greedy decoding gives it."""
        pairs, reasons = [], _Reasons()
        for request in requests:
            context, continuation = encode_pair(self.tokenizer, *request.args)
            self.num_tokens[request.args] = len(continuation)
            # The last token is only predicted, so the model reads one token less than there are.
            kept = self._truncate(context + continuation[:-1], request, reasons, self.max_length)
            if len(kept) < len(continuation):
                reasons.add(
                    request,
                    f"max_length={self.max_length} is below the {len(continuation)} tokens of an answer in {request.task_name!r}",
                )
            pairs.append((kept, continuation))
        reasons.check()
        return score_continuations(self.model, pairs, batch_size=self.batch_size, device=self._device)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Per request (text,): ln p(text), in lm-eval's windows of max_length tokens, the first of which begins with BOS."""
        pairs, owners, reasons = [], [], _Reasons()
        for i, request in enumerate(requests):
            tokens = self.tokenizer.encode(request.args[0])
            if request.args[0] and not tokens:
                raise ValueError(f"the text {request.args[0]!r} has no tokens")
            length = self.max_length or max(1, len(tokens))
            windows = get_rolling_token_windows(tokens, prefix_token=self.tokenizer.bos, max_seq_len=length, context_len=1)
            for context, continuation in map(make_disjoint_window, windows):
                pairs.append((self._truncate(context + continuation[:-1], request, reasons, None), continuation))
                owners.append(i)
        reasons.check()
        scores = score_continuations(self.model, pairs, batch_size=self.batch_size, device=self._device)
        totals = [0.0] * len(requests)
        for i, (log_likelihood, _) in zip(owners, scores, strict=True):
            totals[i] += log_likelihood
        return totals

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Per request (context, settings): the continuation up to `until`, at most `max_gen_toks` tokens.

        A request that is there several times is answered as often, by draws of its own where answers are sampled.
        """
        prompts, reasons = [], _Reasons()
        repeats: Counter[tuple[str | None, int | None, int]] = Counter()
        for request in requests:
            name = request.task_name, request.doc_id, request.idx
            prompts.append(self._prompt(request, f"{self.sample_seed} {name} {repeats[name]}", reasons))
            repeats[name] += 1
        reasons.check()
        return continue_prompts(self.model, self.tokenizer, prompts, batch_size=self.batch_size, device=self._device)

    def _prompt(self, request: Instance, stream: str, reasons: _Reasons) -> Prompt:
        context, given = request.args
        check_generation(given)
        settings = normalize_gen_kwargs(given)
        said = float(given.get("temperature", 1.0)) if settings["do_sample"] else 0.0
        temperature = said if self.temperature is None else self.temperature
        sampling = None
        if temperature > 0:
            sampling = Sampling(temperature, settings.get("top_k"), settings.get("top_p") or 1.0, stream)
        most, longest = self.max_length, self.model.longest
        if most is not None and longest is not None:
            # The answer needs positions too, all but its last token.
            most = max(1, min(most, longest + 1 - settings["max_gen_toks"]))
        tokens = self._truncate([self.tokenizer.bos, *self.tokenizer.encode(context)], request, reasons, most)
        if longest is not None and len(tokens) + settings["max_gen_toks"] - 1 > longest:
            reasons.add(request, _beyond(longest, len(tokens) + settings["max_gen_toks"] - 1))
        return Prompt(tokens, [stop for stop in settings["until"] if stop], settings["max_gen_toks"], sampling)

    def _truncate(self, tokens: list[int], request: Instance, reasons: _Reasons, most: int | None) -> list[int]:
        """The last `most` tokens; a reason more where the model cannot read so many."""
        longest = self.model.longest
        if most is not None and len(tokens) > most:
            self.truncated.add((request.task_name, request.doc_id, request.idx))
            tokens = tokens[-most:]
        if longest is not None and len(tokens) > longest:
            reasons.add(request, _beyond(longest, len(tokens)))
        return tokens


class _Reasons:
    """Why documents cannot be read, the first reason of each."""

    def __init__(self) -> None:
        self.found: dict[int, str] = {}

    def add(self, request: Instance, reason: str) -> None:
        self.found.setdefault(request.doc_id or 0, reason)

    def check(self) -> None:
        """Raises TooLong where there is any."""
        if self.found:
            raise TooLong(self.found)


def _beyond(longest: int, length: int) -> str:
    return f"{length} tokens are more than the {longest} that the model reads; eval.max_length={longest} cuts what is longer"
