"""The pages of the studies: every part is drawn from rows as the stages write them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from invented import decode_rows, efficiency_rows, internals_rows, length_rows, repeats_rows, solver_rows

from reports.build import build_report
from reports.parts import load_frames

PAGES = Path(__file__).parents[2] / "conf" / "report"
SEEDS = (0, 1)


def fill_solver(store) -> None:
    for seed, (task, metric) in itertools.product(SEEDS, (("language", "nll"), ("mqar", "accuracy"))):
        store.run("mesanet", task, seed=seed, stages={"solver": solver_rows(store, seed=seed, metric=metric)})


def fill_stage(stage: str, rows: Callable[..., list[dict]]) -> Callable[..., None]:
    def fill(store) -> None:
        for seed in SEEDS:
            store.run("mesanet", "language", seed=seed, stages={stage: rows(store, seed=seed)})

    return fill


def fill_steps_in_training(store) -> None:
    for seed, (steps, tolerance) in itertools.product(SEEDS, ((5, 0.0), (30, 0.0), (30, 1e-4))):
        rows = solver_rows(store, seed=seed, metric="nll")
        stages = {"train": [store.row("nll", 1.5, "validation")], "solver": rows}
        varied = {"solver_max_steps": steps, "solver_tolerance": tolerance}
        store.run("mesanet", "language", seed=seed, stages=stages, varied=varied)


def fill_stochastic_steps(store) -> None:
    for seed, (steps, gradient) in itertools.product(SEEDS, ((None, "implicit"), (30, "implicit"), (30, "unrolled"))):
        stages = {"solver": solver_rows(store, seed=seed, metric="nll")}
        varied = {"random_steps": steps, "solver_gradient": gradient}
        store.run("mesanet", "language", seed=seed, stages=stages, varied=varied)


def fill_regularization(store) -> None:
    for seed, floor, cap in itertools.product(SEEDS, (0.01, 0.25), (0.9975, None)):
        rows = repeats_rows(store, floor=floor, capped=cap is not None)
        stages = {"train": [store.row("nll", 1.5 + 0.01 * seed, "validation")], "repeats": rows}
        varied = {"regularizer_floor": floor, "forget_cap": cap}
        store.run("mesanet", "language", seed=seed, stages=stages, varied=varied)


def fill_forget_gate(store) -> None:
    for seed, model, gamma in itertools.product(SEEDS, ("mesanet", "gated_deltanet"), (0.5, 0.98)):
        stages = {"train": [store.row("nll", 1.5 + 0.01 * seed, "validation")]}
        store.run(model, "language", seed=seed, stages=stages, varied={"forget_gate_init": gamma})


def fill_efficiency(store) -> None:
    for model in ("mesanet", "transformer"):
        store.run(model, "efficiency", stages={"efficiency": efficiency_rows(store)})


FILLS = {
    "efficiency": fill_efficiency,
    "solver_ablation": fill_solver,
    "compute": fill_solver,
    "internals": fill_stage("internals", internals_rows),
    "length": fill_stage("length", length_rows),
    "warm_start": fill_stage("decode", decode_rows),
    "sherman_morrison": fill_stage("decode", decode_rows),
    "steps_in_training": fill_steps_in_training,
    "stochastic_steps": fill_stochastic_steps,
    "regularization": fill_regularization,
    "forget_gate": fill_forget_gate,
}


@pytest.mark.parametrize("name", FILLS)
def test_every_part_of_a_study_is_drawn(store, tmp_path: Path, name: str) -> None:
    FILLS[name](store)
    store.request(name)
    page = yaml.safe_load((PAGES / f"{name}.yaml").read_text())
    assert page["name"] == page["experiment"] == name
    text = build_report(page, load_frames(store.root, name), tmp_path).read_text()
    assert "Nothing to show" not in text and "not measured" not in text
    for part in page["parts"]:
        assert (tmp_path / f"{part['name']}.csv").stat().st_size > 1
