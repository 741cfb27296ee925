"""The numbers that three reports print of invented stores, kept as CSV in golden/: where one changes, so does a file.

LRS_RENEW=1 writes them anew; look at the difference before it is committed.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import pytest
from published_runs import NAMES, STUDY, add_model, answers
from test_mad_report import TASKS, ask

from conf.groups import find
from reports.kit.build import build_report
from reports.kit.page import Page, read_page
from reports.kit.parts import Frames, load_frames
from suite.reporting import stored_frames

GOLDEN = Path(__file__).parent / "golden"
SHARES = {"swa4": 0.3, "swa16": 0.42, "swa64": 0.55, "transformer": 0.68, "mesanet": 0.66, "gated_deltanet": 0.65}


def paper(store, page: Page) -> Frames:
    """Six models at two scales, two seeds: HellaSwag and LAMBADA rise with the window, PIQA does not."""
    for tokens in ("15B", "50B"):
        for seed in (0, 1):
            for i, (model, share) in enumerate(SHARES.items()):
                nll = 2.6 - 0.2 * share + 0.002 * ((3 * i + 5 * seed) % 4)
                scores = {NAMES[name]: answers(share, count=60, seed=seed) for name in STUDY.split["global"]}
                scores |= {"piqa": answers(0.6 - 0.1 * (share > 0.6), count=60, seed=seed)}
                texts = {("slimpajama", 2048): float(np.exp(nll)), ("pg19", 4096): float(np.exp(nll + 0.1))}
                add_model(store, model, tokens=tokens, seed=seed, nll=nll, perplexities=texts, scores=scores)
    return stored_frames(store.root, page)


def quick(store, page: Page) -> Frames:
    """Five models of language, two seeds, whose loss moves with the position, and whose scores are those of `answers`."""
    for i, (model, share) in enumerate(list(SHARES.items())[:5]):
        for seed in (0, 1):
            losses = answers(share, count=20, seed=seed)
            rows = [
                store.row("nll", 0.0, "validation", examples=losses, position_low=low, position_high=2 * low) for low in (1, 2, 4)
            ]
            scores = [store.row("accuracy", share, "test", examples=answers(share, seed=seed), benchmark="recall", shots=1)]
            trained = [store.row("bits_per_byte", 2.0 - share + 0.01 * seed, "validation")]
            trained += [store.row("tokens_per_second", 1000.0 * (i + 1), "train")]
            stages = {"train": trained, "position": rows, "lm_eval": scores}
            store.run(model, "language", seed=seed, stages=stages)
    store.request(page.name)
    return load_frames(store.root, page.name)


def mad(store, page: Page) -> Frames:
    """A model on every task of MAD."""
    for i, task in enumerate(TASKS):
        ask(store, task, 0.9 - 0.1 * i)
    store.request(page.name)
    return load_frames(store.root, page.name)


REPORTS = {
    "paper": (
        paper,
        ("split", "split_reasons", "ranks", "ranks_of_scores", "table_8", "table_10_400m", "table_11_400m", "table_14_400m"),
    ),
    "quick": (quick, ("overview", "nll_by_position", "split")),
    "mad": (mad, ("beside_published", "cost")),
}
"""How the runs of a report are invented, and which of its parts are kept."""


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("name", REPORTS)
def test_a_report_prints_the_numbers_that_are_kept(store, tmp_path: Path, name: str) -> None:
    made, parts = REPORTS[name]
    page = read_page(find("report", name))
    kept = tuple(part for part in page.parts if part.name in parts)
    assert len(kept) == len(parts), [part.name for part in page.parts]
    build_report(msgspec.structs.replace(page, parts=kept), made(store, page), tmp_path)
    for part in parts:
        # What fills a blank cell is a long line in each, which other tests look at.
        written = pd.read_csv(tmp_path / f"{part}.csv").drop(columns="filled_by", errors="ignore")
        golden = GOLDEN / name / f"{part}.csv"
        if os.environ.get("LRS_RENEW"):
            golden.parent.mkdir(parents=True, exist_ok=True)
            written.to_csv(golden, index=False)
        pd.testing.assert_frame_equal(written, pd.read_csv(golden), rtol=1e-6, atol=1e-9, obj=f"{name}/{part}")
