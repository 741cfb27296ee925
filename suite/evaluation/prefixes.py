"""Reading token sequences that share beginnings: a beginning is read once, and its state is carried on by all that go on from it.

The sequences of a benchmark share much: the choices of a question its text, the questions of a task its examples. Nothing is
padded into a state: what is read together and kept has one length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from models.backbone.language_model import LanguageModel
from models.mixer import State

FEWEST = 8
"""A beginning of fewer tokens is not worth a pass of its own; and by up to so many beginnings are shortened to one length, so
that they are read together."""
WORTH = 0.25
"""A beginning is kept where that saves this share of the tokens behind the one before it, or more."""
KEPT_BYTES = 2**30
"""The bytes of the states that are kept at a time, but for those of one batch on every level of the tree; and of those that a
batch goes on from, but for batch_size of them."""


class Node:
    """The tokens from `start` to `end` of the sequences `items`, which agree up to `end`.

    ends: those of the items that end here. children: what goes on from here; where they start is said when this is read.
    tokens: one of the sequences.
    """

    def __init__(self, tokens: list[int], end: int, items: list[int], ends: list[int]) -> None:
        self.tokens, self.start, self.end = tokens, 0, end
        self.items, self.ends = items, ends
        self.children: list[Node] = []

    def shorten(self, end: int) -> None:
        """Ends before: what ended here is read behind it."""
        if self.ends and end < self.end:
            self.children.append(Node(self.tokens, self.end, list(self.ends), self.ends))
            self.ends = []
        self.end = end


class Read(NamedTuple):
    """Nodes that were read together: features [B, T, d_model], of which a node has the first end - start, and the state."""

    nodes: list[Node]
    features: Tensor
    state: list[State]


class _Open(NamedTuple):
    """A beginning of `depth` tokens while the tree is made, and what is known to go on from it."""

    depth: int
    parts: list[Node]


def shared(sequences: Sequence[list[int]], *, is_cut: bool) -> list[Node]:
    """The tree of the sequences, its roots first; sequences that are equal are one node.

    is_cut: whether beginnings are kept at all; otherwise every root is a whole sequence.
    """
    order = sorted(range(len(sequences)), key=lambda i: sequences[i])
    stack = [_Open(0, [])]
    last: Node | None = None
    for i in order:
        tokens = sequences[i]
        if last is not None and last.tokens == tokens:
            last.items.append(i)
            last.ends.append(i)
            continue
        alike = 0 if last is None or not is_cut else common(last.tokens, tokens)
        while stack[-1].depth > alike:
            _close(stack, alike)
        if stack[-1].depth < alike and last is not None:
            # The one before goes on from here too.
            stack[-1].parts.remove(last)
            stack.append(_Open(alike, [last]))
        last = Node(tokens, len(tokens), [i], [i])
        stack[-1].parts.append(last)
    while len(stack) > 1:
        _close(stack, 0)
    return stack[0].parts


def _close(stack: list[_Open], alike: int) -> None:
    """Ends the deepest beginning: it becomes a node where that is worth it, and its parts go on from an earlier one if not."""
    depth, parts = stack.pop()
    if stack[-1].depth < alike:
        stack.append(_Open(alike, []))
    before = stack[-1].depth
    saved, whole = (len(parts) - 1) * (depth - before), sum(part.end - before for part in parts)
    if depth - before < FEWEST or saved < WORTH * whole:
        stack[-1].parts.extend(parts)
        return
    node = Node(parts[0].tokens, depth, [], [])
    for part in parts:
        node.items += part.items
        if part.end == depth and not part.children:
            node.ends += part.ends
        else:
            node.children.append(part)
    stack[-1].parts.append(node)


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens two sequences share."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


class _Going(NamedTuple):
    """A node to be read, and where the state is that it goes on from: a row of a batch's, or nowhere."""

    node: Node
    state: tuple[list[State], int] | None


def read(
    model: LanguageModel, sequences: Sequence[list[int]], *, batch_size: int, slack: float, device: torch.device
) -> Iterator[Read]:
    """Reads all sequences, every node of their tree once: at most batch_size together, of what goes on from a state so many
    that they are no more tokens than as many whole sequences.

    slack: how much longer than the shortest the longest of a batch may be that nothing goes on from, from 1. The shorter ones
    are filled up behind their last token, which changes no feature of theirs, only the state; at 1 none is.
    """
    roots = shared(sequences, is_cut=model.goes_on)
    budget = KEPT_BYTES / max(1, _levels(roots))
    left = [_batches([_Going(root, None) for root in roots], batch_size, slack)]
    while left:
        going_on: list[_Going] = []
        held = 0
        for batch in left[-1]:
            nodes = [each.node for each in batch]
            features, state = _features(model, batch, device)
            yield Read(nodes, features, state)
            if nodes[0].children:
                for row, node in enumerate(nodes):
                    for child in node.children:
                        child.start = node.end
                        going_on.append(_Going(child, (state, row)))
                held += _bytes(state)
            if held > budget:
                break
        else:
            left.pop()
        if going_on:
            left.append(_batches(going_on, batch_size, slack))


def _batches(going: Sequence[_Going], batch_size: int, slack: float) -> Iterator[list[_Going]]:
    """What is read together: all from one place on, and of one length where a state is kept; that first, the longest first."""

    def key(each: _Going) -> tuple[bool, int, int]:
        return not each.node.children, -each.node.start, -each.node.end

    state = going[0].state if going else None
    affordable = KEPT_BYTES // max(1, _bytes_each(state[0])) if state else 0
    batch: list[_Going] = []
    for each in sorted(going, key=key):
        if batch:
            first, length = batch[0].node, each.node.end - each.node.start
            longest = first.end - first.start
            most = max(batch_size, min(affordable, batch_size * first.end // longest))
            near = longest <= length + min(FEWEST, length // 8) if first.children else longest <= slack * length
            if key(each)[:2] != key(batch[0])[:2] or not near or len(batch) == most:
                yield _of_one_length(batch)
                batch = []
        batch.append(each)
    if batch:
        yield _of_one_length(batch)


def _of_one_length(batch: list[_Going]) -> list[_Going]:
    for each in batch if batch[0].node.children else ():
        each.node.shorten(batch[-1].node.end)
    return batch


def _features(model: LanguageModel, batch: Sequence[_Going], device: torch.device) -> tuple[Tensor, list[State]]:
    texts = [each.node.tokens[each.node.start : each.node.end] for each in batch]
    longest = max(map(len, texts))
    tokens = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=device)
    states = [each.state for each in batch if each.state is not None]
    return model.features(tokens, model.gathered(states)) if states else model.features(tokens)


def _levels(nodes: Sequence[Node]) -> int:
    """How many beginnings lie within each other at most."""
    count, level = 0, [node for node in nodes if node.children]
    while level:
        count, level = count + 1, [child for node in level for child in node.children if child.children]
    return count


def _bytes(state: Sequence[State]) -> int:
    return sum(value.numel() * value.element_size() for block in state for value in block.values())


def _bytes_each(state: Sequence[State]) -> int:
    """The bytes of one sequence in the state of a batch."""
    return sum(value[:1].numel() * value.element_size() for block in state for value in block.values())
