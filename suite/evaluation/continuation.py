"""What a model makes of a text: log-likelihoods of continuations, and greedy continuations.

Both work on the recurrent state without padding: a batch holds sequences of equal length.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from models.backbone.language_model import LanguageModel
from tasks.language.tokenizer import Tokenizer
from tasks.progress import counted


class Prompt(NamedTuple):
    """What to continue: at least one token, the strings that end the answer, and the most tokens it may have."""

    tokens: list[int]
    until: list[str]
    max_tokens: int


def equal_length_batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices of items of the same length, at most batch_size together, the longest first."""
    buckets = defaultdict(list)
    for i, length in enumerate(lengths):
        buckets[length].append(i)
    for length in sorted(buckets, reverse=True):
        for start in range(0, len(buckets[length]), batch_size):
            yield buckets[length][start : start + batch_size]


@torch.inference_mode()
def score_continuations(
    model: LanguageModel, pairs: Sequence[tuple[list[int], list[int]]], *, batch_size: int, device: torch.device
) -> list[tuple[float, bool]]:
    """Per pair (read, targets): the sum of ln p(target) in nats, and whether greedy decoding gives the targets.

    The targets follow each of the last len(targets) tokens read. Raises ValueError unless len(read) >= len(targets) >= 1.
    """
    if not all(len(read) >= len(targets) >= 1 for read, targets in pairs):
        raise ValueError("a continuation has no tokens, or more than are read before its last")
    scores = [(0.0, True)] * len(pairs)
    for indices in counted(equal_length_batches([len(read) for read, _ in pairs], batch_size), len(pairs), len):
        features, _ = model.features(torch.tensor([pairs[i][0] for i in indices], device=device))
        # Row by row: the logits of a whole batch may not fit when the vocabulary is large.
        for i, row in zip(indices, features, strict=True):
            targets = torch.tensor(pairs[i][1], dtype=torch.long, device=device)
            logits = model.head(row[len(row) - len(targets) :]).float()
            log_likelihood = logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).sum()
            scores[i] = (log_likelihood.item(), bool((logits.argmax(-1) == targets).all()))
    return scores


def continue_greedily(
    model: LanguageModel, tokenizer: Tokenizer, prompts: Sequence[Prompt], *, batch_size: int, device: torch.device
) -> list[str]:
    """Per prompt the greedy continuation up to the first of its `until`, or to BOS or another end of a document."""
    texts = [""] * len(prompts)
    for indices in counted(equal_length_batches([len(prompt.tokens) for prompt in prompts], batch_size), len(prompts), len):
        batch = [prompts[i] for i in indices]
        for i, tokens in zip(indices, _decode(model, tokenizer, batch, device=device), strict=True):
            texts[i] = before_first(tokenizer.decode(tokens), prompts[i].until)
    return texts


@torch.inference_mode()
def _decode(model: LanguageModel, tokenizer: Tokenizer, prompts: Sequence[Prompt], *, device: torch.device) -> list[list[int]]:
    """Tokens after prompts of equal length: one prefill, then a step a token until every answer has ended."""
    answers: list[list[int]] = [[] for _ in prompts]
    ended = [prompt.max_tokens < 1 for prompt in prompts]
    features, state = model.features(torch.tensor([prompt.tokens for prompt in prompts], device=device))
    logits = model.head(features[:, -1])
    while True:
        tokens = logits.argmax(-1)
        for i, token in enumerate(tokens.tolist()):
            if ended[i] or token == tokenizer.bos or token in model.ends:
                ended[i] = True
                continue
            answers[i].append(token)
            text = tokenizer.decode(answers[i])
            ended[i] = len(answers[i]) == prompts[i].max_tokens or any(stop in text for stop in prompts[i].until)
        if all(ended):
            return answers
        logits, state = model.step(tokens, state)


def before_first(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of the stops; all of it when none occurs."""
    return min((text.split(stop)[0] for stop in stops), key=len, default=text)
