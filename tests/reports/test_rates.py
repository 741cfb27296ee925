"""Which learning rate validation chose, and whether its grid was wide enough."""

from __future__ import annotations

import pytest

from reports.kit.narrow import one_arm_a_model, validation_losses
from reports.kit.parts import Frames, NoData, Table, load_frames
from reports.kit.tables import Column
from reports.pages.rates import chosen

LOSS = Column(metric="nll", task="language", stage="train", split="validation")
RATES = (1e-3, 2e-3, 4e-3)


def sweep(store, losses: dict[str, list[float | None]], *, status: str = "diverged") -> Frames:
    for model, each in losses.items():
        for rate, loss in zip(RATES, each, strict=False):
            rows = {} if loss is None else {"train": [store.row("nll", loss, "validation")]}
            store.run(model, "language", stages=rows, status="done" if rows else status, varied={"train.lr": rate})
    store.request()
    return load_frames(store.root, "quick")


def texts(table: Table) -> list[tuple[str, ...]]:
    return [tuple(entry.text for entry in row) for row in table.rows]


def test_the_best_rate_of_every_model_stands_with_its_place_in_the_grid(store):
    losses = {"mesanet": [3.0, 2.0, 2.5], "gla": [2.0, 2.5, 3.0], "transformer": [3.0, 2.5, 2.0], "hawk": [2.0]}
    table = chosen(sweep(store, losses), column=LOSS, fact="train.lr")
    assert {row[0]: (row[1], row[4]) for row in texts(table)} == {
        "MESANET": ("0.002", "inside the grid"),
        "GLA": ("0.001", "at its lower end"),
        "TRANSFORMER": ("0.004", "at its upper end"),
        "HAWK": ("0.001", "one value"),
    }
    (said,) = [note for note in table.notes if "edge of the grid" in note]
    assert "GLA at its lower end (0.001)" in said and "TRANSFORMER at its upper end (0.004)" in said and "MESANET" not in said


def test_a_rate_that_diverged_bounds_the_grid(store):
    table = chosen(sweep(store, {"mesanet": [3.0, 2.0, None], "gla": [None, None, None]}), column=LOSS, fact="train.lr")
    assert {row[0]: row[4] for row in texts(table)} == {"MESANET": "inside the grid", "GLA": "no score"}
    assert "Every best learning rate that was found lies inside its grid." in table.notes


def test_a_setting_without_numbers_has_no_grid(store):
    store.run("gla", "language", stages={}, varied={"train.schedule": "cosine"})
    store.run("gla", "language", stages={}, varied={"train.schedule": "wsd"})
    store.request()
    with pytest.raises(NoData, match="has a number for train.schedule"):
        chosen(load_frames(store.root, "quick"), column=LOSS, fact="train.schedule")


def test_two_seeds_that_are_left_do_not_win_over_three(store):
    for rate, losses in ((1e-3, (2.1, 2.1, 2.1)), (2e-3, (1.0, 1.0, None)), (4e-3, (0.5, None, None))):
        for seed, loss in enumerate(losses):
            rows = {} if loss is None else {"train": [store.row("nll", loss, "validation")]}
            status = "diverged" if loss is None else "done"
            store.run("gla", "language", seed=seed, stages=rows, status=status, varied={"train.lr": rate})
            if rate > 1e-3:
                store.run("mesanet", "language", seed=seed, stages=rows, status=status, varied={"train.lr": rate})
    store.request()
    frames = load_frames(store.root, "quick")
    assert {row[0]: row[1:3] for row in texts(chosen(frames, column=LOSS, fact="train.lr"))} == {
        "GLA": ("0.001", "2.100"),
        # Where all rates have lost a seed, the one that lost the fewest is chosen.
        "MESANET": ("0.002", "1.000"),
    }
    kept, _ = one_arm_a_model(frames.runs, validation_losses(frames, "nll"), by="NLL")
    found = frames.runs[frames.runs["run_id"].isin(kept)].groupby("model")["train.lr"].unique().map(list).to_dict()
    assert found == {"gla": [1e-3], "mesanet": [2e-3]}
