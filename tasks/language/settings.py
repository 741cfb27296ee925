"""What is said of a text: where it lies, how its documents are found, and how it becomes ids."""

from __future__ import annotations

from typing import Annotated, Literal

import conf.settings
from conf.paths import UserPath, UserPaths
from conf.settings import OUTSIDE, Count, Line, Name, Natural, Neutral, Refusal, between, text
from tasks.language.corpus import STDLIB_VALIDATION_FRACTION

ROWS = ("jsonl", "parquet", "huggingface")
IDS = ("bin", "npy")
FORMATS = {
    ("text_field", "rows"): ROWS,
    ("repository", "subset", "revision", "train_split", "validation_split"): ("huggingface",),
    ("vocab_size", "dtype"): IDS,
}
"""Keys that some formats alone have."""
NEUTRAL = {"rows": "documents"}


class DataSettings(conf.settings.Settings, kw_only=True):
    """A text, and how it becomes ids. What is OUTSIDE changes a run's name by the fingerprint of its ids alone.

    format: text files; JSON lines or parquet tables with a document in `text_field` of each row; a data set of the Hugging Face
    hub; or files of ids, .bin of modded-nanogpt or .npy of OLMo.
    path: files, see `matching_files`; None for the documentation of the installed Python, or for the hub. validation_path:
    files of the same format that are held out; None for a share of `path`.
    validation_fraction: the share of the characters that is held out, or of the ids with files of ids.
    held_out: which documents are: those of smallest digests up to that share, for which the whole text is read into memory, or
    each by its own digest, see `tasks.language.pieces.is_held_out`.
    rows: whether each row is a document, or a line of one that begins with a heading, as in WikiText.
    repository, subset, revision, train_split, validation_split: what to read from the hub; without a validation_split a share is
    held out.
    tokenizer: a tokenizer.json; None for bytes. bos: the id that separates documents; None for the
    tokenizer's own. vocab_size, dtype: of files of ids; dtype None for the smallest that holds every id.
    workers: processes that tokenise; None for one a core. cache: a folder.
    """

    name: Annotated[Name, OUTSIDE]
    format: Annotated[Literal["text", "jsonl", "parquet", "huggingface", "bin", "npy"], OUTSIDE, Neutral("text")]
    path: Annotated[UserPaths | None, OUTSIDE]
    validation_path: Annotated[UserPaths | None, OUTSIDE, Neutral(None)]
    validation_fraction: Annotated[float, between(0, 1)]
    held_out: Annotated[Literal["smallest", "each"], OUTSIDE, Neutral("smallest")]
    text_field: Annotated[Line | None, OUTSIDE, Neutral(None)]
    rows: Annotated[Literal["documents", "lines"], OUTSIDE, Neutral("documents")]
    repository: Annotated[Line | None, OUTSIDE, Neutral(None)]
    subset: Annotated[Line | None, OUTSIDE, Neutral(None)]
    revision: Annotated[Line | None, OUTSIDE, Neutral(None)]
    train_split: Annotated[Line | None, OUTSIDE, Neutral(None)]
    validation_split: Annotated[Line | None, OUTSIDE, Neutral(None)]
    tokenizer: Annotated[UserPath | None, OUTSIDE]
    bos: Annotated[Natural | None, OUTSIDE, Neutral(None)]
    vocab_size: Annotated[Count | None, OUTSIDE, Neutral(None)]
    dtype: Annotated[Literal["uint16", "uint32"] | None, OUTSIDE, Neutral(None)]
    workers: Annotated[Count | None, OUTSIDE, Neutral(None)]
    cache: Annotated[UserPath, OUTSIDE]

    def __post_init__(self) -> None:
        self._check_stdlib()
        if self.format == "huggingface":
            for key in ("repository", "train_split"):
                if self.path is None and getattr(self, key) is None:
                    raise Refusal(key, None, "names of the Hugging Face hub where data.path is null")
        elif self.name != "stdlib" and self.path is None:
            raise Refusal("path", None, "paths of text files, e.g. data.path='books/*.txt.xz'")
        if self.format in ROWS and self.text_field is None:
            raise Refusal("text_field", None, "the field of a row that holds its text, e.g. data.text_field=text")
        if self.format in IDS:
            for key in ("vocab_size", "bos"):
                if getattr(self, key) is None:
                    raise Refusal(key, None, f"whole numbers with files of ids, e.g. data.{key}=50256")
            assert self.vocab_size is not None and self.bos is not None
            if self.bos >= self.vocab_size:
                raise Refusal("bos", self.bos, f"ids below data.vocab_size={self.vocab_size}")

        self._check_format()

    def _check_format(self) -> None:
        """Refuses what another format than this one has."""
        if self.format != "text" and self.held_out == "smallest":
            raise Refusal("held_out", self.held_out, f"each with data.format={self.format}")
        for keys, formats in FORMATS.items():
            for key in keys if self.format not in formats else ():
                if (value := getattr(self, key)) not in (None, "documents"):
                    permitted = f"{text(NEUTRAL.get(key))} with data.format={self.format}; others take {', '.join(formats)}"
                    raise Refusal(key, value, permitted)

    def _check_stdlib(self) -> None:
        if self.name != "stdlib":
            return
        for key in ("path", "validation_path"):
            if (value := getattr(self, key)) is not None:
                raise Refusal(key, value, "null with data=stdlib; files are read with data=text")
        if (self.format, self.held_out) != ("text", "smallest"):
            key = "format" if self.format != "text" else "held_out"
            raise Refusal(key, getattr(self, key), "text and smallest with data=stdlib; files are read with data=text")
        if self.validation_fraction < STDLIB_VALIDATION_FRACTION:
            permitted = f"numbers from {STDLIB_VALIDATION_FRACTION} to below 1 with data=stdlib"
            reason = ": the offline benchmarks are made of that share of it"
            raise Refusal("validation_fraction", self.validation_fraction, permitted, reason)

    @property
    def is_small(self) -> bool:
        """Whether it is read whole, and its ids kept in one file a part; else they are kept in shards."""
        return self.format == "text" and self.held_out == "smallest"
