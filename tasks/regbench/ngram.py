"""How well counting in the context does: the floors below which a model has not found the language's states."""

from __future__ import annotations

import numpy as np


def ngram_predictions(tokens: np.ndarray, *, separator: int, pad: int, most: int) -> np.ndarray:
    """What follows each token by counts of n-grams up to it, for n = 1 ... most [most, N, T]; meaningless at PAD.

    tokens: [N, T]. The prediction is the letter that most often followed the last n - 1 tokens, the smallest of equals;
    where nothing has followed them yet, it is that of the (n-1)-gram. The beginning of a string counts as n - 1 separators:
    what stands before it is out of sight. A separator is never predicted, and never counted as what follows.
    """
    count, length = tokens.shape
    # As if a separator stood before the first string.
    tokens = np.concatenate([np.full((count, 1), separator), tokens], axis=1)
    rows, places = np.nonzero((tokens[:, 1:] != separator) & (tokens[:, 1:] != pad))
    following = tokens[rows, places + 1]
    best, context = np.zeros(len(rows), dtype=np.int64), rows
    inside = np.ones(len(rows), dtype=bool)
    predictions = np.zeros((most, count, length + 1), dtype=np.int64)
    for order in range(most):
        if order:
            last = np.where(inside, tokens[rows, np.maximum(places - order + 1, 0)], separator)
            inside &= last != separator
            context = context * (separator + 1) + last
        top, known = _most_frequent(context, following, separator)
        best = np.where(known, top, best)
        predictions[order, rows, places] = best
    return predictions[:, :, 1:]


def _most_frequent(context: np.ndarray, following: np.ndarray, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of M events in order, what followed its context most often before [M], and whether anything did [M]."""
    order = np.argsort(context, kind="stable")
    context, following = context[order], following[order]
    seen = np.zeros((len(order) + 1, vocab_size), dtype=np.int32)
    seen[np.arange(len(order)) + 1, following] = 1
    seen = seen.cumsum(axis=0, dtype=np.int32)[:-1]
    # Events of one context are neighbours: what was seen before the first of them is of others.
    first = np.searchsorted(context, context)
    seen -= seen[first]
    top, known = np.empty(len(order), dtype=np.int64), np.empty(len(order), dtype=bool)
    top[order], known[order] = seen.argmax(axis=1), np.arange(len(order)) > first
    return top, known
