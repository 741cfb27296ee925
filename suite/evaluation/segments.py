"""Documents read in windows and segments: each segment goes on from the state that the one before it left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.backbone import Backbone
from models.mixer import State
from suite.compute.scoring import score_features
from suite.evaluation.studies.subject import TOKENS_AT_ONCE
from tasks.progress import tell
from tasks.task import IGNORE, Batch

MOST_STATE_BYTES = 2**30
"""States of sequences that are read together: a cache of keys and values bounds their number."""


class Window(NamedTuple):
    """Ids start to start + length - 1 of a document, read behind BOS; the first `unscored` of them are read and not scored."""

    document: int
    start: int
    length: int
    unscored: int


def windows_of(lengths: Sequence[int], reading: str, context: int, stride: int) -> list[Window]:
    """The windows in which documents of these lengths are read. stride: of "sliding", at most the context."""
    windows = []
    for document, length in enumerate(lengths):
        most = context or length
        step = stride if reading == "sliding" else most
        # The last window is the first that reaches the end.
        for start in range(0, 1 + max(0, length - most + step - 1) // step * step, step):
            unscored = most - step if start else 0
            windows.append(Window(document, start, min(most, length - start), unscored))
    return windows


def read(
    model: Backbone,
    documents: Sequence[np.ndarray],
    windows: Sequence[Window],
    *,
    bos: int,
    segment: int,
    device: torch.device,
) -> Iterator[tuple[Window, int, Tensor, Tensor]]:
    """For every window and segment: the window, the place in it where the segment begins, nll [T], and what is scored [T] bool.

    Windows of one length are read together, as many as TOKENS_AT_ONCE and MOST_STATE_BYTES permit.
    """
    total, done = sum(window.length for window in windows), 0
    for together in _alike(model, windows, segment):
        state, length = None, together[0].length
        for first in range(0, length, segment):
            last = min(first + segment, length)
            batch = _segment(documents, together, first, last, bos=bos)
            state, nll = _scored(model, batch, state, device)
            for window, losses, scored in zip(together, nll, batch.asked, strict=True):
                yield window, first, losses, scored
            tell("", done := done + len(together) * (last - first), total)


def _alike(model: Backbone, windows: Sequence[Window], segment: int) -> Iterator[Sequence[Window]]:
    """Windows of one length, the longest first: nothing is padded into a state."""
    for length in sorted({window.length for window in windows}, reverse=True):
        alike = [window for window in windows if window.length == length]
        held = model.state_bytes(length, next(model.parameters()).dtype)
        count = max(1, min(TOKENS_AT_ONCE // min(segment, length), MOST_STATE_BYTES // max(1, held)))
        yield from (alike[first : first + count] for first in range(0, len(alike), count))


def _segment(documents: Sequence[np.ndarray], windows: Sequence[Window], first: int, last: int, *, bos: int) -> Batch:
    """Ids first to last - 1 of every window as targets, behind the ids before each, of which the window's own first is BOS."""
    tokens = np.full((len(windows), last - first), bos, dtype=np.int64)
    targets = np.full_like(tokens, IGNORE)
    for row, window in enumerate(windows):
        ids = documents[window.document]
        begin, skipped = window.start + first, int(first == 0)
        tokens[row, skipped:] = ids[begin + skipped - 1 : window.start + last - 1]
        unscored = max(0, min(window.unscored, last) - first)
        targets[row, unscored:] = ids[begin + unscored : window.start + last]
    return Batch(torch.from_numpy(tokens), torch.from_numpy(targets))


def _scored(model: Backbone, batch: Batch, state: list[State] | None, device: torch.device) -> tuple[list[State], Tensor]:
    """The state after a segment, and its nll [B, T] on the CPU; in a function, so that nothing else of it is held."""
    features, state = model.features(batch.tokens.to(device), state)
    return state, score_features(model, features, batch).loss
