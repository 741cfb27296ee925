"""Next-token prediction on packed text (MesaNet, arXiv 2506.05233, App. G: data and evaluation)."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Never

import numpy as np
import torch

import conf.settings
from conf.paths import UserPath, UserPaths
from conf.settings import OUTSIDE, Count, Name, Refusal, between
from tasks.language.corpus import STDLIB_VALIDATION_FRACTION, open_corpus, split_documents
from tasks.language.ngram import trigram_bits, unigram_bits
from tasks.language.tokenizer import load_tokenizer
from tasks.language.tokens import load_tokens
from tasks.positions import position_bands
from tasks.task import IGNORE, Batch, Measurement, Scored, Task, Tokenizer

TRIGRAM_TOKENS = 2**22  # training tokens counted for the trigram floor, from the start: bounds its time and memory


class DataSettings(conf.settings.Settings, kw_only=True):
    """A text, and how it becomes ids.

    path: files, see `matching_files`; None for the documentation of the installed Python. tokenizer: a tokenizer.json; None
    for bytes. validation_fraction: the share of the characters that is held out. cache: a folder.
    """

    name: Annotated[Name, OUTSIDE]
    path: Annotated[UserPaths | None, OUTSIDE]
    tokenizer: Annotated[UserPath | None, OUTSIDE]
    validation_fraction: Annotated[float, between(0, 1)]
    cache: Annotated[UserPath, OUTSIDE]

    def __post_init__(self) -> None:
        stdlib = self.name == "stdlib"
        if stdlib and self.path is not None:
            raise Refusal("path", self.path, "null with data=stdlib; files are read with data=text")
        if not stdlib and self.path is None:
            raise Refusal("path", None, "paths of text files, e.g. data.path='books/*.txt.xz'")
        if stdlib and self.validation_fraction < STDLIB_VALIDATION_FRACTION:
            permitted = f"numbers from {STDLIB_VALIDATION_FRACTION} to below 1 with data=stdlib"
            reason = ": the offline benchmarks are made of that share of it"
            raise Refusal("validation_fraction", self.validation_fraction, permitted, reason)


class Language(Task):
    """Documents with BOS between any two, cut into runs of seq_len tokens; a last run that isn't full is dropped.

    Example i of a split predicts the i-th run s from [BOS, s_0, ..., s_{T-2}]: every position 0 to T-1 has a target,
    and no target is lost between examples. Predicting BOS isn't asked (IGNORE).

    reset_at_bos: whether the state is reset at BOS, so that no document sees the one before it.
    max_validation_examples: how many runs of the held-out text are scored, spread evenly over it; None for all.
    seed: has no effect; the order of examples belongs to the training loop.
    Raises ValueError for data that can't be read and for a text shorter than seq_len.
    """

    class Settings(Task.Settings, kw_only=True):
        data: DataSettings
        reset_at_bos: bool
        max_validation_examples: Count | None

    type = "language.Language"
    version = 1
    splits = ("train", "validation")
    measures_positions = True
    tokenizer: Tokenizer

    def __init__(self, settings: Settings, *, seed: int) -> None:
        self._read_settings(settings, seed=seed)
        data, seq_len = settings.data, settings.seq_len
        corpus, fraction = open_corpus(data.path), data.validation_fraction
        documents = functools.cache(lambda: split_documents(corpus.read(), fraction))
        self._tokens = {
            split: load_tokens(
                data.cache,
                source=(corpus.digest, fraction, split),
                documents=lambda split=split: documents()[split],
                tokenizer=self.tokenizer,
                seq_len=seq_len,
                name=f"the {split} text of data={data.name}",
            )
            # The smaller part comes first: a text that is too short is found at once.
            for split in ("validation", "train")
        }
        self._runs = {split: np.arange(tokens.records.count // seq_len) for split, tokens in self._tokens.items()}
        held_out = len(self._runs["validation"])
        scored = min(held_out, settings.max_validation_examples or held_out)
        self._runs["validation"] = np.arange(scored) * held_out // scored
        for split, runs in self._runs.items():
            if not any(self._records(split, [i])["num_bytes"].any() for i in range(len(runs))):
                given = f"of {len(runs)} examples the ids of data.tokenizer={self.tokenizer.name!r} give no byte back"
                raise ValueError(f"data.path: the {split} text asks nothing, {given}")

    def _read_settings(self, settings: Settings, *, seed: int) -> None:
        super().__init__(settings, seed=seed)
        self.tokenizer = load_tokenizer(settings.data.tokenizer)
        self.vocab_size = self.tokenizer.vocab_size

    def prepare(self) -> None:
        for tokens in self._tokens.values():
            tokens.keep()

    def num_examples(self, split: str) -> int:
        return len(self._runs[split])

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        runs = self._records(split, indices)["id"].astype(np.int64)
        begin = np.full((len(runs), 1), self.tokenizer.bos)
        tokens = torch.from_numpy(np.concatenate([begin, runs[:, :-1]], axis=1))
        targets = torch.from_numpy(np.where(runs == self.tokenizer.bos, IGNORE, runs))
        return Batch(tokens, targets, starts=tokens == self.tokenizer.bos if self.settings.reset_at_bos else None)

    def _records(self, split: str, indices: Sequence[int] | slice) -> np.ndarray:
        """The runs of these examples [B, T], as records of an id and the bytes that it covers."""
        return self._tokens[split].records.runs(self._runs[split][indices] * self.seq_len, self.seq_len)

    def groups(self, split: str) -> tuple[int, ...]:
        """The document to which most tokens of an example belong, the earlier of two with as many; documents are counted."""
        boundaries = np.flatnonzero(self._tokens[split].records["id"] == self.tokenizer.bos)
        places = self._runs[split][:, None] * self.seq_len + np.arange(self.seq_len)
        documents = np.searchsorted(boundaries, places)
        # A BOS belongs to no document.
        text = np.searchsorted(boundaries, places, side="right") == documents
        return tuple(int(d[0] + np.bincount(d - d[0], weights=t).argmax()) for d, t in zip(documents, text, strict=True))

    def fingerprint(self) -> str:
        """Digest of the tokens of both splits and of their tokenizer, wherever and however the text is kept."""
        parts = [self.tokenizer.fingerprint, *(self._tokens[split].digest for split in self.splits)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def resized(self, *, seq_len: int, examples: int) -> Language:
        fingerprint, changes = self.fingerprint(), {"seq_len": seq_len, "max_validation_examples": examples}
        sibling = _built(self.settings.replace(changes), self.seed)
        if sibling.fingerprint() != fingerprint:
            raise ValueError(f"data={self.settings.data.name}: its text has changed since the run was planned")
        return sibling

    def measure(self, split: str, scored: Iterable[Scored]) -> list[Measurement]:
        """nll and perplexity per token, and bits_per_byte: the sum of all nll in bits over the UTF-8 bytes that are predicted."""
        nll, asked = _gather(scored)
        num_bytes = int(self._records(split, slice(len(nll)))["num_bytes"].sum())
        count, nats = int(asked.sum()), float(nll.sum())
        examples = tuple((nll.sum(axis=1) / np.maximum(asked.sum(axis=1), 1)).tolist())
        return [
            Measurement("nll", nats / count, split, {}, count, examples, self.groups(split)),
            Measurement("perplexity", math.exp(nats / count), split, {}, count),
            Measurement("bits_per_byte", nats / math.log(2) / num_bytes, split, {}, num_bytes),
        ]

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
        train, bos = self._tokens["train"].records["id"], self.tokenizer.bos
        records = self._records(split, slice(None))
        runs = records["id"].astype(np.int64)
        asked, num_bytes = runs[runs != bos], int(records["num_bytes"].sum())
        padded = np.pad(runs, ((0, 0), (2, 0)), constant_values=bos)
        contexts = np.stack([padded[:, :-2], padded[:, 1:-1]], axis=-1)[runs != bos]
        floors = {
            "unigram": unigram_bits(train[train != bos], asked, self.vocab_size),
            "trigram": trigram_bits(train[:TRIGRAM_TOKENS].astype(np.int64), contexts, asked, self.vocab_size),
        }
        return [
            Measurement(f"{name}_bits_per_byte", float(bits.sum()) / num_bytes, split, {}, num_bytes)
            for name, bits in floors.items()
        ]


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

    _tokens = _runs = property(_missing)


@functools.cache
def _built(settings: Language.Settings, seed: int) -> Language:
    """Kept, since reading a text takes seconds and several studies ask for one length."""
    return Language(settings, seed=seed)


def _gather(scored: Iterable[Scored]) -> tuple[np.ndarray, np.ndarray]:
    """The nll of all examples [N, T] in float64, zero where nothing is asked, and where something is [N, T]."""
    parts = [(part.loss, part.batch.asked) for part in scored]
    nll, asked = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    return torch.where(asked, nll.double(), 0.0).numpy(), asked.numpy()
