"""RULER's single needle in a haystack (arXiv 2404.06654): a sentence hidden in a long text, and a question about it.

Made when they are asked for, since a thousand prompts of thousands of tokens in 36 kinds are not all needed at once. The words
of keys and values are ours, the prose is the suite's own; needle, question and the noise are RULER's.
"""

from __future__ import annotations

import bisect
import contextlib
import contextvars
import functools
import re
import uuid
from collections.abc import Iterator, Sequence
from random import Random

from tasks.offline.data import prose
from tasks.tokenizer import Tokenizer

ANSWER_TOKENS = 128
"""That RULER leaves for the answer within the length."""
DEPTHS = 40
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "One of the special magic {kind}s for {key} is: {value}."
PROMPT = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}\n"
    "What is the special magic {kind} for {key} mentioned in the provided text? "
    "The special magic {kind} for {key} mentioned in the provided text is"
)
WORDS = (
    """
    able ample bitter brave brief bright broad calm clean clever cold coral cosmic dark deep distant dusty eager
    early fair famous fierce gentle golden grand green heavy hollow honest humble idle jolly keen kind large little
    lively lonely loud lucky mellow mighty misty modest narrow noble odd pale plain polite proud quick quiet rapid
    rare rough round royal rusty sharp shiny silent silver simple sleepy slow smooth solid stormy strange strong
    sunny swift tall tame tender tiny vast warm wild wise young
    """,
    """
    anchor apple arrow badger basket beacon bell bishop bottle branch bridge bucket button cabin candle canyon
    carpet castle cave chapel cherry circle cliff cloud comet copper cradle crown desert dragon eagle engine falcon
    feather fiddle field forest fountain garden glacier hammer harbor helmet hill island jacket kettle ladder
    lantern lemon lizard market meadow mirror mountain needle ocean orchard otter owl paddle palace pebble pencil
    pigeon planet pocket pony quarry rabbit raven ribbon river saddle shadow shelter spider spoon station summit
    temple thunder tiger tower tunnel valley velvet village violin wagon window
    """,
)
ADJECTIVES, NOUNS = map(str.split, WORDS)

_tokenizer: contextvars.ContextVar[Tokenizer | None] = contextvars.ContextVar("tokenizer", default=None)


@contextlib.contextmanager
def measured_by(tokenizer: Tokenizer) -> Iterator[None]:
    """In the block lengths are counted in the tokens of this tokenizer, the model's."""
    before = _tokenizer.set(tokenizer)
    try:
        yield
    finally:
        _tokenizer.reset(before)


class Needles(Sequence[dict[str, str]]):
    """`samples` prompts of nearly `length` tokens with the answer, a function of the settings and an index each.

    haystack: "noise", RULER's sentences over and over, or "prose", which every prompt begins alike. key, value: "word",
    "number" or "uuid". Raises ValueError where no tokenizer measures, and for a length that has no place for the needle.
    """

    features = {"prompt": "string", "target": "string"}

    def __init__(self, *, haystack: str, length: int, key: str, value: str, samples: int) -> None:
        tokenizer = _tokenizer.get()
        if tokenizer is None:
            raise ValueError("its prompts are measured in tokens of a model's tokenizer, and there is none")
        self.haystack, self.length, self.key, self.value, self.samples = haystack, length, key, value, samples
        self.tokenizer, self.sentences = tokenizer, (NOISE,) if haystack == "noise" else prose_sentences()

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> dict[str, str]:  # type: ignore[override]
        if not 0 <= index < self.samples:
            raise IndexError(index)
        # Keys and values have not all as many tokens.
        for sentences in range(self._most_sentences, -1, -1):
            if self._fits(made := self._made(index, sentences)):
                return made
        raise ValueError(f"length={self.length} leaves no place for the needle of prompt {index}")

    @functools.cached_property
    def _most_sentences(self) -> int:
        """That a prompt, the first, has within the length."""
        most = bisect.bisect_left(range(self.length), True, key=lambda count: not self._fits(self._made(0, count))) - 1
        if most < 1:
            raise ValueError(
                f"length={self.length} leaves no place for a needle, a sentence and {ANSWER_TOKENS} tokens of answer"
            )
        return most

    def _fits(self, made: dict[str, str]) -> bool:
        # One for BOS.
        return 1 + len(self.tokenizer.encode(made["prompt"])) + ANSWER_TOKENS <= self.length

    def _made(self, index: int, count: int) -> dict[str, str]:
        rng = Random(f"{self.haystack} {self.length} {self.key} {self.value} {index}")
        key, value = _drawn(rng, self.key), _drawn(rng, self.value)
        place = count * rng.randrange(DEPTHS) // (DEPTHS - 1)
        text = [self.sentences[i % len(self.sentences)] for i in range(count)]
        text.insert(place, NEEDLE.format(kind=self.value, key=key, value=value))
        context = ("\n" if self.haystack == "noise" else " ").join(text)
        return {"prompt": PROMPT.format(kind=self.value, key=key, context=context), "target": value}


def _drawn(rng: Random, kind: str) -> str:
    if kind == "word":
        return f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"
    return str(rng.randrange(10**6, 10**7)) if kind == "number" else str(uuid.UUID(int=rng.getrandbits(128), version=4))


@functools.cache
def prose_sentences() -> tuple[str, ...]:
    """The sentences of the held-out prose of the installed Python, one after another."""
    runs = (run["text"] for run in prose()["test"])
    return tuple(sentence for run in runs for sentence in re.split(r"(?<=[.?!]) ", run))
