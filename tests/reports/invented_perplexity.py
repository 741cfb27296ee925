"""Rows of the stage `perplexity` as it writes them, with numbers that are known in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

LENGTHS = (4096, 4096, 2048, 1024, 600, 300)
"""Tokens of the documents of a text."""
BYTES_A_TOKEN = 1024
"""What a token adds to the cache of a transformer."""
BANDS = ((0, 1), (1, 64), (64, 512), (512, 2048), (2048, 4096), (4096, 16384))


def perplexity_rows(
    store,
    *,
    seed: int,
    offset: float,
    state: int | None,
    text: str = "books",
    reading: str = "carried",
    context: int = 0,
    lengths: Sequence[int] = LENGTHS,
    at_first: float = 0.0,
) -> list[dict]:
    """A stage: every document has a difficulty of its own; a model is worse by `offset` nats beyond 512 tokens.

    at_first: by how much the range of the first token alone is worse.

    state: bytes that the model holds; None for a cache of BYTES_A_TOKEN a token.
    """
    read = [min(length, context or length) for length in lengths if reading != "carried" or length >= context]
    difficulty = np.random.default_rng(7).uniform(1, 2, len(lengths))[: len(read)] + 0.01 * seed
    place = {"text": text, "reading": reading, "context": context}
    groups = {"groups": list(range(len(read)))}

    def row(metric: str, examples: Sequence[float], weights: Sequence[float], **where: int) -> dict:
        known = [(value, weight) for value, weight in zip(examples, weights, strict=True) if not math.isnan(value)]
        value = sum(value * weight for value, weight in known) / sum(weight for _, weight in known)
        written = [None if math.isnan(each) else float(each) for each in examples]
        return store.row(metric, float(value), "test", examples=written, **place, **where) | groups

    def mean(own: float, first: int, last: int) -> float:
        """The mean over the tokens first to last - 1 of a document."""
        return own + offset * max(0, last - max(first, 512)) / (last - first)

    whole = [mean(own, 0, length) for own, length in zip(difficulty, read, strict=True)]
    rows = [
        row("nll", whole, read),
        store.row("perplexity", math.exp(np.average(whole, weights=read)), "test", **place),
        row("scored_tokens", read, [1.0] * len(read)),
        store.row("short_documents", float(len(lengths) - len(read)), "test", **place),
    ]
    for low, high in BANDS:
        where = {"position_low": low, "position_high": high}
        ends = [min(length, high) for length in read]
        if not any(end > low for end in ends):
            continue
        for metric, first in (("nll", low), ("nll_so_far", 0)):
            values = [mean(own, first, end) if end > low else math.nan for own, end in zip(difficulty, ends, strict=True)]
            if (metric, high) == ("nll", 1):
                values = [value + at_first for value in values]
            rows.append(row(metric, values, [max(1, end - first) for end in ends], **where))
        rows.append(store.row("state_bytes", float(BYTES_A_TOKEN * high if state is None else state), "test", **place, **where))
    return rows
