"""The page of runs that nobody wrote a report for: which parts it has, and that every arm and axis is named by words."""

from __future__ import annotations

import re

import pytest
from invented_perplexity import perplexity_rows

from reports.kit.build import build_report
from reports.kit.chosen import along, at_best
from reports.kit.page import bound_part
from reports.kit.parts import Frames, load_frames
from reports.kit.tables import Column
from reports.pages.positions import perplexities, so_far
from reports.pages.sweep import curves
from reports.pages.tables import stage
from reports.standard import axes_of, standard_page, title_of

ACCURACY = Column(metric="accuracy", task="mqar", stage="train", split="validation")


def recall(store, model: str, value: float | None, *, seeds: int = 1, test: float | None = None, **varied) -> None:
    """Runs of recall with these settings; without a score where value is None."""
    for seed in range(seeds):
        stages = {} if value is None else {"train": [store.row("accuracy", value + seed / 100, "validation")]}
        if test is not None:
            stages["test"] = [store.row("accuracy", test + seed / 100, "test"), store.row("chance", 0.1, "test", num_pairs=4)]
        named = {key.replace("__", "."): each for key, each in varied.items()}
        status = "diverged" if value is None else "done"
        store.run(model, "mqar", stages=stages, varied=named, status=status, seed=seed, curve=[(1, 3.0), (2, 2.0)])


def frames(store) -> Frames:
    store.request()
    return load_frames(store.root, "quick")


def learning_rates(store) -> None:
    for model in ("gla", "mesanet"):
        for lr, value in ((0.001, 0.2), (0.004, 0.6 if model == "gla" else 0.3), (0.016, 0.4)):
            recall(store, model, value, train__lr=lr, test=value / 2)


def widths(store) -> None:
    for width in (32, 64):
        recall(store, "gla", width / 100, seeds=2, size__d_model=width)


def solver_steps(store) -> None:
    for steps in (2, 30):
        recall(store, "mesanet", steps / 100, model__mixer__solver__max_steps=steps)


def pairs(store) -> None:
    for listed in ("[4]", "[4,8]"):
        recall(store, "gla", 0.5, task__num_pairs=listed)
        recall(store, "mesanet", 0.6, task__num_pairs=listed)


def two_tasks(store) -> None:
    for model in ("gla", "mesanet"):
        recall(store, model, 0.5)
        store.run(model, "language", stages={"train": [store.row("bits_per_byte", 2.0, "validation")]})


def grid(store) -> None:
    for model in ("gla", "mesanet"):
        for width in (32, 64):
            for lr in (0.001, 0.01):
                recall(store, model, width / 100 + (lr == 0.01) / 100, size__d_model=width, train__lr=lr)


SWEEPS = {
    learning_rates: ("GLA and MESANET on MQAR, by learning rate", ["train.lr"], {"best", "comparison", "by_lr"}),
    widths: ("GLA on MQAR, by d_model", ["size.d_model"], {"comparison", "by_d_model"}),
    solver_steps: ("MESANET on MQAR, by solver steps", ["model.mixer.solver.max_steps"], {"comparison", "by_max_steps"}),
    pairs: ("GLA and MESANET on MQAR, by num pairs", ["task.num_pairs"], {"comparison", "by_num_pairs"}),
    two_tasks: ("GLA and MESANET on MQAR and language", [], {"comparison"}),
    grid: ("GLA and MESANET on MQAR, by d_model and learning rate", ["size.d_model", "train.lr"], {"by_d_model", "by_lr"}),
}


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda sweep: sweep.__name__)
def test_a_sweep_that_nobody_prepared_has_a_page_in_words(store, tmp_path, sweep) -> None:
    sweep(store)
    found = frames(store)
    title, axes, parts = SWEEPS[sweep]
    assert (title_of(found), axes_of(found.cells)) == (title, axes)
    page = standard_page(found)
    assert parts | {"settings"} <= {part.name for part in page.parts}
    html = build_report(page, found, tmp_path / "page").read_text()
    assert "Nothing to show" not in html
    # What nothing tells apart is labelled by a digest.
    assert not any(group in arm for group in found.cells["group_id"] for arm in found.cells["arm"])


def test_the_best_of_an_axis_is_chosen_on_validation(store) -> None:
    learning_rates(store)
    found = frames(store)
    chosen, said = at_best(found, "train.lr")
    assert dict(zip(chosen.cells["arm"], chosen.cells["train.lr"], strict=True)) == {"GLA": 0.004, "MESANET": 0.016}
    assert said == ["GLA, mqar: learning rate 0.004", "MESANET, mqar: learning rate 0.016"]
    assert set(chosen.results["arm"]) == {"GLA", "MESANET"}


def test_a_second_axis_has_a_panel_for_each_value_or_is_at_its_best(store) -> None:
    grid(store)
    found = frames(store)
    titles = [axes.get_title() for axes in curves(found, columns=[ACCURACY], fact="train.lr", by="size.d_model").figure.axes]
    assert titles == ["MQAR, d_model 32", "MQAR, d_model 64"]
    points = along(found, ACCURACY, "size.d_model", chosen="train.lr")
    assert set(points["train.lr"]) == {0.01} and set(points["line"]) == {"GLA", "MESANET"}


@pytest.mark.parametrize(("values", "scale"), [((0.001, 0.01), "log"), ((32, 64), "linear"), ((0, 100), "linear")])
def test_an_axis_is_logarithmic_where_its_values_span_decades(store, values, scale) -> None:
    for value in values:
        recall(store, "gla", 0.5, train__lr=value)
    (axes,) = curves(frames(store), columns=[ACCURACY], fact="train.lr").figure.axes
    assert axes.get_xscale() == scale


