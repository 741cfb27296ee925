"""Scores by position in the sequence."""

from __future__ import annotations

import numpy as np

from tasks.task import Measurement


def position_bands(seq_len: int) -> list[tuple[int, int]]:
    """The ranges [0, 1), [1, 2), [2, 4), ... of the positions below seq_len."""
    edges = [0, *(2**i for i in range((seq_len - 1).bit_length())), seq_len]
    return list(zip(edges[:-1], edges[1:], strict=True))


def rows_by_position(metric: str, split: str, values: np.ndarray) -> list[Measurement]:
    """The mean of values [N, T] over everything, at every position, and in bands of positions.

    The bands are those of `position_bands` and the last quarter. The rows of bands, and the mean over everything, come with
    the mean of every example, for paired intervals.
    """
    count, length = values.shape
    rows = [_mean(metric, split, {}, values)]
    rows += [Measurement(metric, float(values[:, t].mean()), split, {"position": t}, count) for t in range(length)]
    bands = dict.fromkeys([*position_bands(length), (length - length // 4, length)])
    for low, high in bands:
        if low < high:
            rows.append(_mean(metric, split, {"position_low": low, "position_high": high}, values[:, low:high]))
    return rows


def _mean(metric: str, split: str, place: dict[str, int], values: np.ndarray) -> Measurement:
    examples = values.mean(axis=1)
    return Measurement(metric, float(examples.mean()), split, place, len(values), tuple(examples.tolist()))
