"""What a model makes of a text: log-likelihoods of continuations, and continuations of its own.

Both work on the recurrent state without padding, and read what several texts begin with once (suite/evaluation/prefixes.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from models.backbone.generation import at_quantiles
from models.backbone.language_model import LanguageModel
from models.mixer import State
from suite.evaluation.prefixes import Node, Read, common, read
from suite.evaluation.targets import Asked, answered
from tasks.progress import counted
from tasks.tokenizer import Tokenizer

SLACK = 1.25
"""How much longer the longest continuation of a batch may be than the shortest: fuller batches for some idle tokens."""


class Sampling(NamedTuple):
    """How the tokens of an answer are drawn. temperature: above 0. top_k: among so many likeliest tokens, None for all.

    top_p: among the fewest likeliest tokens whose probabilities add up to it, 1 for all. stream: names the answer's own draws.
    """

    temperature: float
    top_k: int | None
    top_p: float
    stream: str


class Prompt(NamedTuple):
    """What to continue: at least one token, the strings that end the answer, and the most tokens it may have.

    sampling: None takes the likeliest token at every place.
    """

    tokens: list[int]
    until: list[str]
    max_tokens: int
    sampling: Sampling | None = None


@torch.inference_mode()
def score_continuations(
    model: LanguageModel, pairs: Sequence[tuple[list[int], list[int]]], *, batch_size: int, device: torch.device
) -> list[tuple[float, bool]]:
    """Per pair (read, targets): the sum of ln p(target) in nats, and whether greedy decoding gives the targets.

    The targets follow each of the last len(targets) tokens read. Raises ValueError unless len(read) >= len(targets) >= 1.
    """
    if not all(len(read) >= len(targets) >= 1 for read, targets in pairs):
        raise ValueError("a continuation has no tokens, or more than are read before its last")
    totals, greedy = [0.0] * len(pairs), [True] * len(pairs)
    batches = read(model, [tokens for tokens, _ in pairs], batch_size=batch_size, slack=SLACK, device=device)
    every = ((batch.features, list(asked(batch.nodes, pairs))) for batch in counted(batches, len(pairs), ended))
    for sequence, log_likelihood, is_likeliest in answered(model, every):
        totals[sequence] += log_likelihood
        greedy[sequence] &= is_likeliest
    return list(zip(totals, greedy, strict=True))


def ended(batch: Read) -> int:
    """How many sequences end in a batch."""
    return sum(len(node.ends) for node in batch.nodes)


def asked(nodes: Sequence[Node], pairs: Sequence[tuple[list[int], list[int]]]) -> Iterator[Asked]:
    """The targets that follow the tokens of these nodes, which were read together.

    A target follows the first row that has read the same: choices often begin alike.
    """
    order = sorted(range(len(nodes)), key=lambda row: nodes[row].tokens)
    before = {row: (other, common(nodes[other].tokens, nodes[row].tokens)) for other, row in pairwise(order)}
    for own, node in enumerate(nodes):
        for sequence in node.items:
            tokens, targets = pairs[sequence]
            first = len(tokens) - len(targets)
            for place in range(max(first, node.start), min(len(tokens), node.end)):
                row = own
                while row in before and place < before[row][1]:
                    row = before[row][0]
                yield Asked(sequence, targets[place - first], row, place - node.start)


class Begun(NamedTuple):
    """An answer to be given to the prompts `same`. state: after the prompt, from `reserve`, of this answer alone.

    logits: of its first token [V]. length: tokens of the prompt.
    """

    prompt: Prompt
    same: list[int]
    state: list[State]
    logits: Tensor
    length: int


@torch.inference_mode()
def continue_prompts(
    model: LanguageModel, tokenizer: Tokenizer, prompts: Sequence[Prompt], *, batch_size: int, device: torch.device
) -> list[str]:
    """Per prompt its continuation up to the first of its `until`, or to BOS or another end of a document.

    Prompts that are equal, samplings included, are continued once. Answers are decoded together whatever the lengths of their
    prompts, where the model's states can be.
    """
    texts, waiting = [""] * len(prompts), list[Begun]()

    def decode() -> None:
        for begun, tokens in zip(waiting, _decode(model, tokenizer, waiting), strict=True):
            for i in begun.same:
                texts[i] = before_first(tokenizer.decode(tokens), begun.prompt.until)
        waiting.clear()

    batches = read(model, [prompt.tokens for prompt in prompts], batch_size=batch_size, slack=1.0, device=device)
    for batch in counted(batches, len(prompts), ended):
        for begun in _begun(model, batch, prompts):
            if waiting and (len(waiting) == batch_size or not (model.mixes_lengths or waiting[0].length == begun.length)):
                decode()
            waiting.append(begun)
    if waiting:
        decode()
    return texts


def _begun(model: LanguageModel, batch: Read, prompts: Sequence[Prompt]) -> Iterator[Begun]:
    """The answers to the prompts that end in a batch."""
    for row, node in enumerate(batch.nodes):
        alike: dict[tuple[tuple[str, ...], int, Sampling | None], list[int]] = {}
        for i in node.ends:
            alike.setdefault((tuple(prompts[i].until), prompts[i].max_tokens, prompts[i].sampling), []).append(i)
        for same in alike.values():
            prompt = prompts[same[0]]
            state = model.reserve(model.gathered([(batch.state, row)]), max(1, prompt.max_tokens))
            yield Begun(prompt, same, state, model.head(batch.features[row, -1:])[0], node.end)


def _decode(model: LanguageModel, tokenizer: Tokenizer, begun: Sequence[Begun]) -> list[list[int]]:
    """The tokens of answers: a step a token until every answer has ended."""
    answers: list[list[int]] = [[] for _ in begun]
    draws = [Random(each.prompt.sampling.stream) if each.prompt.sampling else None for each in begun]
    gone = [each.prompt.max_tokens < 1 for each in begun]
    state = model.gathered([(each.state, 0) for each in begun])
    logits, left = torch.stack([each.logits for each in begun]), list(range(len(begun)))
    while True:
        tokens = _drawn(logits, [begun[i].prompt for i in left], [draws[i] for i in left])
        for i, token in zip(left, tokens.tolist(), strict=True):
            prompt = begun[i].prompt
            if gone[i] or token == tokenizer.bos or token in model.ends:
                gone[i] = True
                continue
            answers[i].append(token)
            text = tokenizer.decode(answers[i])
            gone[i] = len(answers[i]) == prompt.max_tokens or any(stop in text for stop in prompt.until)
        going = [row for row, i in enumerate(left) if not gone[i]]
        if not going:
            return answers
        if len(going) < len(left):
            # The others have no room left, and would be computed for nothing.
            state, tokens, left = model.gathered([(state, row) for row in going]), tokens[going], [left[row] for row in going]
        logits = model.step_(tokens, state)


def _drawn(logits: Tensor, prompts: Sequence[Prompt], draws: Sequence[Random | None]) -> Tensor:
    """The next token of every answer: logits [B, V] -> [B]. A draw is the answer's own, whatever else is in the batch."""
    if not any(draws):
        return logits.argmax(-1)
    sampled = [prompt.sampling or Sampling(1.0, 1, 1.0, "") for prompt in prompts]
    numbers = [
        (each.temperature, each.top_k or logits.shape[-1], each.top_p, draw.random() if draw else 0.0)
        for each, draw in zip(sampled, draws, strict=True)
    ]
    temperature, top_k, top_p, quantile = torch.tensor(numbers, dtype=torch.float64, device=logits.device).unbind(1)
    return at_quantiles(logits, quantile, temperature=temperature, top_k=top_k, top_p=top_p)


def before_first(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of the stops; all of it when none occurs."""
    return min((text.split(stop)[0] for stop in stops), key=len, default=text)
