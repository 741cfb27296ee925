"""What a model makes of a text: log-likelihoods of continuations, and continuations of its own.

Both work on the recurrent state without padding, and read what several texts begin with once (suite/evaluation/prefixes.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from models.backbone.generation import at_quantiles
from models.backbone.language_model import LanguageModel
from models.mixer import State
from suite.evaluation.prefixes import Node, Read, read
from tasks.progress import counted
from tasks.tokenizer import Tokenizer

SLACK = 1.25
"""How much longer the longest continuation of a batch may be than the shortest: fuller batches for some idle tokens."""
PLACES_AT_ONCE = 128
"""Logits of so many tokens are held at a time: with a large vocabulary those of a whole batch may not fit."""


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


class Asked(NamedTuple):
    """A target of a sequence, and the token of a batch that it follows: its row and its column."""

    sequence: int
    target: int
    row: int
    column: int


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
    for batch in counted(batches, len(pairs), ended):
        for each, log_probability, is_likeliest in answered(model, batch.features, list(asked(batch.nodes, pairs))):
            totals[each.sequence] += log_probability
            greedy[each.sequence] &= is_likeliest
    return list(zip(totals, greedy, strict=True))


def ended(batch: Read) -> int:
    """How many sequences end in a batch."""
    return sum(len(node.ends) for node in batch.nodes)


def asked(nodes: Sequence[Node], pairs: Sequence[tuple[list[int], list[int]]]) -> Iterator[Asked]:
    """The targets that follow the tokens of these nodes, a row each."""
    for row, node in enumerate(nodes):
        for sequence in node.items:
            tokens, targets = pairs[sequence]
            first = len(tokens) - len(targets)
            for place in range(max(first, node.start), min(len(tokens), node.end)):
                yield Asked(sequence, targets[place - first], row, place - node.start)


def answered(model: LanguageModel, features: Tensor, every: Sequence[Asked]) -> Iterator[tuple[Asked, float, bool]]:
    """Each with ln p(target) and whether no token is likelier. features: of the batch [B, T, d_model].

    Logits are computed where something is asked, and once where several targets are, as where choices are of one token.
    """
    places = list(dict.fromkeys((each.row, each.column) for each in every))
    number = {place: i for i, place in enumerate(places)}
    ordered = sorted((number[each.row, each.column], i) for i, each in enumerate(every))
    end = 0
    for first in range(0, len(places), PLACES_AT_ONCE):
        rows, columns = zip(*places[first : first + PLACES_AT_ONCE], strict=True)
        logits = model.head(features[list(rows), list(columns)]).float()
        begin, end = end, next((k for k in range(end, len(ordered)) if ordered[k][0] >= first + PLACES_AT_ONCE), len(ordered))
        chosen = [every[i] for _, i in ordered[begin:end]]
        at = torch.tensor([place - first for place, _ in ordered[begin:end]], device=logits.device)
        targets = torch.tensor([each.target for each in chosen], device=logits.device)
        likeliest, own = logits.argmax(-1), logits[at, targets]
        # As `logsumexp`, but in the memory of the logits, which are by far the largest thing here.
        most = logits.gather(1, likeliest.unsqueeze(1))
        total = logits.sub_(most).exp_().sum(-1).log() + most.squeeze(1)
        yield from zip(chosen, (own - total[at]).tolist(), (likeliest[at] == targets).tolist(), strict=True)


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
