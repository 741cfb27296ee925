"""From text to token ids and back."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

BOS_NAMES = ("<|endoftext|>", "<|begin_of_text|>", "<bos>", "<s>", "[BOS]")


class Tokenizer(ABC):
    """vocab_size: number of ids. bos: the id that begins and separates documents. fingerprint: hexadecimal digest."""

    vocab_size: int
    bos: int
    fingerprint: str

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a text, no special ones among them: their names are text like any other."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special ids are left out, bytes that are not UTF-8 become U+FFFD."""

    @abstractmethod
    def align(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per text its ids [N] and how many of its UTF-8 bytes each id covers [N]; these add up to all of its bytes.

        The bytes of a character that several ids share are counted at the first of them.
        """


class ByteTokenizer(Tokenizer):
    """The bytes of UTF-8 are the ids 0 to 255, BOS is 256."""

    vocab_size, bos = 257, 256
    fingerprint = "bytes"

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i != self.bos).decode(errors="replace")

    def align(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        encoded = [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]
        return [(ids, np.ones_like(ids)) for ids in encoded]


class FileTokenizer(Tokenizer):
    """Any `tokenizer.json` of the package `tokenizers`.

    BOS is the first of BOS_NAMES in its vocabulary, or else one more id.
    Raises ValueError, naming the file, when it can't be read as a tokenizer.
    """

    def __init__(self, path: str) -> None:
        # It takes a second to import and bytes don't need it.
        from tokenizers import Tokenizer as Backend

        try:
            definition = Path(path).read_bytes()
        except OSError as error:
            raise ValueError(f"data.tokenizer={path!r} cannot be read: {error.strerror}") from error
        try:
            self._backend = Backend.from_buffer(definition)
        except ValueError as error:
            raise ValueError(f"data.tokenizer={path!r} is not a tokenizer.json: {error}") from error
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        largest = max(vocabulary.values())
        self.bos = next((vocabulary[name] for name in BOS_NAMES if name in vocabulary), largest + 1)
        self.vocab_size = max(largest, self.bos) + 1
        self.fingerprint = hashlib.sha256(definition).hexdigest()

    def encode(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._backend.decode([i for i in ids if i != self.bos], skip_special_tokens=True)

    def align(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [(np.array(e.ids, dtype=np.int64), _covered(t, e.offsets)) for t, e in zip(texts, encodings, strict=True)]


def _covered(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """UTF-8 bytes from the end of the token before to the end of each [N]; the last one takes what is left."""
    if not offsets:
        return np.zeros(0, dtype=np.int64)
    code_points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (code_points >= 0x80) + (code_points >= 0x800) + (code_points >= 0x10000)
    bytes_before = np.concatenate([[0], np.cumsum(widths)])
    ends = np.maximum.accumulate(np.array(offsets)[:, 1])
    ends[-1] = len(text)
    return np.diff(bytes_before[ends], prepend=0)


def load_tokenizer(path: str | None) -> Tokenizer:
    """The tokenizer of `data.tokenizer`: bytes for None, else the tokenizer.json at path (ValueError if it is none)."""
    return ByteTokenizer() if path is None else FileTokenizer(path)
