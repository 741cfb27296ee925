"""Runs behind the paper's figures, invented: language models by size and tokens whose loss by position is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reports.kit.page import bound_part, read_page
from reports.kit.parts import Drawing, Frames, load_frames

PAGE = read_page(Path(__file__).parents[2] / "conf" / "report" / "paper.yaml")
POSITIONS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
EARLY_LATE = {
    "transformer": (0.0, 0.0),
    "swa64": (0.0, 0.15),
    "swa1024": (0.0, 0.02),
    "mamba2": (-0.01, 0.06),
    "gla": (-0.02, 0.02),
    "mlstm": (-0.02, 0.025),
    "deltanet": (-0.015, 0.018),
    "gated_deltanet": (-0.02, 0.008),
    "hawk": (-0.04, 0.06),
    "mesanet": (-0.02, -0.01),
    "hawk_mesa": (-0.035, -0.015),
}
"""By model its NLL less the transformer's at the first position, and what is added up to the last."""
CELLS = {("1b", 50): 936_000_000, ("1b", 15): 936_000_000, ("400m", 50): 433_000_000, ("400m", 15): 433_000_000}
"""By size and billions of tokens the parameters."""


def position_rows(store, model: str, *, seed: int = 0, documents: int = 60, last: int = 2048) -> list[dict]:
    """The stage `position`: the document's own loss, plus what the model has early and late, and noise of the seed."""
    own = np.random.default_rng(0).uniform(1.5, 3.5, documents)
    early, late = EARLY_LATE[model]
    noise = np.random.default_rng([seed, *model.encode()])
    rows, low = [], 0
    for high in (position for position in POSITIONS if position <= last):
        share = np.log2(high) / np.log2(POSITIONS[-1])
        values = own - 0.4 * np.log(high) / 3 + early * (1 - share) + late * share + noise.normal(0, 0.008, documents)
        row = store.row("nll", float(values.mean()), "validation", examples=list(values), position_low=low, position_high=high)
        rows.append(row | {"groups": list(range(documents))})
        low = high
    return rows


def add_language(store, model: str, *, size: str = "1b", billions: float = 50, seed: int = 0, stages=(), loss=2.4, **settings):
    """A language model of a size and number of tokens, with these stages beside its validation loss."""
    facts = {"train_tokens": int(billions * 10**9), "parameters": CELLS.get((size, billions), 10**6), "seq_len": 2048}
    varied = {"train.tokens": facts["train_tokens"], **settings}
    known = {"train": [store.row("nll", loss, "validation")], **dict(stages)}
    return store.run(model, "language", size=size, seed=seed, stages=known, facts=facts, varied=varied)


def add_parity(store, model: str, learns: bool, *, seed: int = 0, validation: float = 1.0, **settings) -> None:
    """A run of parity, trained to 40 tokens: right at all lengths to 256, or guessing beyond the trained one."""
    rows = [store.row("accuracy", 1.0 if learns or t < 40 else 0.5, "test", position=t) for t in range(256)]
    stages = {"train": [store.row("accuracy", validation, "validation")], "test": [*rows, store.row("chance", 0.5, "test")]}
    store.run(model, "parity", seed=seed, stages=stages, facts={"seq_len": 40}, varied=settings)


def add_regbench(store, model: str, accuracies: dict[int, float], *, seed: int = 0) -> None:
    """Runs of RegBench, one a number of training problems; the seed adds a thousandth."""
    for problems, accuracy in accuracies.items():
        stages = {"train": [store.row("accuracy", accuracy, "validation")]}
        stages["test"] = [store.row("accuracy", accuracy + seed / 1000, "test"), store.row("ngram3_accuracy", 0.6, "test")]
        settings = {"protocol": "clean", "task.seq_len": 960, "task.num_train": problems}
        store.run(model, "regbench", seed=seed, stages=stages, varied=settings)


def perplexity_rows(store, model: str, *, seed: int = 0, trained: int = 2048, texts=("wikitext", "gov")) -> list[dict]:
    """The stage `perplexity` to 32,768 tokens: attention loses a nat with every doubling beyond the `trained` length."""
    rows, low = [], 0
    for high in (*POSITIONS, 4096, 8192, 16384, 32768):
        beyond = max(0.0, np.log2(high / trained)) * (1.0 if model == "transformer" else 0.001 * seed)
        for number, text in enumerate(texts):
            value = 2.5 + 3.0 / (1 + np.log2(high)) + 0.1 * number + beyond + 0.002 * seed
            place = {"text": text, "reading": "carried", "context": 32768, "position_low": low, "position_high": high}
            rows.append(store.row("nll_so_far", value, "validation", **place))
        low = high
    return rows


def drawn(name: str, frames: Frames) -> Drawing:
    """A figure of the report, by the name of its part."""
    made = bound_part(next(part for part in PAGE.parts if part.name == name))(frames)
    assert isinstance(made, Drawing)
    return made


def frames_of(store) -> Frames:
    store.request()
    return load_frames(store.root, "quick")


def said(drawing: Drawing, about: str) -> str:
    """The one note that begins with these words."""
    (note,) = [note for note in drawing.notes if note.startswith(about)]
    return note
