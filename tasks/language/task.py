"""Next-token prediction on packed text (MesaNet, arXiv 2506.05233, App. G: data and evaluation)."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Literal, Never

import numpy as np
import torch

from conf.settings import Count, Neutral
from tasks.language.ngram import trigram_bits, unigram_bits
from tasks.language.packing import Documents, Runs
from tasks.language.parts import open_parts
from tasks.language.settings import DataSettings as DataSettings
from tasks.language.vocabulary import Vocabulary
from tasks.positions import position_bands
from tasks.task import IGNORE, Batch, Measurement, Scored, Task, perplexity

TRIGRAM_TOKENS = 2**22  # training tokens counted for the trigram floor, from the start: bounds its time and memory
CHUNK_IDS = 2**22  # ids of examples that are looked at together: bounds memory where all of a split are


class Language(Task):
    """Documents with BOS between any two, packed into examples of seq_len ids s; packing: see `tasks.language.packing`.

    An example predicts s from [BOS, s_0, ..., s_{T-2}]: every position 0 to T-1 has a target, and the first sees BOS alone,
    whether a document begins there or goes on. Predicting BOS isn't asked (IGNORE).

    packing: "runs" of the documents in order, of which no target is lost; or "documents", as in the paper: each example
    begins with a piece of a document, and is filled with others that are drawn at random.
    reset_at_bos: whether the state is reset at BOS, so that no document sees the one before it.
    max_validation_examples: how many examples of the held-out text are scored, spread evenly over it; None for all.
    seed: has no effect; the order of examples belongs to the training loop.
    Raises ValueError for data that can't be read and for a text shorter than seq_len.
    """

    class Settings(Task.Settings, kw_only=True):
        data: DataSettings
        packing: Annotated[Literal["runs", "documents"], Neutral("runs")]
        reset_at_bos: bool
        max_validation_examples: Count | None

    type = "language.Language"
    version = 1
    splits = ("train", "validation")
    measures_positions = True
    settings: Settings
    vocabulary: Vocabulary

    def __init__(self, settings: Settings, *, seed: int) -> None:
        self._read_settings(settings, seed=seed)
        packing = Runs if settings.packing == "runs" else Documents
        streams = open_parts(settings.data, self.vocabulary, seq_len=settings.seq_len)
        self._parts = {
            split: packing(stream, seq_len=settings.seq_len, bos=self.vocabulary.bos) for split, stream in streams.items()
        }
        held_out = self._parts["validation"].count
        # Counting takes as long as ten steps, and every run of a request asks for the same.
        self._floors: dict[str, list[Measurement]] = {}
        self._scored = min(held_out, settings.max_validation_examples or held_out)
        for split in self.splits:
            if not any(self._asks(split, i) for i in range(self.num_examples(split))):
                name = None if self.tokenizer is None else self.tokenizer.name
                given = f"of {self.num_examples(split)} examples the ids of data.tokenizer={name!r} give no byte back"
                raise ValueError(f"data.path: the {split} text asks nothing, {given}")

    def _read_settings(self, settings: Settings, *, seed: int) -> None:
        super().__init__(settings, seed=seed)
        self.vocabulary = Vocabulary.of(settings.data)
        self.tokenizer, self.vocab_size = self.vocabulary.tokenizer, self.vocabulary.size

    def _asks(self, split: str, index: int) -> bool:
        """Whether there is text in an example: bytes that are predicted, or, where they are not known, an id other than BOS."""
        part, places = self._parts[split], self._places(split, [index])
        if part.stream.knows_bytes:
            return bool(part.num_bytes(places).any())
        return bool((part.ids(places) != self.vocabulary.bos).any())

    def prepare(self) -> None:
        for part in self._parts.values():
            part.stream.keep()

    def num_examples(self, split: str) -> int:
        return self._scored if split == "validation" else self._parts[split].count

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        ids, bos = self._parts[split].ids(self._places(split, indices)), self.vocabulary.bos
        begin = np.full((len(ids), 1), bos)
        tokens = torch.from_numpy(np.concatenate([begin, ids[:, :-1]], axis=1))
        targets = torch.from_numpy(np.where(ids == bos, IGNORE, ids))
        return Batch(tokens, targets, starts=tokens == bos if self.settings.reset_at_bos else None)

    def _places(self, split: str, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Which examples of a part these are: those that are scored are spread over the held-out text."""
        places = np.asarray(indices, dtype=np.int64)
        return places * self._parts[split].count // self._scored if split == "validation" else places

    def _chunks(self, split: str, count: int) -> Iterator[np.ndarray]:
        """The first `count` examples of a split, as many at a time as have CHUNK_IDS ids."""
        size = max(1, CHUNK_IDS // self.seq_len)
        for first in range(0, count, size):
            yield self._places(split, range(first, min(first + size, count)))

    def groups(self, split: str) -> tuple[int, ...]:
        """The document to which most tokens of an example belong, the earlier of two with as many; documents are counted."""
        return tuple(self._parts[split].documents(self._places(split, range(self.num_examples(split)))))

    def fingerprint(self) -> str:
        """Digest of the tokens of both splits and of their tokenizer, wherever and however the text is kept."""
        parts = [self.vocabulary.fingerprint, *(self._parts[split].stream.digest for split in self.splits)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def resized(self, *, seq_len: int, examples: int) -> Language:
        fingerprint, changes = self.fingerprint(), {"seq_len": seq_len, "max_validation_examples": examples}
        sibling = _built(self.settings.replace(changes), self.seed)
        if sibling.fingerprint() != fingerprint:
            raise ValueError(f"data={self.settings.data.name}: its text has changed since the run was planned")
        return sibling

    def measure(self, split: str, scored: Iterable[Scored]) -> list[Measurement]:
        """nll and perplexity per token, and bits_per_byte: the sum of all nll in bits over the UTF-8 bytes that are predicted.

        The nll of an example that asks nothing is NaN. These bytes are not known of files of ids, which have no bits_per_byte.
        """
        nll, asked = _gather(scored)
        count, nats = int(asked.sum()), float(nll.sum())
        each = np.divide(nll.sum(axis=1), asked.sum(axis=1), out=np.full(len(nll), math.nan), where=asked.any(axis=1))
        rows = [
            Measurement("nll", nats / count, split, {}, count, tuple(each.tolist()), self.groups(split)),
            Measurement("perplexity", perplexity(nats / count), split, {}, count),
        ]
        part = self._parts[split]
        if part.stream.knows_bytes:
            num_bytes = sum(int(part.num_bytes(places).sum()) for places in self._chunks(split, len(nll)))
            rows.append(Measurement("bits_per_byte", nats / math.log(2) / num_bytes, split, {}, num_bytes))
        return rows

    def measure_positions(self, split: str, scored: Iterable[Scored]) -> list[Measurement]:
        """The nll by position: for each of 0 to T-1 `nll` and `nll_so_far`, the mean over it and all before it.

        Then `nll` in the ranges [0, 1), [1, 2), [2, 4), ... with the mean of every example, for paired intervals; NaN
        for an example without a target in the range.
        """
        nll, asked = _gather(scored)
        sums, counts = nll.sum(axis=0), asked.sum(axis=0)
        rows, groups = [], self.groups(split)
        for metric, nats, count in (("nll", sums, counts), ("nll_so_far", sums.cumsum(), counts.cumsum())):
            # A position at which every example has BOS asks nothing.
            rows += [
                Measurement(metric, float(nats[t] / count[t]), split, {"position": t}, int(count[t]))
                for t in range(self.seq_len)
                if count[t]
            ]
        for low, high in position_bands(self.seq_len):
            inside = asked[:, low:high].sum(axis=1)
            examples = np.divide(nll[:, low:high].sum(axis=1), inside, out=np.full(len(nll), math.nan), where=inside > 0)
            if inside.any():
                place = {"position_low": low, "position_high": high}
                count = int((inside > 0).sum())
                mean = float(np.nanmean(examples))
                rows.append(Measurement("nll", mean, split, place, count, tuple(examples.tolist()), groups))
        return rows

    def references(self, split: str, *, reach: int | None) -> list[Measurement]:
        """Floors in bits per byte, at the level of this tokenizer's ids, on the scored part of `split`.

        unigram: from the counts of the training text's ids, smoothed as in `unigram_bits`. trigram: from Witten-Bell trigram
        counts of at most TRIGRAM_TOKENS training tokens, given the two tokens before, which the models see too.
        """
        if split not in self._floors:
            self._floors[split] = self._counted(split)
        return list(self._floors[split])

    def _counted(self, split: str) -> list[Measurement]:
        part = self._parts[split]
        if not part.stream.knows_bytes:
            return []
        stream, bos = self._parts["train"].stream, self.vocabulary.bos
        counts = stream.counts()
        counts[bos] = 0
        train = stream.ids(np.array([0]), min(stream.count, TRIGRAM_TOKENS))[0]
        sums, num_bytes = {"unigram": 0.0, "trigram": 0.0}, 0
        for places in self._chunks(split, self.num_examples(split)):
            runs = part.ids(places)
            asked, num_bytes = runs[runs != bos], num_bytes + int(part.num_bytes(places).sum())
            padded = np.pad(runs, ((0, 0), (2, 0)), constant_values=bos)
            contexts = np.stack([padded[:, :-2], padded[:, 1:-1]], axis=-1)[runs != bos]
            sums["unigram"] += float(unigram_bits(counts, asked).sum())
            sums["trigram"] += float(trigram_bits(train, contexts, asked, self.vocab_size).sum())
        return [Measurement(f"{name}_bits_per_byte", bits / num_bytes, split, {}, num_bytes) for name, bits in sums.items()]


class WithoutText(Language):
    """The language task of a trained model whose text is not here, for what needs its tokenizer alone.

    reason: the message of the ValueError that asking for an example raises.
    """

    def __init__(self, settings: Language.Settings, *, reason: str) -> None:
        self._read_settings(settings, seed=0)
        self.reason = reason

    def prepare(self) -> None:
        return

    def _missing(self) -> Never:
        raise ValueError(self.reason)

    _parts = _scored = property(_missing)


@functools.cache
def _built(settings: Language.Settings, seed: int) -> Language:
    """Kept, since reading a text takes seconds and several studies ask for one length."""
    return Language(settings, seed=seed)


def _gather(scored: Iterable[Scored]) -> tuple[np.ndarray, np.ndarray]:
    """The nll of all examples [N, T] in float64, zero where nothing is asked, and where something is [N, T]."""
    parts = [(part.loss, part.batch.asked) for part in scored]
    nll, asked = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    return torch.where(asked, nll.double(), 0.0).numpy(), asked.numpy()
