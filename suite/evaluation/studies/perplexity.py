"""Perplexity on documents of any length, in memory that does not grow with them where the model's state does not.

A document is read in segments, each from the state that the one before it left; nothing but sums is kept of a segment.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from conf import settings
from conf.paths import UserPaths
from conf.settings import Refusal, RequestError
from suite.evaluation.segments import Window, read, windows_of
from suite.evaluation.settings import Asked
from suite.evaluation.studies.rows import Place
from suite.evaluation.studies.subject import Subject
from suite.evaluation.texts import Text, read_text, text_name
from suite.request.cost import product_dtype
from suite.request.schema import Config
from suite.store.foreign import say
from tasks.language.settings import DataSettings
from tasks.positions import position_bands
from tasks.task import Measurement, perplexity

Reading = Literal["reset", "sliding", "carried"]
WHOLE = 0
"""The context of a document that is read whole."""


class Settings(settings.Settings, kw_only=True):
    """texts: names of conf/data, whose held-out part is read, files and folders. text_field: of a row of a table.

    contexts: tokens that are read at most, 0 for the whole document. readings: "carried", the first `context` tokens of every
    document that has so many; "reset", all of every document in windows of `context` tokens; "sliding", windows that begin
    `stride` tokens apart, of which all but the first are scored in their last `stride` tokens. A stage each.
    segment_tokens: tokens of a sequence in one forward pass; they decide memory and speed alone.
    """

    texts: UserPaths
    contexts: tuple[settings.Natural, ...]
    readings: tuple[Reading, ...]
    stride: settings.Count
    segment_tokens: settings.Count
    text_field: settings.Line


def planned(asked: Asked) -> list[dict[str, Any]]:
    """One stage a text, reading and context, for a task of text; `version` is a digest of the documents.

    A text that can't be read is said at once, and has stages that fail for that reason, so that the others go on.
    Raises RequestError where that is so of all of them, and for a stride that leaves tokens out.
    """
    own = asked.own
    assert isinstance(own, Settings)
    if _data(asked.config) is None:
        return []
    stages = [_stage(source, reading, context, own) for source, reading, context in _asked(own)]
    faults: list[str] = []
    for stage, source in stages:
        try:
            stage["version"] = _text(asked.config, own.text_field, source, stage, asked.tokens).digest
        except ValueError as error:
            stage["version"] = ""
            faults.append(str(error))
    if len(faults) == len(stages):
        raise RequestError(faults[0])
    for fault in faults:
        _say_once(f"{fault}; what is asked beside it goes on")
    return [stage for stage, _ in stages]


def options(asked: Asked, stage: Mapping[str, Any]) -> dict[str, Any]:
    """Where the text of a planned stage lies, and how much of it is read at once: no number depends on it."""
    own = asked.own
    assert isinstance(own, Settings)
    source = next(each for each in own.texts if text_name(each) == stage["text"])
    return {"source": source, "text_field": own.text_field, "segment_tokens": own.segment_tokens}


_say_once = functools.cache(say)


def _asked(own: Settings) -> list[tuple[str, Reading, int]]:
    """Every text with every reading and context that go together. Raises Refusal."""
    names = [text_name(source) for source in own.texts]
    if twice := [name for name in names if names.count(name) > 1]:
        raise Refusal("eval.texts", list(own.texts), f"texts of different names, not two called {twice[0]}")
    windows = sorted(set(own.contexts) - {WHOLE})
    if "sliding" in own.readings and windows and own.stride > windows[0]:
        raise Refusal("eval.stride", own.stride, f"whole numbers up to the least of eval.contexts, {windows[0]}")
    # A whole document has no windows: it is read from its beginning to its end.
    found = [(reading, context) for reading in own.readings for context in own.contexts if context or reading == "carried"]
    if not found:
        raise Refusal("eval.contexts", list(own.contexts), "whole numbers from 1 unless carried is among eval.readings")
    return [(source, reading, context) for source in own.texts for reading, context in dict.fromkeys(found)]


def _stage(source: str, reading: Reading, context: int, own: Settings) -> tuple[dict[str, Any], str]:
    stage = {"text": text_name(source), "reading": reading, "context": context}
    return stage | ({"stride": own.stride} if reading == "sliding" else {}), source


def _data(config: Config) -> DataSettings | None:
    """The data of a task of text, whose tokenizer reads every text; None for any other task."""
    return getattr(config.task, "data", None)


def _text(config: Config, field: str, source: str, stage: Mapping[str, Any], tokens: int) -> Text:
    """The documents of a stage; all whole, but for the carried state the first `context` ids of those that have so many."""
    first = stage["context"] if stage["reading"] == "carried" else WHOLE
    data = _data(config)
    assert data is not None
    return read_text(source, data, field=field, least=first or 1, most=first or None, tokens=tokens)


@torch.no_grad()
def measure(subject: Subject, wanted: Mapping[str, Any]) -> list[Measurement]:
    """nll, perplexity, scored_tokens and short_documents of the text, and by range of positions nll, nll_so_far, state_bytes.

    Examples are those of the documents, in the order of the text, NaN where a document does not reach a range. A position is
    counted in the document, and with `reset` in the window. nll_so_far: the mean from position 0 to the range's end, over the
    documents that reach the range. state_bytes: what the model holds of a sequence at the range's end.
    """
    text = _text(subject.config, wanted["text_field"], wanted["source"], wanted, wanted["tokens"])
    if text.digest != wanted["version"]:
        raise ValueError(f"eval.texts={wanted['source']} has changed since this command began; the same command reads it anew")
    windows = windows_of([len(ids) for ids in text.documents], wanted["reading"], wanted["context"], wanted.get("stride", 0))
    ends = [window.length + (0 if wanted["reading"] == "reset" else window.start) for window in windows]
    sums = Sums(len(text.documents), position_bands(max(ends)), of_windows=wanted["reading"] == "reset")
    how = {"bos": text.bos, "segment": wanted["segment_tokens"], "device": subject.device}
    for window, first, nll, scored in read(subject.model, text.documents, windows, **how):
        sums.add(window, first, nll, scored)
    place: Place = {key: wanted[key] for key in ("text", "reading", "context", "stride") if key in wanted}
    dtype = product_dtype(subject.config.train.autocast)
    states = [subject.model.state_bytes(high, dtype) for _, high in sums.bands]
    return rows(sums, place, text, states)


class Sums:
    """Sums of nll and their counts by document and range of positions [D, R], in float64.

    bands: the ranges. of_windows: whether positions are counted in the window, and not in its document.
    """

    def __init__(self, documents: int, bands: Sequence[tuple[int, int]], *, of_windows: bool) -> None:
        self.bands, self.of_windows = bands, of_windows
        self.highs = np.array([high for _, high in bands])
        self.nats, self.counts = (np.zeros((documents, len(bands))) for _ in range(2))

    def add(self, window: Window, first: int, nll: Tensor, scored: Tensor) -> None:
        asked = scored.numpy()
        positions = np.flatnonzero(asked) + first + (0 if self.of_windows else window.start)
        of = np.searchsorted(self.highs, positions, side="right")
        self.nats[window.document] += np.bincount(of, nll.double().numpy()[asked], len(self.bands))
        self.counts[window.document] += np.bincount(of, minlength=len(self.bands))


def rows(sums: Sums, place: Place, text: Text, states: Sequence[int]) -> list[Measurement]:
    """What `measure` says. states: the bytes of a state at the end of every range."""
    whole = _mean("nll", sums.nats.sum(1), sums.counts.sum(1), text, place)
    tokens, documents = sums.counts.sum(1), len(text.documents)
    found = [
        whole,
        Measurement("perplexity", perplexity(whole.value), text.split, place, whole.count),
        Measurement("scored_tokens", float(tokens.mean()), text.split, place, documents, tuple(tokens.tolist()), whole.groups),
        Measurement("short_documents", float(text.short), text.split, place, documents + text.short),
    ]
    nats, counts = sums.nats.cumsum(1), sums.counts.cumsum(1)
    for band, (low, high) in enumerate(sums.bands):
        where: Place = {**place, "position_low": low, "position_high": high}
        reached = sums.counts[:, band] > 0
        found += [
            _mean("nll", sums.nats[:, band], sums.counts[:, band], text, where),
            _mean("nll_so_far", nats[:, band] * reached, counts[:, band] * reached, text, where),
            Measurement("state_bytes", float(states[band]), text.split, where, 1),
        ]
    return found


def _mean(metric: str, nats: np.ndarray, counts: np.ndarray, text: Text, place: Place) -> Measurement:
    """The mean over all tokens, and that of every document [D]."""
    each = np.divide(nats, counts, out=np.full(len(nats), math.nan), where=counts > 0)
    mean, documents = float(nats.sum() / counts.sum()), tuple(range(len(counts)))
    return Measurement(metric, mean, text.split, place, int(counts.sum()), tuple(each.tolist()), documents)
