"""RegBench: in-context regular languages (Akyürek et al. 2024, arXiv 2401.12973; MesaNet, arXiv 2506.05233, App. F.2)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from conf.settings import Refusal, within
from tasks.regbench.automata import Automata, draw_automata, minimal, table
from tasks.regbench.ngram import ngram_predictions
from tasks.regbench.strings import PAD, draw_strings, longest
from tasks.synthetic.answers import AnswerTask
from tasks.synthetic.blocks import BLOCK, Drawn, FiniteTask, Space
from tasks.synthetic.splits import TINY
from tasks.task import IGNORE, Batch, Measurement, Scored

# A legal id is a bit of a whole number of 64 bits with a sign.
MOST_LETTERS = 61
MOST_STATES = 64
MOST_TOKENS = 2**16
MOST_STRINGS = 2**12
# Tokens of the first examples of a split by which guessing is judged, and by which counting is.
JUDGED, COUNTED = 2**23, 2**20
MOST_ORDER = 4


class RegBench(AnswerTask):
    """Strings of a regular language that no other split has; the target at every token is the next letter.

    A problem is one random automaton and the strings that walks through it write, with a separator between two. Nothing is
    asked where the separator or nothing follows: where a string ends is chance. Any letter that the language permits next is
    a right answer, as in the authors' `dfa_accuracy`; `next_token_accuracy` counts the one that comes. Their distance between
    a model's distribution and the true one is left out: of a model's distribution only the best id and the loss are known here.

    All splits share a stream. A hash of the minimal automaton in canonical form, which all automata of a language share,
    says to which split a problem belongs: no two splits have a language in common, under any seed. Within a split two
    problems have one language only by chance: 0.6 % of 5,000 training problems have that of an earlier one, all but a few of
    them languages of one or two states. The authors' generator removes no duplicates, neither within nor
    across splits, since it compares automata by identity; and what it draws depends on PYTHONHASHSEED.

    num_letters: a problem's alphabet is min_alphabet to num_letters of them. max_edges: of a state; the paper's setting of 4
    is exclusive. Longer problems are cut at seq_len.
    """

    class Settings(FiniteTask.Settings, kw_only=True):
        # After a first string of one letter the third token is the first that is asked.
        seq_len: Annotated[int, within(3, MOST_TOKENS)]
        num_letters: Annotated[int, within(2, MOST_LETTERS)]
        min_alphabet: Annotated[int, within(1, MOST_LETTERS)]
        min_states: Annotated[int, within(2, MOST_STATES)]
        max_states: Annotated[int, within(2, MOST_STATES)]
        max_edges: Annotated[int, within(1, MOST_LETTERS)]
        min_strings: Annotated[int, within(2, MOST_STRINGS)]
        max_strings: Annotated[int, within(2, MOST_STRINGS)]
        max_string_len: Annotated[int, within(1, MOST_STRINGS)]

        def __post_init__(self) -> None:
            if self.min_alphabet > self.num_letters:
                raise Refusal("min_alphabet", self.min_alphabet, f"whole numbers up to num_letters, here {self.num_letters}")
            if self.min_states > self.max_states:
                raise Refusal("min_states", self.min_states, f"whole numbers up to max_states, here {self.max_states}")
            if self.max_edges > (most := min(self.min_alphabet, self.min_states - 1)):
                raise Refusal("max_edges", self.max_edges, f"whole numbers up to min_alphabet and min_states - 1, here {most}")
            if self.min_strings > self.max_strings:
                raise Refusal("min_strings", self.min_strings, f"whole numbers up to max_strings, here {self.max_strings}")
            if self.num_languages <= TINY:
                fewest = math.ceil(math.log(TINY + 1, self.num_letters))
                raise Refusal("max_states", self.max_states, f"whole numbers from {fewest}, for {self.num_letters} letters")
            if longest(self.max_strings, self.max_string_len) > MOST_TOKENS:
                most = (MOST_TOKENS + 1) // self.max_strings - 1
                raise Refusal(
                    "max_string_len", self.max_string_len, f"whole numbers up to {most}, for {self.max_strings} strings"
                )

        @property
        def num_languages(self) -> int:
            """A lower bound: a cycle through all states repeats any word of that length."""
            return self.num_letters**self.max_states

    settings: Settings
    type = "regbench.RegBench"
    version = 1

    def __init__(self, settings: Settings, *, seed: int) -> None:
        super().__init__(settings, seed=seed)
        self.separator = settings.num_letters + 1
        self.vocab_size = settings.num_letters + 2

    def streams(self, split: str) -> tuple[int, ...]:
        return (0,)

    def space(self, stream: int) -> Space:
        # There are too many to list; settings with few are refused.
        return Space(self.settings.num_languages, lambda: np.empty((0, 0)), "task.max_states is too small")

    def marks(self, drawn: Drawn, stream: int) -> np.ndarray:
        # A table has a number of its own for every letter of every state: the hash tells small automata apart as well.
        return table(Automata(*drawn[:2]), self.settings.num_letters).reshape(len(drawn[0]), -1)

    def draw(self, rng: np.random.Generator, split: str, stream: int) -> Drawn:
        """Minimal automata in canonical form, two parts; tokens [BLOCK, T], and the states before them [BLOCK, T]."""
        of = self.settings
        drawn = draw_automata(
            rng,
            BLOCK,
            num_letters=of.num_letters,
            min_alphabet=of.min_alphabet,
            num_states=(of.min_states, of.max_states),
            max_edges=of.max_edges,
        )
        automata = minimal(drawn)
        strings = draw_strings(
            rng,
            automata,
            num_strings=(of.min_strings, of.max_strings),
            max_len=of.max_string_len,
            separator=self.separator,
            length=self.seq_len,
        )
        return (*automata, *strings)

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        letters, _, tokens, before = self.drawn(split, indices)
        legal = np.where(letters > 0, np.int64(1) << letters.astype(np.int64), 0).sum(axis=2)
        following = np.zeros(tokens.shape, dtype=np.int64)
        following[:, :-1] = tokens[:, 1:]
        asked = (following != PAD) & (following != self.separator)
        permitted = np.zeros(tokens.shape, dtype=np.int64)
        permitted[:, :-1] = np.take_along_axis(legal, before[:, 1:].astype(np.int64), axis=1)
        return Batch(
            torch.from_numpy(tokens.astype(np.int64)),
            torch.from_numpy(np.where(asked, following, IGNORE)),
            slices={"states": (letters[:, :, 0] > 0).sum(axis=1).tolist()},
            permitted=torch.from_numpy(np.where(asked, permitted, 0)),
        )

    def right(self, batch: Batch, prediction: Tensor) -> Tensor:
        """Which predicted ids [B, T] are letters that the language permits next."""
        assert batch.permitted is not None
        return (batch.permitted >> prediction.clamp(min=0)).bitwise_and(1).bool()

    def oracle(self, batch: Batch) -> Tensor:
        """Predictions [B, T]: the token that in fact comes next, which no model can know.

        It is legal: the strings that are shown, and what is judged to be legal, are of one automaton.
        """
        return batch.tokens.roll(-1, dims=1)

    def measure(self, split: str, scored: Iterable[Scored]) -> list[Measurement]:
        """What an AnswerTask measures, an answer being right where it is legal; and two more.

        next_token_accuracy: the share of answers that are the very next token. accuracy by `string`: the share of legal
        answers in the n-th string of the problems, from 1, as the context grows.
        """
        hits, legal, string = [], [], []

        def passed() -> Iterator[Scored]:
            for each in scored:
                batch, asked = each.batch, each.batch.asked
                hits.append((each.prediction == batch.targets)[asked].numpy())
                legal.append(self.right(batch, each.prediction)[asked].numpy())
                string.append((batch.tokens == self.separator).cumsum(1)[asked].numpy() + 1)
                yield each

        rows = super().measure(split, passed())
        exact, right, number = map(np.concatenate, (hits, legal, string))
        rows.append(Measurement("next_token_accuracy", float(exact.mean()), split, {}, len(exact)))
        for n in np.unique(number).tolist():
            mine = right[number == n]
            rows.append(Measurement("accuracy", float(mine.mean()), split, {"string": n}, len(mine)))
        return rows

    def references(self, split: str, *, reach: int | None) -> list[Measurement]:
        """`chance`, `entropy_nll`, and on validation and test `ngram1_accuracy` ... `ngram4_accuracy`.

        chance: of naming any of the different answers that the example asks for, where any legal one is right.
        entropy_nll: the entropy of the next letter for one who knows the automaton and the state, below which no nll lies.
        ngramN_accuracy: of counting in the context, see `ngram_predictions`, by the number of states too.
        All are of the first examples of a long split. What is in reach is not regarded.
        """
        batch = self._first(split, JUDGED)
        count = len(batch.tokens)
        assert batch.permitted is not None
        asked, permitted = batch.asked.numpy(), batch.permitted.numpy()
        targets = np.where(asked, batch.targets.numpy(), 0)
        answers = np.bitwise_or.reduce(np.where(asked, np.int64(1) << targets, 0), axis=1, keepdims=True)
        guess = _num_ids(permitted & answers) / _num_ids(answers)
        rows = [
            Measurement("chance", float(guess[asked].mean()), split, {}, count),
            Measurement("entropy_nll", float(np.log(_num_ids(permitted[asked])).mean()), split, {}, count),
        ]
        return rows if split == "train" else rows + self._ngram_floors(split)

    def _first(self, split: str, num_tokens: int) -> Batch:
        """As many of the first examples as have about so many tokens."""
        return self.batch(split, range(min(self.num_examples(split) or BLOCK, -(-num_tokens // self.seq_len))))

    def _ngram_floors(self, split: str) -> list[Measurement]:
        batch = self._first(split, COUNTED)
        tokens, asked, states = batch.tokens.numpy(), batch.asked.numpy(), np.asarray(batch.slices["states"])
        predictions = ngram_predictions(tokens, separator=self.separator, pad=PAD, most=MOST_ORDER)
        rows = []
        for order, prediction in enumerate(predictions, start=1):
            right = self.right(batch, torch.from_numpy(prediction)).numpy()
            places: list[tuple[dict[str, int | float | str], np.ndarray]] = [({}, np.full(len(states), True))]
            places += [({"states": n}, states == n) for n in np.unique(states).tolist()]
            for place, mine in places:
                value = float(right[mine][asked[mine]].mean())
                rows.append(Measurement(f"ngram{order}_accuracy", value, split, place, int(mine.sum())))
        return rows


def _num_ids(permitted: np.ndarray) -> np.ndarray:
    """How many bits are set, as real numbers: numpy counts them in bytes, whose logarithms are float16."""
    return np.bitwise_count(permitted).astype(np.float64)
