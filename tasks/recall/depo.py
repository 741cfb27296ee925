"""Depo: several steps along a cycle whose edges stand in random order (Allen-Zhu, Physics of Language Models 4.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from conf.settings import Refusal, within
from tasks.recall.words import Words, how_many
from tasks.synthetic.answers import Answers, AnswerTask
from tasks.synthetic.blocks import BLOCK, Drawn, DrawnOnce
from tasks.task import IGNORE, Batch, Measurement, Scored

PADDING = 0
FEWEST_ITEMS = 3
# Words that an example may be made of: so many that no two streams share an example, so few that all can be listed.
FEWEST_WORDS, MOST_WORDS = 2**10, 2**14


class Depo(AnswerTask):
    """<bos>, the n edges of a directed cycle in random order, then min(n, max_queries) queries about different items of it.

    An item is a word of min_word ... max_word tokens from an alphabet (tasks/recall/words.py); the items of an example are
    different words. An edge is word(v) word(next of v). A query is <k> word(v) <answer> word(k steps on from v): <answer> asks
    for the first token of the last word, and each of its tokens for the one behind it. Padding follows.

    In training and validation n is 3 ... num_items with weight 1 / (n + sqrt(num_items)), and k uniform in 1 ... max_steps. In
    the test n is num_items, and k is a power of 2 up to max_steps, or max_steps, or 24 if that is 32, all equally likely.

    Ids: 0 is padding, 1 ... 2 alphabet are tokens of words, then <bos>, <answer>, and <k> for every k. The definition is that
    of github.com/zhuzeyuan/PhysicsLM4, data-synthetic-pretrain/Depo/depo.py, which trains on <answer> too.
    """

    class Settings(AnswerTask.Settings, kw_only=True):
        seq_len: Annotated[int, within(1, 2**15)]
        alphabet: Annotated[int, within(2, 2**13)]
        min_word: Annotated[int, within(1, 14)]
        max_word: Annotated[int, within(1, 14)]
        num_items: Annotated[int, within(FEWEST_ITEMS, 2**12)]
        max_steps: Annotated[int, within(1, 1000)]
        max_queries: Annotated[int, within(1, 2**12)]

        def __post_init__(self) -> None:
            if self.min_word > self.max_word:
                raise Refusal("min_word", self.min_word, f"whole numbers up to max_word, here {self.max_word}")
            words, fewest = how_many(self.alphabet, self.min_word, self.max_word), max(FEWEST_WORDS, self.num_items)
            if not fewest <= words <= MOST_WORDS:
                permitted = f"numbers with which min_word and max_word make {fewest} to {MOST_WORDS} words, not {words}"
                raise Refusal("alphabet", self.alphabet, permitted)
            longest = 1 + 2 * self.num_items * self.max_word + self.num_queries * (2 * self.max_word + 2)
            if self.seq_len < longest:
                raise Refusal("seq_len", self.seq_len, f"whole numbers from {longest}, for all edges and queries")

        @property
        def num_queries(self) -> int:
            """The most queries that an example has."""
            return min(self.num_items, self.max_queries)

    type = "depo"
    version = 1

    settings: Settings

    def __init__(self, settings: Settings, *, seed: int) -> None:
        super().__init__(settings, seed=seed)
        self.num_items, self.max_steps = settings.num_items, settings.max_steps
        self.bos = 2 * settings.alphabet + 1
        self.answer = self.bos + 1
        self.steps = self.answer  # <k> is steps + k
        self.vocab_size = self.steps + self.max_steps + 1
        self._words = DrawnOnce(lambda: Words.of(settings.alphabet, settings.min_word, settings.max_word))

    @property
    def test_steps(self) -> list[int]:
        """Every k of the test."""
        powers = [2**i for i in range(self.max_steps.bit_length())]
        return sorted({*powers, self.max_steps, *([24] if self.max_steps == 32 else [])})

    def draw(self, rng: np.random.Generator, split: str, stream: int) -> Drawn:
        """Tokens and targets [BLOCK, T]."""
        counts = self._draw_counts(rng, split)
        words = self._words()
        unordered = words.draw(rng, BLOCK, self.num_items)
        cycle = words.tokens[np.take_along_axis(unordered, _orders(rng, counts, self.num_items), axis=1)]
        rows = np.arange(BLOCK)[:, None]
        first = _orders(rng, counts, self.num_items)
        second = (first + 1) % counts[:, None]
        edges = np.stack([cycle[rows, first], cycle[rows, second]], axis=2)
        edges[np.arange(self.num_items) >= counts[:, None]] = PADDING
        asked = _orders(rng, counts, self.num_items)[:, : self.settings.num_queries]
        steps = self._draw_steps(rng, split, asked.shape)
        marks = np.stack([self.steps + steps, np.full_like(steps, self.answer)])[..., None]
        found = cycle[rows, (asked + steps) % counts[:, None]]
        queries = np.concatenate([marks[0], cycle[rows, asked], marks[1], found], axis=2)
        queries[np.arange(asked.shape[1]) >= counts[:, None]] = PADDING
        is_found = np.arange(queries.shape[2]) >= queries.shape[2] - self.settings.max_word
        return self._laid_out(edges.reshape(BLOCK, -1), queries.reshape(BLOCK, -1), np.tile(is_found, asked.shape[1]))

    def _laid_out(self, edges: np.ndarray, queries: np.ndarray, is_found: np.ndarray) -> Drawn:
        """Tokens and targets [BLOCK, T]: <bos>, edges and queries without the padding in them; what is found is asked."""
        spread = np.concatenate([np.full((BLOCK, 1), self.bos), edges, queries], axis=1)
        rows, columns = np.nonzero(spread)
        places = ((spread != PADDING).cumsum(axis=1) - 1)[rows, columns]
        tokens = np.full((BLOCK, self.seq_len), PADDING, dtype=np.int16)
        targets = np.full_like(tokens, IGNORE)
        tokens[rows, places] = spread[rows, columns]
        answers = np.append(np.zeros(1 + edges.shape[1], dtype=bool), is_found)[columns]
        targets[rows[answers], places[answers] - 1] = spread[rows[answers], columns[answers]]
        return tokens, targets

    def _draw_counts(self, rng: np.random.Generator, split: str) -> np.ndarray:
        """The number of items [BLOCK]."""
        if split == "test":
            return np.full(BLOCK, self.num_items)
        counts = np.arange(FEWEST_ITEMS, self.num_items + 1)
        bounds = np.cumsum(1 / (counts + np.sqrt(self.num_items)))
        return counts[np.searchsorted(bounds[:-1], bounds[-1] * rng.random(BLOCK), side="right")]

    def _draw_steps(self, rng: np.random.Generator, split: str, shape: tuple[int, ...]) -> np.ndarray:
        if split == "test":
            return np.array(self.test_steps)[rng.integers(len(self.test_steps), size=shape)]
        return rng.integers(1, self.max_steps + 1, size=shape)

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        tokens, targets = (torch.from_numpy(part).long() for part in self.drawn(split, indices))
        return Batch(tokens, targets)

    def oracle(self, batch: Batch) -> Tensor:
        """Predictions [B, T] from the tokens alone: words are read, edges looked up, one step after the other taken."""
        answers = torch.zeros_like(batch.tokens)
        for row, tokens in enumerate(batch.tokens.tolist()):
            words: list[tuple[int, ...]] = []
            following: dict[tuple[int, ...], tuple[int, ...]] = {}
            word: tuple[int, ...] = ()
            steps = 0
            for place, token in enumerate(tokens):
                if token > self.steps:
                    following = following or dict(zip(words[::2], words[1::2], strict=True))
                    steps = token - self.steps
                elif token == self.answer:
                    found = words[-1]
                    for _ in range(steps):
                        found = following[found]
                    answers[row, place : place + len(found)] = torch.tensor(found)
                elif PADDING < token < self.bos:
                    word = (*word, token)
                    if token > self.settings.alphabet:
                        words.append(word)
                        word = ()
        return answers

    def measure(self, split: str, scored: Iterable[Scored]) -> list[Measurement]:
        """accuracy, accuracy_macro and nll over tokens, and exact_match over words, overall and by k.

        exact_match: the share of queries whose word is right in all of its tokens.
        """
        parts, count = [], 0
        for batch, loss, prediction in scored:
            asked = batch.asked
            columns = (*self._queries(batch), batch.targets, self.right(batch, prediction), loss.double())
            parts.append([count + asked.nonzero()[:, 0].numpy(), *(column[asked].numpy() for column in columns)])
            count += len(batch.targets)
        example, query, steps, target, right, nll = map(np.concatenate, zip(*parts, strict=True))
        rows = [row for row in Answers(example, target, right, nll, count).scores(split, {}) if row.metric != "exact_match"]
        first, number = np.unique(example * self.seq_len + query, return_index=True, return_inverse=True)[1:]
        words = Answers(number, target, right, nll, len(first))
        rows.append(_exact_match(words, example[first], split))
        for k in np.unique(steps).tolist():
            chosen = words.only(np.flatnonzero(steps[first] == k)).scores(split, {"k": k})
            # A query is not an example of the split.
            rows += [dataclasses.replace(row, examples=None) for row in chosen]
        return rows

    def _queries(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """For every token the number of the query that it belongs to, and that query's k [B, T], 0 before the first."""
        begins = batch.tokens > self.steps
        places = torch.where(begins, torch.arange(self.seq_len), 0).cummax(dim=1).values
        return begins.cumsum(dim=1), (batch.tokens.gather(1, places) - self.steps).clamp(min=0)


def _exact_match(words: Answers, example: np.ndarray, split: str) -> Measurement:
    """The share of right words; with that of every example where all have equally many, so that both agree."""
    right = np.bincount(words.example, words.right) == np.bincount(words.example)
    asked = np.bincount(example)
    examples = tuple((np.bincount(example, right) / asked).tolist()) if (asked == asked[0]).all() else None
    return Measurement("exact_match", float(right.mean()), split, {}, len(right) if examples is None else len(asked), examples)


def _orders(rng: np.random.Generator, counts: np.ndarray, most: int) -> np.ndarray:
    """In every row the numbers below `most` [N, most]: first those below the row's count in random order, then the others."""
    keys = rng.random((len(counts), most))
    keys[np.arange(most) >= counts[:, None]] = 1.0
    return keys.argsort(axis=1, kind="stable")
