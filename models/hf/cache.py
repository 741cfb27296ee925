"""The state of a model of transformers: its cache as tensors by name, and a copy that a step can go on from."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


class Held(dict[str, Tensor]):
    """A cache as the backbone's contract has states: its tensors [B, ...] by name, such as "0.keys" of the first layer.

    cache: the same of transformers, which knows besides how many tokens it has seen. filled: of every sequence the first slots
    of keys and values, so many, that hold nothing and that nothing attends to [B]; None where no sequence has any. room: how
    many tokens more a batch that is gathered of it has to hold.
    """

    def __init__(self, cache: Any, filled: Tensor | None = None, room: int = 0) -> None:
        super().__init__(held(cache))
        self.cache, self.filled, self.room = cache, filled, room


def held(cache: Any) -> Iterator[tuple[str, Tensor]]:
    """What a cache holds a sequence, by layer and name; numbers that all sequences share are left out."""
    for i, layer in enumerate(cache.layers):
        for name, value in vars(layer).items():
            for part, tensor in value.items() if isinstance(value, dict) else [("", value)]:
                if isinstance(tensor, Tensor) and tensor.ndim > 1:
                    yield f"{i}.{name}{'' if part == '' else f'.{part}'}", tensor


def copied(cache: Any) -> Any:
    """A cache that a forward pass writes into while this one stays as it is.

    Keys and values are grown into new tensors, so they are shared, and have no room to be written into. States of recurrent
    layers are written over: they are copied.
    """
    made = copy.copy(cache)
    made.layers = [_copied(layer) for layer in cache.layers]
    return made


def gathered(rows: Sequence[tuple[Held, int]]) -> Held:
    """The states of single sequences as one batch: of each the state of a batch, and which of its sequences.

    They have read equally many tokens, or have room and keep keys and values alone (`only_grows`): then the shorter ones are
    filled up in front.
    """
    first = rows[0][0].cache
    if only_grows(first) and any(state.room or state.filled is not None for state, _ in rows):
        return _side_by_side(rows)
    made = copy.copy(first)
    made.layers = [
        _gathered(layer, [(state.cache.layers[i], row) for state, row in rows]) for i, layer in enumerate(first.layers)
    ]
    return Held(made)


def _side_by_side(rows: Sequence[tuple[Held, int]]) -> Held:
    """A batch of sequences that end together, with room for what is written into it."""
    before = [0 if state.filled is None else int(state.filled[row]) for state, row in rows]
    lengths = [state.cache.get_seq_length() - own for (state, _), own in zip(rows, before, strict=True)]
    longest, room = max(lengths), max(state.room for state, _ in rows)
    made = copy.copy(rows[0][0].cache)
    made.layers = [copy.copy(layer) for layer in made.layers]
    for i, layer in enumerate(made.layers):
        tensors = []
        for name in ("keys", "values"):
            own = [getattr(state.cache.layers[i], name)[row] for state, row in rows]
            joined = own[0].new_zeros(len(rows), own[0].shape[0], longest + room, own[0].shape[2])
            for each, tensor, length in zip(joined, own, lengths, strict=True):
                each[:, longest - length : longest] = tensor[:, tensor.shape[1] - length :]
            setattr(layer, name, joined[:, :, :longest])
            tensors.append(joined)
        layer.__class__, layer.whole = _with_room(_plain(type(layer))), tuple(tensors)
    filled = [longest - length for length in lengths]
    return Held(made, torch.tensor(filled, device=joined.device) if any(filled) else None, room)


@functools.cache
def _with_room(kind: type) -> type:
    """The kind of a layer whose keys and values are the first slots of `whole`, into which new ones are written.

    transformers itself copies all of them for every token.
    """

    # As transformers calls it, which names more for other kinds of layers.
    def update(layer: Any, keys: Tensor, values: Tensor, *others: object, **named: object) -> tuple[Tensor, Tensor]:
        first = layer.get_seq_length()
        last = first + keys.shape[2]
        for whole, new in zip(layer.whole, (keys, values), strict=True):
            whole[:, :, first:last] = new
        layer.keys, layer.values = (whole[:, :, :last] for whole in layer.whole)
        return layer.keys, layer.values

    return type(kind.__name__, (kind,), {"update": update, "plain": kind})


def _plain(kind: type) -> type:
    """The kind of a layer of transformers' own."""
    return getattr(kind, "plain", kind)


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
    if "whole" in vars(made):
        del made.whole
        made.__class__ = _plain(type(made))
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


def only_grows(cache: Any) -> bool:
    """Whether a cache is the keys and values of every token and nothing else, which is what transformers names so."""
    return all(type(layer).__name__ == "DynamicLayer" for layer in cache.layers)


def has_room(cache: Any, num_tokens: int) -> bool:
    """Whether so many tokens more are written into a cache without new tensors."""
    wholes = [getattr(layer, "whole", None) for layer in cache.layers]
    return all(whole is not None and whole[0].shape[2] >= cache.get_seq_length() + num_tokens for whole in wholes)


def constant(cache: Any) -> int:
    """Numbers that recurrent layers hold per sequence, after one token of one sequence."""
    return sum(tensor.numel() for name, tensor in held(cache) if not name.endswith((".keys", ".values")))


def recurrent(cache: Any) -> int:
    """The numbers among them that are states of recurrences, without those of convolutions."""
    return sum(tensor.numel() for name, tensor in held(cache) if ".recurrent_states" in name)
