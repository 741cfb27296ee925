"""The state of a model of transformers: its cache as tensors by name, and a copy that a step can go on from."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


class Held(dict[str, Tensor]):
    """A cache as the backbone's contract has states: its tensors [B, ...] by name, such as "0.keys" of the first layer.

    cache: the same of transformers, which knows besides how many tokens it has seen.
    """

    def __init__(self, cache: Any) -> None:
        super().__init__(held(cache))
        self.cache = cache


def held(cache: Any) -> Iterator[tuple[str, Tensor]]:
    """What a cache holds a sequence, by layer and name; numbers that all sequences share are left out."""
    for i, layer in enumerate(cache.layers):
        for name, value in vars(layer).items():
            for part, tensor in value.items() if isinstance(value, dict) else [("", value)]:
                if isinstance(tensor, Tensor) and tensor.ndim > 1:
                    yield f"{i}.{name}{'' if part == '' else f'.{part}'}", tensor


def copied(cache: Any) -> Any:
    """A cache that a forward pass writes into while this one stays as it is.

    Keys and values are grown into new tensors, so they are shared. States of recurrent layers are written over: they are copied.
    """
    made = copy.copy(cache)
    made.layers = [_copied(layer) for layer in cache.layers]
    return made


def gathered(rows: Sequence[tuple[Any, int]]) -> Any:
    """A cache of single sequences: of each a cache that has read equally many tokens, and which of its sequences."""
    first, _ = rows[0]
    made = copy.copy(first)
    made.layers = [_gathered(layer, [(cache.layers[i], row) for cache, row in rows]) for i, layer in enumerate(first.layers)]
    return made


def _gathered(first: Any, rows: Sequence[tuple[Any, int]]) -> Any:
    """A layer of the cache, whose attributes are in part tensors or tensors by name."""
    made = copy.copy(first)
    vars(made).update(_joined(vars(first), [(vars(layer), row) for layer, row in rows]))
    return made


def _joined(first: Any, rows: Sequence[tuple[Any, int]]) -> Any:
    """What holds a row a sequence as one batch; what all sequences share as it is."""
    if isinstance(first, dict):
        return {name: _joined(value, [(each[name], row) for each, row in rows]) for name, value in first.items()}
    if not isinstance(first, Tensor) or first.ndim <= 1:
        return first
    return torch.cat([each[row : row + 1] for each, row in rows])


def _copied(layer: Any) -> Any:
    made = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, dict):
            own = {part: each.clone() if isinstance(each, Tensor) else each for part, each in value.items()}
            setattr(made, name, own)
    return made


def growing(cache: Any) -> Iterator[tuple[int, int | None]]:
    """After one token of one sequence: per layer that keeps keys and values the numbers a token adds, and its window."""
    for layer in cache.layers:
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if isinstance(keys, Tensor) and isinstance(values, Tensor):
            yield keys.numel() + values.numel(), getattr(layer, "sliding_window", None)


def constant(cache: Any) -> int:
    """Numbers that recurrent layers hold per sequence, after one token of one sequence."""
    return sum(tensor.numel() for name, tensor in held(cache) if not name.endswith((".keys", ".values")))


def recurrent(cache: Any) -> int:
    """The numbers among them that are states of recurrences, without those of convolutions."""
    return sum(tensor.numel() for name, tensor in held(cache) if ".recurrent_states" in name)
