"""What ids mean to a model: how many there are, which separates documents, and the tokenizer behind them, if there is one."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.language.settings import IDS, DataSettings
from tasks.language.tokenizer import load_tokenizer
from tasks.tokenizer import Tokenizer


@dataclass(frozen=True)
class Vocabulary:
    """size: number of ids. bos: the one that separates documents. fingerprint: a digest of how a text becomes ids.

    tokenizer: None for files of ids of which no tokenizer is known.
    """

    size: int
    bos: int
    fingerprint: str
    tokenizer: Tokenizer | None

    @classmethod
    def of(cls, data: DataSettings) -> Vocabulary:
        """Raises ValueError for a tokenizer that can't be read, or has more ids than the files that it is said to have made."""
        if data.format not in IDS:
            tokenizer = load_tokenizer(data.tokenizer, data.bos)
            return cls(tokenizer.vocab_size, tokenizer.bos, tokenizer.fingerprint, tokenizer)
        assert data.vocab_size is not None and data.bos is not None
        known = None if data.tokenizer is None else load_tokenizer(data.tokenizer, data.bos)
        if known is not None and known.vocab_size > data.vocab_size:
            permitted = f"permitted with data.tokenizer={known.name!r} are whole numbers from {known.vocab_size}"
            raise ValueError(f"data.vocab_size={data.vocab_size} is out of range, {permitted}")
        return cls(data.vocab_size, data.bos, f"ids below {data.vocab_size}, BOS {data.bos}", known)
