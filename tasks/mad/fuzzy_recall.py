"""MAD's fuzzy in-context recall (Poli et al. 2024, arXiv 2403.17844): keys and values of several tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from conf.settings import Refusal, within
from tasks.mad.motifs import ABSENT, Pairs, draw_motifs
from tasks.mad.next_token import NextTokenTask
from tasks.mad.spaces import choices_for_many
from tasks.synthetic.blocks import BLOCK, Drawn
from tasks.task import Batch

# So that a row of a block and a motif in it have one number of 63 bits.
MOST_MOTIF = 4
MOST_IDS = 2**13


@dataclass(frozen=True)
class Layout:
    """Where pairs begin, which are in the example, and whose keys have come before, each [BLOCK, M + 2].

    The columns are M pairs, the probe as a pair, and the probe at the end.
    """

    begins: np.ndarray
    kept: np.ndarray
    again: np.ndarray


class FuzzyRecall(NextTokenTask):
    """Padding, then pairs of a key motif and its value motif, then a probe, one of the pairs again.

    A motif is an ordered choice of different tokens. All motifs of a size are equally likely, and so are all sizes: from 1 to
    v_motif_size for values, from 1 to k_motif_size for keys in training, and k_motif_size alone in validation and test. Ids
    are in this order: keys, values, padding; of the first vocab_size - 1 the first half are keys. A key has one value in an
    example.

    Pairs follow each other until a probe and the longest pair may not fit behind them. The probe is drawn first. It comes as
    a pair where the first pair begins at or behind a uniform place, unless it has come by chance before. Padding on the left
    fills up to seq_len + 1 tokens; the last one is only asked for.

    Training asks for every next token, padding too. Validation and test ask for all tokens of the value of a key that has
    come before.

    Difference from mad-lab: the uniform place may lie behind the last pair, and mad-lab then asks for a value that nobody has
    seen, in 2.4 % (standard error 0.2 %) of its test examples at the baseline. Validation and test here put such a probe
    before the last pair, so that every question has an answer; training does not. mad-lab's noise is left out, as in its
    benchmark.
    """

    class Settings(NextTokenTask.Settings, kw_only=True):
        vocab_size: Annotated[int, within(5, MOST_IDS)]
        k_motif_size: Annotated[int, within(1, MOST_MOTIF)]
        v_motif_size: Annotated[int, within(1, MOST_MOTIF)]

        def __post_init__(self) -> None:
            longest = self.k_motif_size + self.v_motif_size
            least = max(5, 2 * self.k_motif_size + 1, 2 * self.v_motif_size)
            if self.vocab_size < least:
                raise Refusal("vocab_size", self.vocab_size, f"whole numbers from {least}, for motifs of different tokens")
            pairs = choices_for_many(math.perm((self.vocab_size - 1) // 2, self.k_motif_size))
            least = (pairs + 1) * longest + 1
            if self.seq_len < least:
                wanted = f"whole numbers from {least}, so that there are examples for every split"
                raise Refusal("seq_len", self.seq_len, wanted)

    settings: Settings
    type = "mad.fuzzy_recall"
    version = 1

    def __init__(self, settings: Settings, *, seed: int) -> None:
        super().__init__(settings, seed=seed)
        self.padding = settings.vocab_size - 1
        self.num_keys = self.padding // 2

    def streams(self, split: str) -> tuple[int, ...]:
        return (0 if split == "train" else 1,)

    def draw(self, rng: np.random.Generator, split: str, stream: int) -> Drawn:
        pairs, origin = self._draw_pairs(rng, split)
        layout = self._layout(rng, pairs.sizes, origin, split)
        return self._written(pairs.with_first_twice_at_end(), layout, split)

    def _draw_pairs(self, rng: np.random.Generator, split: str) -> tuple[Pairs, np.ndarray]:
        """The probe, and as many pairs behind it as may be needed; the column of the first pair with each pair's key."""
        k, v = self.settings.k_motif_size, self.settings.v_motif_size
        shortest = 2 if split == "train" else k + 1
        shape = (BLOCK, 1 + math.ceil((self.seq_len - shortest - k - v) / shortest))
        key_sizes = rng.integers(1, k + 1, size=shape) if split == "train" else np.full(shape, k)
        value_sizes = rng.integers(1, v + 1, size=shape)
        keys = draw_motifs(rng, key_sizes, num_tokens=self.num_keys, most=k)
        values = draw_motifs(rng, value_sizes, num_tokens=self.padding - self.num_keys, most=v)
        values[values != ABSENT] += self.num_keys
        return Pairs(keys, key_sizes, values, value_sizes).with_one_value_a_key()

    def _layout(self, rng: np.random.Generator, sizes: np.ndarray, origin: np.ndarray, split: str) -> Layout:
        """Puts the probe among the pairs and before the end. sizes, origin: [BLOCK, 1 + M], the probe first."""
        probe, sizes, origin = sizes[:, :1], sizes[:, 1:], origin[:, 1:]
        columns = np.arange(1, 1 + sizes.shape[1])
        limit = self.seq_len - probe - self.settings.k_motif_size - self.settings.v_motif_size
        begins = sizes.cumsum(axis=1) - sizes
        # The pair before which the probe comes, how many pairs there would be without it, and the first that is the probe.
        place = 1 + (begins < rng.integers(self.seq_len - 2 * probe)).sum(axis=1, keepdims=True)
        count = (begins < limit).sum(axis=1, keepdims=True)
        by_chance = np.where(origin == 0, columns, 1 + len(columns)).min(axis=1, keepdims=True)
        if split != "train":
            place = np.where(by_chance <= count, place, np.minimum(place, count))
        inserted = (place <= by_chance) & (place <= count)
        probe_begins = np.take_along_axis(begins, np.minimum(place, count) - 1, axis=1)

        begins = begins + np.where(inserted & (columns >= place), probe, 0)
        kept = begins < limit
        again = np.where(origin == 0, inserted | (columns > by_chance), origin < columns)
        end = np.where(kept, begins + sizes, np.where(inserted, probe_begins + probe, 0)).max(axis=1, keepdims=True)
        padding = self.seq_len + 1 - probe - end
        always = np.ones_like(inserted)
        return Layout(
            padding + np.column_stack([begins, probe_begins, end]),
            np.column_stack([kept, inserted, always]),
            np.column_stack([again, ~always, always]),
        )

    def _written(self, pairs: Pairs, layout: Layout, split: str) -> Drawn:
        """The sequences, and which tokens ask."""
        sequences = np.full((BLOCK, self.seq_len + 1), self.padding, dtype=np.int32)
        asked = np.full(sequences.shape, split == "train")
        for motifs, begins in ((pairs.keys, layout.begins), (pairs.values, layout.begins + pairs.key_sizes)):
            for place, tokens in enumerate(motifs):
                rows, columns = np.nonzero((tokens != ABSENT) & layout.kept)
                where = begins[rows, columns] + place
                sequences[rows, where] = tokens[rows, columns]
                if motifs is pairs.values:
                    asked[rows, where] |= layout.again[rows, columns]
        return sequences, asked[:, 1:]

    def oracle(self, batch: Batch) -> Tensor:
        """Predictions [B, T] from the tokens alone: the value that followed the first occurrence of the present key.

        Right wherever validation or test asks, where all keys have one size; meaningless elsewhere.
        """
        return torch.tensor([self._recalled(tokens) for tokens in batch.tokens.tolist()])

    def _recalled(self, tokens: list[int]) -> list[int]:
        known: dict[tuple[int, ...], list[int]] = {}
        key: tuple[int, ...] = ()
        value: list[int] = []
        answers = []
        for token in tokens:
            if token < self.num_keys:
                key, value = (*(() if value else key), token), []
            elif token < self.padding:
                value.append(token)
                known.setdefault(key, value)
            answer = known.get(key, [])
            answers.append(answer[len(value)] if len(value) < len(answer) else 0)
        return answers
