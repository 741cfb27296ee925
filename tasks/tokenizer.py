"""The contract of a tokenizer: from text to ids and back. Without torch, so that processes that only tokenise stay small."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np


class Tokenizer(ABC):
    """From text to ids and back.

    vocab_size: number of ids. bos: the id that begins and separates documents, and that no text has.
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
        """Per text its ids [N], and per id the number of the text's UTF-8 bytes that it is credited with [N].

        The numbers add up to all bytes of the text where the ids decode to it. Otherwise a byte counts only where an id,
        or the few ids that share a character, decode to it as it stands: not where a tokenizer drops, rewrites or does
        not know it. The bytes of a character that several ids share are counted at the first of them.
        """

    def encode_many(self, texts: Sequence[str]) -> list[tuple[np.ndarray, int]]:
        """Per text its ids [N], and how many of its UTF-8 bytes they are credited with: `align` without which id has which."""
        return [(ids, int(num_bytes.sum())) for ids, num_bytes in self.align(texts)]

    @abstractmethod
    def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
        """The ids of a text [N], and per id how many of the text's characters lie before its end [N]."""
