"""The documents of the `offline` benchmarks, made from held-out prose of the installed Python standard library.

lm-eval finds the functions by name (`custom_dataset: !function data.last_word`) and passes them a task's metadata and a
model's arguments, none of which they use. The content itself decides every draw, so a Python version has one data set.
Passages have nearly the same length, so that requests of one length share a batch, and every request fits into 128 bytes:
a model that was trained on more is not asked beyond it. A passage that the training half has too is left out.
Prompts are columns, not templates in the YAML, because lm-eval compiles a template anew for every document.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from tasks.language.corpus import STDLIB_VALIDATION_FRACTION, heldout_stdlib_documents, split_documents, stdlib_documents

if TYPE_CHECKING:
    import datasets

PROSE = re.compile(r"""[("'`*]*[A-Za-z]+(?:['/-][A-Za-z]+)*[)"'`*]*[.,;:?!]?""")
"""A word of prose with the punctuation around it; code and tables consist of other things."""

Document = dict[str, object]


def last_word(**metadata: object) -> dict[str, datasets.Dataset]:
    """LAMBADA's form: a passage whose last word has occurred in it before."""
    passages = _sample(120, 104, 114, _ends_with_a_word_again)
    return _splits([{"prompt": " ".join(words[:-1]), "target": " " + words[-1]} for words in passages])


def continuation(**metadata: object) -> dict[str, datasets.Dataset]:
    """HellaSwag's form: which of four continuations is the passage's own; the other three belong to other passages."""
    passages = [" ".join(words) for words in _sample(100, 100, 108)]
    halves = [_halve(passage, 68) for passage in passages]
    documents = []
    for i, (context, _) in enumerate(halves):
        # Neighbours in an order drawn by content are draws themselves, and each ending is used four times.
        endings = [halves[(i + shift) % len(halves)][1] for shift in range(4)]
        choices = sorted(endings, key=lambda ending: _digest(context + ending))
        documents.append({"prompt": context, "choices": choices, "label": choices.index(endings[0])})
    return _splits(documents)


def key_value(**metadata: object) -> dict[str, datasets.Dataset]:
    """FDA's form: a passage, then two consecutive words of it; the answer is the word that followed them."""
    documents = []
    for words in _sample(100, 80, 88, _keys):
        key = min(_keys(words), key=lambda i: _digest(" ".join(words[i:])))
        documents.append({"prompt": " ".join(words) + "\n" + " ".join(words[key : key + 2]), "target": words[key + 2]})
    return _splits(documents)


def reversed_words(**metadata: object) -> dict[str, datasets.Dataset]:
    """A word from its letters in reverse order (Brown et al. 2020, section 3.9.2)."""
    return _scrambled(lambda word: word[::-1])


def cycled_letters(**metadata: object) -> dict[str, datasets.Dataset]:
    """A word from its letters after a rotation (Brown et al. 2020, section 3.9.2)."""

    def rotate(word: str) -> str:
        shift = 1 + int(_digest(word), 16) % (len(word) - 1)
        return word[shift:] + word[:shift]

    return _scrambled(rotate)


def prose(**metadata: object) -> dict[str, datasets.Dataset]:
    """Every run of prose, in which tasks.paper hides its needles."""
    runs: list[Document] = [{"text": " ".join(run)} for run in _prose()]
    return _splits(runs)


def contains(document: Document, results: Sequence[str]) -> dict[str, float]:
    """Whether the answer has the target in it, whatever the case: how FDA and SWDE are scored (Arora et al. 2024)."""
    return {"contains": float(str(document["target"]).lower() in results[0].lower())}


def _splits(documents: Sequence[Document], examples: Sequence[Document] = ()) -> dict[str, datasets.Dataset]:
    # It takes a second to import, and a search for tasks passes here.
    import datasets

    splits = {"test": documents, "examples": examples}
    return {name: datasets.Dataset.from_list(list(split)) for name, split in splits.items() if split}


def _scrambled(scramble: Callable[[str], str]) -> dict[str, datasets.Dataset]:
    """Words of four letters, that no scrambling leaves as they were; 100 to ask and 30 to draw examples from."""
    words = {word for run in _prose() for word in run if len(word) == 4 and word.isalpha() and word.islower()}
    chosen = sorted((word for word in words if len(set(word)) > 2 and scramble(word) != word), key=_digest)
    documents = [{"prompt": f"{scramble(word)}=", "target": word} for word in chosen[:130]]
    return _splits(documents[:100], documents[100:])


def _ends_with_a_word_again(words: Sequence[str]) -> bool:
    return words[-1].isalpha() and len(words[-1]) > 4 and words[-1] in words[:-3]


def _keys(words: Sequence[str]) -> list[int]:
    """Where two words stand that occur together once, before a word of more than four letters that occurs once."""
    pairs = list(itertools.pairwise(words))
    return [
        i
        for i, pair in enumerate(pairs[:-1])
        if pairs.count(pair) == 1
        and all(map(str.isalpha, words[i : i + 3]))
        and len(words[i + 2]) > 4
        and words.count(words[i + 2]) == 1
    ]


def _halve(passage: str, length: int) -> tuple[str, str]:
    """Cuts a passage before the first word that begins after `length` bytes."""
    cut = passage.index(" ", length)
    return passage[:cut], passage[cut + 1 :]


@functools.cache
def _sample(count: int, low: int, high: int, accept: Callable[[Sequence[str]], object] = len) -> tuple[Sequence[str], ...]:
    """Passages of low to high bytes that are accepted and do not overlap: `count` of them, drawn and ordered by content.

    Every run of a request is asked about them again.
    """
    passages = {" ".join(words): words for run in _prose() for words in _passages(run, low, high, accept)}
    unseen = (text for text in sorted(passages, key=_digest) if text not in _training_text())
    return tuple(passages[text] for text in itertools.islice(unseen, count))


def _passages(words: Sequence[str], low: int, high: int, accept: Callable[[Sequence[str]], object]) -> Iterator[Sequence[str]]:
    ends = list(itertools.accumulate((len(word) + 1 for word in words), initial=0))
    start = 0
    while start < len(words):
        fitting = (
            end
            for end in range(start + 1, len(words) + 1)
            if low <= ends[end] - ends[start] - 1 <= high and accept(words[start:end])
        )
        end = next(fitting, None)
        if end is None:
            start += 1
        else:
            yield words[start:end]
            start = end


@functools.cache
def _training_text() -> str:
    """All that a model trained on this corpus may have seen, with single spaces, as passages have them."""
    training = split_documents(stdlib_documents(), STDLIB_VALIDATION_FRACTION)["train"]
    return "\n".join(" ".join(document.split()) for document in training)


@functools.cache
def _prose() -> tuple[tuple[str, ...], ...]:
    """Every run of prose in the held-out documents, as words."""
    return tuple(
        tuple(run)
        for document in heldout_stdlib_documents()
        for is_prose, run in itertools.groupby(document.split(), key=lambda word: PROSE.fullmatch(word) is not None)
        if is_prose
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
