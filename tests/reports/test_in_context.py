"""In-context regression's figure and table, from invented errors."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from reports.kit.parts import NoData, load_frames
from reports.pages.in_context import error_by_position, error_over_ridge, errors, ratios, variant_title

VARIANTS = (
    {"task.noise": 0.5, "task.drift": 0.0, "task.segment_len": None},
    {"task.noise": 0.25, "task.drift": 0.2, "task.segment_len": None},
)
RATIO = functools.partial(error_over_ridge, task="regression", reference="ridge_error")
ERRORS = {"squared_error": 3.0, "ridge_error": 2.0, "bayes_error": 2.0}


def fill(store, *, with_op: bool = True) -> None:
    for i, variant in enumerate(VARIANTS):
        for model, factor in (("mesanet", 1.0), ("gla", 2.0)):
            for seed in (0, 1):
                values = {name: (seed + 1) * value for name, value in ERRORS.items()}
                values["squared_error"] *= factor
                values["bayes_error"] /= i + 1
                stages = {"test": rows(store, values)}
                if with_op and model == "mesanet":
                    op = {"operator_error": 2.0 * (seed + 1), "forgetting_error": (2.0 + i) * (seed + 1)}
                    op["floored_error"] = op["forgetting_error"]
                    decays = [store.row(f"{name}_decay", 0.9, "validation") for name in ("operator", "forgetting", "floored")]
                    stages["least_squares"] = [*rows(store, op), *decays]
                facts = {"seq_len": 8, **variant}
                store.run(model, "regression", seed=seed, stages=stages, facts=facts, group=str(i), varied=variant)
    store.request("regression")


def rows(store, values):
    made = []
    for metric, value in values.items():
        made.append(store.row(metric, value, "test"))
        made += [store.row(metric, value / (t + 1), "test", position=t) for t in range(8)]
        made.append(store.row(metric, value, "test", position_low=6, position_high=8))
    return made


def frames(store):
    return load_frames(store.root, "regression")


def test_errors_are_means_over_seeds_and_a_reference_counts_once_a_seed(store):
    fill(store)
    data = errors(frames(store).results, task="regression")
    at = data[(data["task.noise"] == 0.5) & (data["position"] == 1)].set_index("family")
    assert at.loc["MESANET", "mean"] == pytest.approx(2.25) and at.loc["GLA", "mean"] == pytest.approx(4.5)
    assert at.loc["ridge_error", "mean"] == pytest.approx(1.5) and (at["seeds"] == 2).all()
    assert at.loc["MESANET", "high"] - at.loc["MESANET", "mean"] == pytest.approx(12.706205 * 0.75)


def test_a_panel_a_variant_with_what_tells_itself_apart(store):
    fill(store)
    drawing = error_by_position(frames(store), task="regression")
    first, second = drawing.figure.axes
    assert [axes.get_title() for axes in (first, second)] == ["constant W, noise 0.5", "W drifts by 0.2, noise 0.25"]
    labels = [axes.get_legend_handles_labels()[1] for axes in (first, second)]
    assert "best answer (Kalman)" not in labels[0] and "best answer (Kalman)" in labels[1]
    assert not any("floor" in label for label in labels[0] + labels[1])
    assert not any("told nothing" in label for label in labels[0]) and any("told nothing" in label for label in labels[1])
    assert all({"MESANET", "GLA", "ridge regression, exact"} <= set(each) for each in labels)
    assert "n=2 seeds" in drawing.notes[0] and "gamma" in drawing.notes[1]


def test_the_table_divides_by_the_reference_of_the_same_seed(store):
    fill(store)
    table = error_over_ridge(frames(store), task="regression", reference="ridge_error")
    assert table.header == ("model", "constant W, noise 0.5", "W drifts by 0.2, noise 0.25")
    cells = {row[0].text: row[1:] for row in table.rows}
    assert [cell.text for cell in cells["MESANET"]] == ["1.500", "1.500"] and [c.mark for c in cells["MESANET"]] == ["best"] * 2
    assert [cell.text for cell in cells["GLA"]] == ["3.000", "3.000"] and [c.mark for c in cells["GLA"]] == ["second"] * 2
    assert [cell.text for cell in cells["squared error of the op that is told where W is redrawn"]] == ["1.000", "1.000"]
    assert ratios(frames(store).results, task="regression", reference="bayes_error").set_index(["family", "task.noise"]).loc[
        ("MESANET", 0.25), "mean"
    ] == pytest.approx(3.0)


def test_without_the_op_the_rest_is_drawn(store):
    fill(store, with_op=False)
    assert error_by_position(frames(store), task="regression").figure.axes
    assert len(error_over_ridge(frames(store), task="regression", reference="ridge_error").rows) == 3


def test_a_model_of_fewer_seeds_says_so(store):
    fill(store)
    facts = {"seq_len": 8, **VARIANTS[0]}
    store.run("hawk", "regression", seed=0, stages={"test": rows(store, ERRORS)}, facts=facts, varied=VARIANTS[0])
    store.request("regression", created="2026-11-23T12:00:00+00:00")
    table = error_over_ridge(frames(store), task="regression", reference="ridge_error")
    assert [row[1].text for row in table.rows if row[0].text == "HAWK"] == ["1.500 (n=1)"]


def test_a_store_without_the_task_says_so(store):
    fill(store)
    with pytest.raises(NoData, match="squared error of mqar"):
        error_by_position(frames(store), task="mqar")


def test_titles_name_what_varies():
    assert variant_title(0.5, 0.0, np.nan, False) == "constant W, noise 0.5"
    assert variant_title(0.25, 0.1, 16, False) == "W redrawn every 16, drifting by 0.1, noise 0.25"
    assert variant_title(0.5, 0.0, 32, True) == "W redrawn every 32 and told, noise 0.5"


def test_models_on_tasks_that_are_set_otherwise_are_not_compared(store):
    for model, width in (("gla", 16), ("mesanet", 32)):
        varied = VARIANTS[0] | {"task.input_dim": width}
        store.run(model, "regression", stages={"test": rows(store, ERRORS)}, facts={"seq_len": 8, **VARIANTS[0]}, varied=varied)
    store.request("regression")
    for draw in (lambda made: error_by_position(made, task="regression"), RATIO):
        with pytest.raises(NoData, match="on tasks that are set otherwise, constant W, noise 0.5: which of them is asked for"):
            draw(frames(store))


def test_a_model_is_at_the_rate_that_validation_prefers_and_of_one_size(store):
    for seed in (0, 1):
        for rate, error in ((0.001, 3.0), (0.004, 2.0)):
            stages = {
                "train": [store.row("squared_error", error, "validation")],
                "test": rows(store, ERRORS | {"squared_error": error}),
            }
            varied = VARIANTS[0] | {"train.lr": rate}
            store.run("gla", "regression", seed=seed, stages=stages, facts={"seq_len": 8, **VARIANTS[0]}, varied=varied)
    store.request("regression")
    table = error_over_ridge(frames(store), task="regression", reference="ridge_error")
    assert [row[1].text for row in table.rows if row[0].text == "GLA"] == ["1.000"]
    drawing = error_by_position(frames(store), task="regression")
    for notes in (table.notes, drawing.notes):
        assert "Chosen on validation: GLA, constant W, noise 0.5: learning rate 0.004." in notes
    stages = {"test": rows(store, ERRORS)}
    store.run("gla", "regression", stages=stages, size="small", facts={"seq_len": 8, **VARIANTS[0]}, varied=VARIANTS[0])
    store.request("regression")
    with pytest.raises(NoData, match="runs of GLA differ in size: which of them are compared?"):
        error_by_position(frames(store), task="regression")
