"""From text to token ids and back."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tasks.files import read_regular

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers import Tokenizer as Backend

BOS_NAMES = ("<|endoftext|>", "<|begin_of_text|>", "<bos>", "<s>", "[BOS]")
MAX_FILE_BYTES = 2**28  # several times the largest that is known
MAX_VOCAB_SIZE = 2**21  # three ids are one number below 2**63 in tasks.ngram


class Tokenizer(ABC):
    """vocab_size: number of ids. bos: the id that begins and separates documents, and that no text has.

    fingerprint: hexadecimal digest. name: what `data.tokenizer` says, for messages.
    """

    name: str
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
        """Per text its ids [N] and how many of its UTF-8 bytes each id covers [N]; these add up to all bytes that are predicted.

        They are all of them where the ids decode to the text. Else a character counts if the id that covers it, or the few
        that share it, decode to just what they cover: not what a tokenizer drops, rewrites or calls unknown.
        The bytes of a character that several ids share are counted at the first of them.
        """


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


class FileTokenizer(Tokenizer):
    """Any `tokenizer.json` of the package `tokenizers`, without what it does at random.

    BOS is the first of BOS_NAMES in its vocabulary that no text can give, or else one more id.
    Raises ValueError, naming the file, when it can't be read as a tokenizer or can't encode a text.
    """

    def __init__(self, path: str) -> None:
        # It takes a second to import and bytes don't need it.
        from tokenizers import Tokenizer as Backend

        self.name = path
        try:
            definition = read_regular(os.path.expanduser(path), limit=MAX_FILE_BYTES, follow=True)
        except (OSError, ValueError) as error:
            raise ValueError(f"data.tokenizer={path!r} cannot be read: {getattr(error, 'strerror', error)}") from error
        with self._named("is not a tokenizer.json"):
            self._backend = Backend.from_buffer(definition)
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
        listed = [name for name in BOS_NAMES if name in vocabulary]
        safe = [name for name in listed if not _may_be_encoded(self._backend, name)]
        self.bos = vocabulary[safe[0]] if safe else largest + 1
        self.vocab_size = max(largest, self.bos) + 1
        # Another BOS than a file's first is another tokenizer than the file alone says.
        changed = b"" if safe[:1] == listed[:1] else b" bos=%d" % self.bos
        self.fingerprint = hashlib.sha256(definition + changed).hexdigest()

    @contextlib.contextmanager
    def _named(self, failing: str) -> Iterator[None]:
        try:
            yield
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        # The package raises plain Exceptions, and what panics in it is not even one.
        except BaseException as error:
            raise ValueError(f"data.tokenizer={self.name!r} {failing}: {' '.join(str(error).split())}") from error

    def _encodings(self, backend: Backend, texts: Sequence[str]) -> list[Encoding]:
        with self._named("cannot encode the text"):
            encodings = backend.encode_batch(list(texts), add_special_tokens=False)
        if any(self.bos in encoding.ids for encoding in encodings):
            raise ValueError(f"data.tokenizer={self.name!r} gives its BOS, id {self.bos}, for a text")
        return encodings

    def encode(self, text: str) -> list[int]:
        return self._encodings(self._backend, [text])[0].ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._backend.decode([i for i in ids if i != self.bos], skip_special_tokens=True)

    def align(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        encodings = self._encodings(self._backend, texts)
        with self._named("cannot decode its ids"):
            decoded = self._backend.decode_batch([e.ids for e in encodings], skip_special_tokens=False)
        aligned = []
        for text, encoding, back in zip(texts, encodings, decoded, strict=True):
            num_bytes = _covered(text, encoding.offsets)
            if back != text:
                given_back = self._given_back(text)
                # Where nothing is lost, e.g. but for a space put in front, both add up to all bytes.
                num_bytes = num_bytes if given_back.sum() == num_bytes.sum() == len(text.encode()) else given_back
            aligned.append((np.array(encoding.ids, dtype=np.int64), num_bytes))
        return aligned

    @functools.cached_property
    def _exact_backend(self) -> Backend:
        """The same without a post-processor, which may cut white space off what a token covers."""
        from tokenizers import Tokenizer as Backend

        backend = Backend.from_str(self._backend.to_str())
        backend.post_processor, backend.encode_special_tokens = None, True
        return backend

    def _given_back(self, text: str) -> np.ndarray:
        """Bytes of those characters [N] that ids give back when they are decoded, counted at the first id of each group."""
        ids, spans = (encoding := self._encodings(self._exact_backend, [text])[0]).ids, encoding.offsets
        decode = functools.partial(self._backend.decode, skip_special_tokens=False)
        # Some decoders leave out a space in front of all, so that something has to stand there.
        context = ids[:1]
        front, known = decode(context), {}
        num_bytes = np.zeros(len(ids), dtype=np.int64)
        first = end = 0
        for after in range(1, len(ids) + 1):
            end = max(end, spans[after - 1][1])
            # Tokens that share a character are of use together only.
            if after < len(ids) and spans[after][0] < end:
                continue
            group = tuple(ids[first:after]), text[spans[first][0] : end]
            if group not in known:
                known[group] = _bytes_said(decode([*context, *group[0]]).removeprefix(front), group[1])
            num_bytes[first], first = known[group], after
        return num_bytes


def _bytes_said(said: str, covered: str) -> int:
    """UTF-8 bytes of what a token covers, if that is what it says; white space around it may differ and is then left out."""
    if said == covered:
        return len(covered.encode())
    return len(covered.strip().encode()) if said.strip() == covered.strip() else 0


def _may_be_encoded(backend: Backend, name: str) -> bool:
    """Whether some text may have the id of this name; only what is certain says no.

    Special tokens are not looked for in a text, so that what remains is the model: all of its vocabulary may be given,
    but by a BPE only what its merges make, single characters and the unknown token.
    """
    added = {token.content: token.special for token in backend.get_added_tokens_decoder().values()}
    if name not in backend.get_vocab(with_added_tokens=False):
        return not added[name]
    model = json.loads(backend.to_str())["model"]
    if not added.get(name, True) or model["type"] != "BPE" or model["ignore_merges"] or model["unk_token"] == name:
        return True
    prefix, suffix = model["continuing_subword_prefix"] or "", model["end_of_word_suffix"] or ""
    merged = any(left + right.removeprefix(prefix) == name for left, right in model["merges"])
    return merged or len(name.removeprefix(prefix).removesuffix(suffix)) == 1


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
    return ByteTokenizer() if path is None else FileTokenizer(str(path))
