"""Runs that are set differently are no seeds of one another: a page that would average them says so."""

from __future__ import annotations

import invented
import pytest

from reports.kit.page import bound_part
from reports.kit.parts import NoData, load_frames
from reports.kit.tables import Column
from reports.pages.mesa.curvature import FLOPS, SOLVER, compared
from suite.reporting import page_of

FLOOR = {"model.mixer.regularizer_floor": 0.25, "model.mixer.forget_cap": None}
STAGES = {
    "internals": lambda store, seed: invented.internals_rows(store, seed=seed),
    "warm_start": lambda store, seed: invented.decode_rows(store, seed=seed),
    "solver_ablation": lambda store, seed: invented.solver_rows(store, seed=seed, metric="nll"),
    "length": lambda store, seed: invented.length_rows(store, seed=seed),
    "compute": lambda store, seed: invented.solver_rows(store, seed=seed, metric="nll"),
    "regularization": lambda store, seed: invented.repeats_rows(store, floor=0.25, capped=False),
}
"""By report the rows of the stage that its parts show."""
OF_STAGE = {"warm_start": "decode", "solver_ablation": "solver", "compute": "solver", "regularization": "repeats"}
KEPT_APART = (
    "tables.settings",
    "matched.costs",
    "length.by_length",
    "length.table",
    "solver.by_setting",
    "figures.training_curves",
)
"""Parts that show every arm by itself."""


@pytest.mark.parametrize("report", STAGES)
def test_two_learning_rates_are_not_averaged_as_seeds(store, report) -> None:
    for rate in (1e-3, 2e-3):
        for seed in (0, 1):
            stages = {OF_STAGE.get(report, report): STAGES[report](store, seed)}
            stages["train"] = [store.row("nll", 1.5 + rate, "validation"), store.row("bits_per_byte", 2.0 + rate, "validation")]
            store.run("mesanet", "language", seed=seed, stages=stages, varied={"train.lr": rate}, settings=FLOOR)
    store.request(report)
    frames, parts = load_frames(store.root, report), [part for part in page_of(report).parts if part.type not in KEPT_APART]
    assert parts
    for part in parts:
        with pytest.raises(NoData, match=r"learning rate 0\.001, .*learning rate 0\.002 would be averaged as if they were seeds"):
            bound_part(part)(frames)


def test_a_difference_has_one_reference_a_seed(store) -> None:
    solver = {f"model.mixer.solver.{name}": value for name, value in zip(SOLVER, ("cg", "diagonal", 30, 1e-4), strict=True)}
    for rate in (1e-3, 2e-3):
        scores = {"test": [store.row("nll", 2.0, "test")], "cost": [store.row(FLOPS, 100, "validation")]}
        store.run("mesanet", "mqar", stages=scores, varied={"train.lr": rate, **solver})
    store.request()
    with pytest.raises(NoData, match=r"more than one run was trained with eps 1e-4, .*learning rate 0\.002"):
        compared(load_frames(store.root, "quick"), Column(metric="nll", task="mqar", stage="test", split="test"), 1e-4)