def test_values_that_are_no_numbers_stand_side_by_side_in_order(store) -> None:
    for value in ("swish", "none", None):
        recall(store, "gla", 0.5, model__mixer__gate=value)
    (axes,) = curves(frames(store), columns=[ACCURACY], fact="model.mixer.gate").figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["none", "null", "swish"]


def test_lines_of_one_model_differ_in_colour(store) -> None:
    for width in (32, 64):
        for lr in (0.001, 0.01):
            recall(store, "gla", 0.5, size__d_model=width, train__lr=lr)
    drawing = curves(frames(store), columns=[ACCURACY], fact="train.lr")
    colors = {line.get_label(): str(line.get_color()) for line in drawing.figure.axes[0].lines if line.get_label()[0] != "_"}
    assert set(colors) == {"GLA, d_model 32", "GLA, d_model 64"} and len(set(colors.values())) == 2


def test_every_stage_without_a_part_of_its_own_has_a_table(store, tmp_path) -> None:
    rows = [store.row("latency_ms", 3.0, "", work="decode"), store.row("latency_ms", 5.0, "", work="prefill")]
    store.run("gla", "mqar", stages={"train": [store.row("accuracy", 0.5, "validation")], "efficiency": rows})
    found = frames(store)
    (part,) = (part for part in standard_page(found).parts if part.name == "stage_efficiency")
    table = stage(found, stage="efficiency")
    assert bound_part(part)(found).rows == table.rows
    assert [[entry.text for entry in row] for row in table.rows] == [
        ["GLA", "work=decode", "3.00"],
        ["GLA", "work=prefill", "5.00"],
    ]


def test_a_stage_with_ranges_of_positions_has_its_whole_sequences_in_the_table(store) -> None:
    rows = [
        store.row("nll", 3.0, "test", text="books"),
        store.row("nll", 5.0, "test", text="books", position_low=0, position_high=1),
    ]
    store.run("gla", "language", stages={"train": [store.row("nll", 0.5, "validation")], "perplexity": rows})
    assert [[entry.text for entry in row] for row in stage(frames(store), stage="perplexity").rows] == [["GLA", "3.000"]]


@pytest.mark.parametrize("models", [("transformer", "gla"), ("gla",)])
def test_perplexity_is_shown_as_its_own_report_shows_it(store, models) -> None:
    for model in models:
        rows = perplexity_rows(store, seed=0, offset=0.1, state=None)
        rows += perplexity_rows(store, seed=0, offset=0.1, state=None, context=1024)
        rows += perplexity_rows(store, seed=0, offset=0.1, state=None, context=256, reading="reset")
        store.run(model, "language", stages={"train": [store.row("nll", 0.5, "validation")], "perplexity": rows})
    found = frames(store)
    parts = {part.name: part for part in standard_page(found).parts if "perplexity" in part.name or part.name == "perplexities"}
    assert list(parts) == ["perplexities", *["perplexity_difference"][: len(models) - 1], "perplexity_so_far"]
    assert bound_part(parts["perplexities"])(found).rows == perplexities(found).rows
    drawing = bound_part(parts["perplexity_so_far"])(found)
    asked = {"baseline": "transformer", "reading": "carried", "context": 0}
    assert drawing.data.equals(so_far(found, **asked).data) and parts["perplexity_so_far"].arguments == asked


@pytest.mark.usefixtures("no_pictures")
def test_a_hostile_label_and_axis_stay_text(store, tmp_path) -> None:
    hostile = "<script>alert(1)</script>$x_{y}$"
    for value in (hostile, "b"):
        store.run(
            "gla",
            "mqar",
            label=hostile,
            varied={"model.mixer.kind": value},
            stages={"train": [store.row("accuracy", 0.5, "validation")]},
        )
    found = frames(store)
    html = build_report(standard_page(found), found, tmp_path / "page").read_text()
    assert not re.search(r"<script>alert", html) and "Nothing to show" not in html


@pytest.mark.parametrize(("swept", "drawn"), [(False, True), (True, False)], ids=["models alone", "a learning rate too"])
def test_accuracy_stands_against_the_state_where_what_varies_moves_it(store, tmp_path, swept, drawn) -> None:
    for model, state in (("gla", 100), ("mesanet", 200)):
        for lr in (0.001, 0.004) if swept else (0.001,):
            rows = [store.row("accuracy", 0.5, "validation"), store.row("accuracy", 0.5, "validation", num_pairs=4)]
            store.run(model, "mqar", stages={"train": rows}, facts={"state_bytes": state}, varied={"train.lr": lr})
    found = frames(store)
    parts = {part.name: part for part in standard_page(found).parts}
    assert ("mqar_by_state" in parts) == drawn
    if drawn:
        assert parts["mqar_by_state"].arguments["panels"] == "num_pairs"
        assert len(bound_part(parts["mqar_by_state"])(found).data) == 2


@pytest.mark.usefixtures("no_pictures")
def test_what_kept_checkpoints_score_has_tables_on_a_page_and_axes_that_end_alike_have_figures(store, tmp_path) -> None:
    for heads, of_mesa in ((1, 1), (1, 2), (2, 2)):
        step = {f"test@{step}": [store.row("accuracy", 0.5, "test", step=step)] for step in (1, 20)}
        stages = {"train": [store.row("accuracy", 0.4, "validation")], **step, "strange": []}
        varied = {"model.attention.num_heads": heads, "model.mixer.num_heads": of_mesa}
        store.run("mesanet", "mqar", stages=stages, varied=varied)
    found = frames(store)
    page = standard_page(found)
    titles = {part.name: part.title for part in page.parts}
    assert {"by_num_heads", "by_num_heads_2"} <= set(titles)
    assert titles["stage_test_20"] == "Evaluation: test after step 20"
    assert "What `eval=test step=20` measured." in build_report(page, found, tmp_path / "page").read_text()
