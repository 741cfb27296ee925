"""How likely tokens are behind others: log-likelihoods of targets by the features that they follow, in few passes of the head.

With a large vocabulary the logits are most of the work. So they are computed where something is asked, once where several
targets are, as where choices are of one token; for many places together, since every pass reads the whole head; and for one
part of the vocabulary after another, of which nothing is kept but the largest and the sum.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from models.backbone.language_model import LanguageModel

PLACES_AT_ONCE = 512
"""So many features are held before the head is applied to them."""


class Asked(NamedTuple):
    """A target of a sequence, and the token of a batch that it follows: its row and its column."""

    sequence: int
    target: int
    row: int
    column: int


class _Placed(NamedTuple):
    """A target of a sequence, and the number of the place that it follows."""

    place: int
    target: int
    sequence: int


def answered(model: LanguageModel, batches: Iterable[tuple[Tensor, Sequence[Asked]]]) -> Iterator[tuple[int, float, bool]]:
    """Per target its sequence, ln p(target) in nats, and whether no token is likelier, the first of those that are as likely.

    batches: features [B, T, d_model], and what is asked of them.
    """
    held, placed, count = list[Tensor](), list[_Placed](), 0
    for features, every in batches:
        numbers = {place: count + i for i, place in enumerate(dict.fromkeys((each.row, each.column) for each in every))}
        if numbers:
            rows, columns = zip(*numbers, strict=True)
            held.append(features[list(rows), list(columns)])
            placed += [_Placed(numbers[each.row, each.column], each.target, each.sequence) for each in every]
            count += len(numbers)
        if count >= PLACES_AT_ONCE:
            # The rest waits for others: a pass of few places takes nearly as long as one of many.
            whole, every_feature = count - count % PLACES_AT_ONCE, torch.cat(held)
            placed.sort()
            first = bisect_left(placed, whole, key=lambda each: each.place)
            yield from _answers(model, every_feature[:whole], placed[:first])
            held, count = [every_feature[whole:]], count - whole
            placed = [each._replace(place=each.place - whole) for each in placed[first:]]
    if count:
        yield from _answers(model, torch.cat(held), sorted(placed))


def _answers(model: LanguageModel, features: Tensor, placed: Sequence[_Placed]) -> Iterator[tuple[int, float, bool]]:
    for first in range(0, len(features), PLACES_AT_ONCE):
        begin, end = (bisect_left(placed, place, key=lambda each: each.place) for place in (first, first + PLACES_AT_ONCE))
        own = placed[begin:end]
        at, targets = (
            torch.tensor(each, device=features.device) for each in zip(*((p - first, t) for p, t, _ in own), strict=True)
        )
        found = log_likelihoods(model, features[first : first + PLACES_AT_ONCE], at, targets)
        yield from zip((each.sequence for each in own), *(each.tolist() for each in found), strict=True)


def log_likelihoods(model: LanguageModel, features: Tensor, at: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """ln p of every target [M] behind the feature [N, d_model] of its number, and whether it is the first of the likeliest."""
    most = torch.full((len(features),), torch.finfo(torch.float32).min, device=features.device)
    total, own = torch.zeros_like(most), torch.empty(len(targets), device=features.device)
    leads = torch.zeros(len(targets), dtype=torch.bool, device=features.device)
    # In their order the targets of a part are one piece.
    ids, order = targets.sort(stable=True)
    known = ids.tolist()
    first, begin = 0, bisect_left(known, 0)
    for part in model.head_parts(features):
        logits = part.float()
        largest = logits.amax(-1)
        end = bisect_left(known, first + logits.shape[1], begin)
        if begin < end:
            here = order[begin:end]
            rows, columns = at[here], ids[begin:end] - first
            own[here] = found = logits[rows, columns]
            # Ahead of all ids before, as likely as any of the part; of several that are equal the first counts.
            ahead = (found > most[rows]) & (found == largest[rows])
            leads[here[ahead]] = logits[rows[ahead]].argmax(-1) == columns[ahead]
        begin = end
        now = torch.maximum(most, largest)
        total = total * (most - now).exp() + logits.sub_(now.unsqueeze(1)).exp_().sum(-1)
        most, first = now, first + logits.shape[1]
    if (unknown := targets[(targets < 0) | (targets >= first)]).numel():
        raise IndexError(f"target {int(unknown[0])} of a vocabulary of {first}")
    return own - (most + total.log())[at], leads & (own == most[at])
