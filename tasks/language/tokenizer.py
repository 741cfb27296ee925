"""From text to token ids and back."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tasks.files import read_regular
from tasks.tokenizer import Tokenizer

BOS_NAMES = ("<|endoftext|>", "<|begin_of_text|>", "<bos>", "<s>", "[BOS]")
MAX_FILE_BYTES = 2**28  # several times the largest that is known
MAX_VOCAB_SIZE = 2**21  # three ids are one number below 2**63 in tasks.language.ngram


class ByteTokenizer(Tokenizer):
    """The bytes of UTF-8 are the ids 0 to 255, BOS is 256."""

    vocab_size, bos = 257, 256
    fingerprint = name = "bytes"

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i != self.bos).decode(errors="replace")

    def align(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        encoded = [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]
        return [(ids, np.ones_like(ids)) for ids in encoded]

    def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
        return self.encode(text), [end for end, letter in enumerate(text, 1) for _ in letter.encode()]


class FileTokenizer(Tokenizer):
    """Any `tokenizer.json` of the package `tokenizers`, without what it does at random.

    BOS is the first of BOS_NAMES in its vocabulary that no text can give, or else one more id; or the id `bos`, if that is given.
    Raises ValueError, naming the file, when it can't be read as a tokenizer or can't encode a text.
    """

    def __init__(self, path: str, bos: int | None) -> None:
        # It takes a second to import and bytes don't need it.
        from tokenizers import Tokenizer as Backend

        self.name = path
        try:
            definition = read_regular(os.path.expanduser(path), limit=MAX_FILE_BYTES, follow=True)
        except (OSError, ValueError) as error:
            raise ValueError(f"data.tokenizer={path!r} cannot be read: {getattr(error, 'strerror', error)}") from error
        with self._named("is not a tokenizer.json"):
            self._backend = Backend.from_buffer(definition)
        # It may cut white space off what a token covers.
        self._processor, self._backend.post_processor = self._backend.post_processor, None
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        for randomness in ("dropout", "alpha", "nbest_size"):
            if getattr(self._backend.model, randomness, None) is not None:
                setattr(self._backend.model, randomness, None)
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise ValueError(f"data.tokenizer={path!r} has an empty vocabulary")
        largest = max(vocabulary.values())
        if largest + 2 > MAX_VOCAB_SIZE:
            raise ValueError(f"data.tokenizer={path!r} has the id {largest}, permitted are ids below {MAX_VOCAB_SIZE - 1}")
        self.bos, listed = largest + 1, [name for name in BOS_NAMES if name in vocabulary]
        safe = [vocabulary[name] for name in listed if not self._may_give(name, vocabulary[name])]
        # Another BOS than the first listed makes another tokenizer than the file says.
        changed = b"" if not listed or vocabulary[listed[0]] in safe else b" bos"
        self.bos = (safe or [largest + 1])[0]
        if bos is not None and bos != self.bos:
            check_bos(bos, largest + 2)
            self.bos, changed = bos, f" bos {bos}".encode()
        self.fingerprint = hashlib.sha256(definition + changed).hexdigest()
        self.vocab_size = max(largest, self.bos) + 1

    @contextlib.contextmanager
    def _named(self, failing: str) -> Iterator[None]:
        try:
            yield
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        # The package raises plain Exceptions, and what panics in it is not even one.
        except BaseException as error:
            raise ValueError(f"data.tokenizer={self.name!r} {failing}: {' '.join(str(error).split())}") from error

    def _may_give(self, name: str, token: int) -> bool:
        """Whether its own name, however it stands in a text, or characters that are in no vocabulary give an id."""
        for text in (name, f" {name} ", f"a{name}b", f"{name}{name}", "\ue000 \U000e0fff"):
            # A text that can't be encoded gives nothing.
            with contextlib.suppress(ValueError):
                if token in self.encode(text):
                    return True
        return False

    def _encoded(self, texts: Sequence[str]) -> list[Any]:
        with self._named("cannot encode the text"):
            encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        self._check_bos([encoding.ids for encoding in encodings])
        return encodings

    def _check_bos(self, every: Iterable[Sequence[int] | np.ndarray]) -> None:
        """Whatever a file may contain: documents end nowhere but at their ends."""
        if any(self.bos in ids for ids in every):
            raise ValueError(f"data.tokenizer={self.name!r} gives BOS, id {self.bos}, within a text")

    def encode(self, text: str) -> list[int]:
        return self._encoded([text])[0].ids

    def encode_many(self, texts: Sequence[str]) -> list[tuple[np.ndarray, int]]:
        with self._named("cannot encode the text"):
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        every = [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
        self._check_bos(every)
        with self._named("cannot decode its ids"):
            decoded = self._backend.decode_batch([encoding.ids for encoding in encodings], skip_special_tokens=False)
        # Only a text that doesn't come back asks which of its bytes do.
        alike = [text == back for text, back in zip(texts, decoded, strict=True)]
        rest = iter(self.align([text for text, same in zip(texts, alike, strict=True) if not same]))
        known = (len(text.encode()) if same else int(next(rest)[1].sum()) for text, same in zip(texts, alike, strict=True))
        return list(zip(every, known, strict=True))

    def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
        (encoding,) = self._encoded([text])
        return encoding.ids, list(itertools.accumulate((end for _, end in encoding.offsets), max))

    def decode(self, ids: Sequence[int]) -> str:
        return self._backend.decode([i for i in ids if i != self.bos], skip_special_tokens=True)

    def align(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        encodings, aligned = self._encoded(texts), []
        with self._named("cannot decode its ids"):
            decoded = self._backend.decode_batch([encoding.ids for encoding in encodings], skip_special_tokens=False)
            for text, encoding, back in zip(texts, encodings, decoded, strict=True):
                trimmed = self._processor.process(encoding, None, False) if self._processor else encoding
                num_bytes = _covered(text, trimmed.offsets)
                given_back = num_bytes if back == text else self._given_back(text, encoding.ids, encoding.offsets)
                # Where all comes back but e.g. for a space in front, both add up to all bytes.
                whole = given_back.sum() == len(text.encode()) and len(num_bytes)
                aligned.append((np.array(encoding.ids, dtype=np.int64), num_bytes if whole else given_back))
        return aligned

    def _given_back(self, text: str, ids: list[int], spans: list[tuple[int, int]]) -> np.ndarray:
        """Bytes [N] that each id is credited with: of its span of the text, if the id decodes to just that span.

        Ids that share a character are taken together, and their bytes counted at the first.
        """
        num_bytes = np.zeros(len(ids), dtype=np.int64)
        # Some decoders leave out a space in front of all, so that something has to stand there.
        front, known, first, end = self._backend.decode(ids[:1], skip_special_tokens=False), {}, 0, 0
        for after in range(1, len(ids) + 1):
            end = max(end, spans[after - 1][1])
            if after < len(ids) and spans[after][0] < end:
                continue
            group = tuple(ids[first:after]), text[spans[first][0] : end]
            if group not in known:
                said = self._backend.decode([ids[0], *group[0]], skip_special_tokens=False).removeprefix(front)
                same = group[1] if said == group[1] else group[1].strip() if said.strip() == group[1].strip() else ""
                known[group] = len(same.encode())
            num_bytes[first], first = known[group], after
        return num_bytes


def _covered(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """The UTF-8 bytes from the end of the previous token to the end of each token [N]; the last token takes the rest."""
    if not offsets:
        return np.zeros(0, dtype=np.int64)
    code_points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (code_points >= 0x80) + (code_points >= 0x800) + (code_points >= 0x10000)
    bytes_before = np.concatenate([[0], np.cumsum(widths)])
    ends = np.maximum.accumulate(np.array(offsets)[:, 1])
    ends[-1] = len(text)
    return np.diff(bytes_before[ends], prepend=0)


def check_bos(bos: int, vocab_size: int) -> None:
    """Raises ValueError for a BOS that is neither an id of a vocabulary nor one more."""
    if bos >= vocab_size:
        raise ValueError(f"data.bos={bos} is out of range, permitted with this tokenizer are ids from 0 to {vocab_size - 1}")


def load_tokenizer(path: str | None, bos: int | None = None) -> Tokenizer:
    """The tokenizer of `data.tokenizer`: bytes for None, else the tokenizer.json at path (ValueError if it is none).

    bos: `data.bos`, the id that separates documents; None for the tokenizer's own.
    """
    if path is None:
        if bos not in (None, ByteTokenizer.bos):
            raise ValueError(f"data.bos={bos} is out of range, permitted with bytes are null, {ByteTokenizer.bos}")
        return ByteTokenizer()
    return FileTokenizer(str(path), bos)
