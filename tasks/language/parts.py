"""The two parts of a text, trained on and held out, as streams of ids, wherever they come from."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tasks.language import remembered
from tasks.language.corpus import Corpus, open_corpus, split_documents
from tasks.language.packing import Stream
from tasks.language.settings import DataSettings
from tasks.language.store import open_store
from tasks.language.text_files import matching_files
from tasks.language.tokens import StoredTokens, load_tokens, warn_once
from tasks.language.vocabulary import Vocabulary


class SmallText:
    """The tokens of one part of a text that is read whole, as a `tasks.language.packing.Stream` of one stretch."""

    knows_bytes = True
    num_blocks = 1

    def __init__(self, tokens: StoredTokens, data: DataSettings, vocabulary: Vocabulary) -> None:
        self.tokens, self.data, self.vocab_size, self.bos = tokens, data, vocabulary.size, vocabulary.bos
        self.count, self.digest = tokens.records.count, tokens.digest

    def ids(self, starts: np.ndarray, length: int) -> np.ndarray:
        return self.tokens.records.runs(starts, length)["id"].astype(np.int64)

    def num_bytes(self, starts: np.ndarray, length: int) -> np.ndarray:
        return self.tokens.records.runs(starts, length)["num_bytes"].astype(np.int64)

    def boundaries(self, block: int) -> np.ndarray:
        assert block == 0
        return self._boundaries

    @functools.cached_property
    def _boundaries(self) -> np.ndarray:
        found, place = [np.zeros(0, dtype=np.int64)], 0
        for chunk in self.tokens.records.chunks():
            found.append(np.flatnonzero(chunk["id"] == self.bos) + place)
            place += len(chunk)
        return np.concatenate(found)

    def counts(self) -> np.ndarray:
        counts = np.zeros(self.vocab_size, dtype=np.int64)
        for chunk in self.tokens.records.chunks():
            counts += np.bincount(chunk["id"], minlength=self.vocab_size)
        return counts

    def keep(self) -> None:
        """Keeps the digests of its files, too; a folder that can't be written is told of by the tokens."""
        self.tokens.keep()
        with contextlib.suppress(OSError):
            for paths in filter(None, (self.data.path, self.data.validation_path)):
                for file in matching_files(paths):
                    remembered.keep(file, Path(self.data.cache).expanduser())


def open_parts(data: DataSettings, vocabulary: Vocabulary, *, seq_len: int) -> dict[str, Stream]:
    """The parts of a text. Raises ValueError for what can't be read, and for a part with fewer than seq_len ids.

    Says it in the log where a file is in both.
    """
    _tell_shared(data)
    if data.is_small:
        return _small_parts(data, vocabulary, seq_len)
    parts = open_store(data, vocabulary)
    for name, part in parts.items():
        if part.count < seq_len:
            raise ValueError(f"task.seq_len={seq_len} is more than the {part.count} tokens that the {name} text has")
    return dict(parts)


def _tell_shared(data: DataSettings) -> None:
    if data.path is None or data.validation_path is None:
        return
    trained, held_out = ({file.resolve() for file in matching_files(paths)} for paths in (data.path, data.validation_path))
    if shared := sorted(trained & held_out):
        warn_once(
            f"data.validation_path: {str(shared[0])!r} is in data.path, too: what it holds is trained on, and no test of it"
        )


def _small_parts(data: DataSettings, vocabulary: Vocabulary, seq_len: int) -> dict[str, Stream]:
    tokenizer = vocabulary.tokenizer
    assert tokenizer is not None
    corpora = _corpora(data)
    fraction = data.validation_fraction

    @functools.cache
    def split() -> dict[str, list[str]]:
        return split_documents(corpora["train"].read(), fraction)

    def documents(part: str) -> Sequence[str]:
        return split()[part] if data.validation_path is None else corpora[part].read()

    return {
        part: SmallText(
            load_tokens(
                data.cache,
                source=(corpora[part].digest, fraction, part) if data.validation_path is None else (corpora[part].digest,),
                documents=functools.partial(documents, part),
                tokenizer=tokenizer,
                seq_len=seq_len,
                name=f"the {part} text of data={data.name}",
            ),
            data,
            vocabulary,
        )
        # The smaller part comes first: a text that is too short is found at once.
        for part in ("validation", "train")
    }


def _corpora(data: DataSettings) -> dict[str, Corpus]:
    """The text of each part, or twice the text of both."""
    cache = Path(data.cache).expanduser()
    whole = open_corpus(data.path, cache)
    return {"train": whole, "validation": whole if data.validation_path is None else open_corpus(data.validation_path, cache)}
