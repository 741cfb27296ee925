"""Language models of the MesaNet paper's sizes, invented, with the rows that its tables are made of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from zlib import crc32

import numpy as np
import pandas as pd
from conftest import write

from reports.kit.parts import Frames, no_frames
from reports.kit.study import read_study
from suite.results import RUN_COLUMNS

TOKENS = {"15B": 28_611 * 256 * 2048, "50B": 95_368 * 256 * 2048}
STUDY = read_study("mesanet")
NAMES = {dataset: benchmark.name for dataset, benchmark in STUDY.benchmarks.items()}


def add_model(
    store,
    model: str,
    *,
    size: str = "400m",
    tokens: str = "15B",
    seed: int = 0,
    nll: float | None = None,
    perplexities: Mapping[tuple[str, int], float] | None = None,
    scores: Mapping[str, float | list[float]] | None = None,
    lr: float = 1e-3,
    **settings,
):
    """A run. perplexities: by text and context. scores: by the name of the benchmark, the mean, or an answer an example."""
    facts = {"train_tokens": TOKENS.get(tokens, tokens), "seq_len": 2048, "lr": lr, "train_steps": 100}
    stages = {"train": [] if nll is None else [store.row("nll", nll, "validation")]}
    if perplexities:
        places = [{"text": text, "context": context, "reading": "carried"} for text, context in perplexities]
        values = perplexities.values()
        stages["perplexity"] = [
            store.row("perplexity", value, "test", **place) for value, place in zip(values, places, strict=True)
        ]
    varied = {"train.lr": lr, "train.tokens": facts["train_tokens"], **settings}
    folder = store.run(model, "language", size=size, seed=seed, stages=stages, facts=facts, varied=varied)
    for name, score in (scores or {}).items():
        # A stage each, of the version that asks RACE with the text of its cloze questions.
        settings = {"benchmark": name, "version": "0.4.13-00000000"}
        rows = benchmark_rows(store, name, score)
        write(
            folder / "eval" / f"lm_eval-{crc32(name.encode()):08x}.json", schema=1, stage="lm_eval", settings=settings, rows=rows
        )
    return folder


def benchmark_rows(store, name: str, score: float | list[float]) -> list[dict]:
    examples = score if isinstance(score, list) else None
    slices = {"benchmark": name} | ({} if name.endswith("shot") else {"shots": 0})
    return [store.row(metric_of(name), float(np.mean(score)), "test", examples=examples, **slices)]


def metric_of(name: str) -> str:
    """The metric that a benchmark is scored by in the paper."""
    patterns = {re.sub(r"\{\w+\}", r"\\d+", known.name): known.metrics[0] for known in STUDY.benchmarks.values()}
    return next((metric for pattern, metric in patterns.items() if re.fullmatch(pattern, name)), "accuracy")


def many_runs(count: int) -> Frames:
    """The frames of so many runs: models, sizes and tokens of the paper, three seeds, at as many rates as that takes.

    Each has its validation loss, 18 benchmarks with chance and perplexities of six texts at three contexts: 55 rows.
    """
    models = ["transformer", *(each for each in STUDY.costs if each != "transformer"), "swa4", "swa16", "swa256", "hawk_mesa"]
    cells = [(size, tokens, model) for size in ("140m", "400m", "1b") for tokens in TOKENS.values() for model in models]
    number = np.arange(count)
    runs = pd.DataFrame([cells[i % len(cells)] for i in number], columns=["size", "train_tokens", "model"])
    turn = number // len(cells)
    runs = runs.assign(seed=turn % 3, run_id=[f"{i:012x}" for i in number], task="language", data="slimpajama", status="done")
    runs["train.lr"] = 1e-3 * (1 + turn // 3 / 100)
    runs["group_id"] = runs[["model", "size", "train_tokens", "train.lr"]].astype(str).agg("-".join, axis=1)
    runs = runs.assign(model_label=runs["model"], arm=runs["group_id"], family=runs["model"], backend="torch", reason="")
    runs = runs.assign(seq_len=2048, code="today", state_bytes=4096, flops_per_token=5000)
    rng = np.random.default_rng(0)
    parts = [_rows(runs, "train", "nll", "validation", rng.normal(2.6, 0.05, count))]
    for name in (name for name in NAMES.values() if "{" not in name):
        own = _rows(runs, "lm_eval", metric_of(name), "test", rng.uniform(0.3, 0.6, count))
        parts += [own.assign(benchmark=name, shots=0.0), own.assign(metric="chance", value=0.25, benchmark=name, shots=0.0)]
    for text in (texts[0] for texts in STUDY.texts.values()):
        for context in (2048.0, 4096.0, 32768.0):
            own = _rows(runs, "perplexity", "perplexity", "test", np.exp(rng.normal(2.6, 0.05, count)))
            parts.append(own.assign(text=text, context=context, reading="carried", slice=f"context={context:.0f}, text={text}"))
    none = no_frames({"experiment": None, "created": "", "overrides": [], "where": "task=language", "page": "paper"})
    results = pd.concat([none.results, *parts], ignore_index=True).astype({"superseded": bool})
    return replace(none, results=results, runs=runs, cells=runs)


def _rows(runs: pd.DataFrame, stage: str, metric: str, split: str, values: np.ndarray) -> pd.DataFrame:
    """A row a run, over the whole split."""
    about = {"stage": stage, "evaluation": stage, "superseded": False, "metric": metric, "split": split, "slice": ""}
    return runs[[*RUN_COLUMNS, "arm", "family"]].assign(**about, value=values, count=1000)


def answers(share: float, *, count: int = 400, seed: int = 0) -> list[float]:
    """Answers of which about this share is right, those of the easy questions first."""
    difficulty = np.random.default_rng(0).permutation(count) / count
    noise = np.random.default_rng([seed, 1]).normal(0, 0.02, count)
    return list((difficulty + noise < share).astype(float))
