"""Mesa trained with several solvers: whose points, which differences, and what is said of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reports.kit.parts import Frames, NoData, load_frames
from reports.kit.tables import Column
from reports.pages.mesa.curvature import FLOPS, by_flops, by_way, compared

ERROR = Column(metric="squared_error", task="in_context_regression", stage="test", split="test")
NLL, ACCURACY = (Column(metric=metric, task="mqar", stage="test", split="test") for metric in ("nll", "accuracy"))
COLUMNS = (ERROR, NLL, ACCURACY)
SOLVERS = {
    "eps 1e-4": ("cg", "diagonal", 30, 1e-4),
    "0 steps": ("cg", "diagonal", 0, 0.0),
    "5 steps": ("cg", "diagonal", 5, 0.0),
    "1 step, query start, richardson": ("richardson", "query", 1, 0.0),
}
LOSSES = {"eps 1e-4": 0.0, "0 steps": 0.2, "5 steps": 0.0, "1 step, query start, richardson": 0.1}
STEPS = {"eps 1e-4": 6, "0 steps": 0, "5 steps": 5, "1 step, query start, richardson": 1}


def run(store, model: str, *, seed: int, loss: float, flops: float, varied: dict | None = None) -> None:
    """Seeds differ by far more than solvers do, and both tasks are scored alike."""
    for task in ("in_context_regression", "mqar"):
        scores = [store.row("squared_error", 1.0 + 10.0 * seed + loss, "test")]
        if task == "mqar":
            scores = [store.row("nll", 2.0 + 10.0 * seed + loss, "test"), store.row("accuracy", 0.9 - loss, "test")]
        cost = [store.row(FLOPS, flops * (1 if task == "mqar" else 2), "validation")]
        store.run(model, task, seed=seed, stages={"test": scores, "cost": cost}, varied=varied)


@pytest.fixture
def asked(store) -> Frames:
    """Five steps are at times a little better and at times a little worse than the reference; PGDN has no third seed."""
    names = [f"model.mixer.solver.{name}" for name in ("name", "initial", "max_steps", "tolerance")]
    for seed in range(3):
        for way, solver in SOLVERS.items():
            noise = 0.001 * (seed - 1.2) if way == "5 steps" else 0.002 * (seed == 1) * (way != "eps 1e-4")
            varied = dict(zip(names, solver, strict=True))
            run(store, "mesanet", seed=seed, loss=LOSSES[way] + noise, flops=1000 + 100 * STEPS[way], varied=varied)
        if seed < 2:
            run(store, "pgdn", seed=seed, loss=0.3, flops=900)
    store.request()
    return load_frames(store.root, "quick")


def test_differences_are_paired_by_seed_and_ways_stand_by_their_flops(asked) -> None:
    data = compared(asked, ERROR, 1e-4).set_index("way")
    assert list(data.index) == ["PGDN", "0 steps", "1 step, query start, richardson", "5 steps", "eps 1e-4"]
    assert data.loc["eps 1e-4", FLOPS] == 3200.0 and data.loc["PGDN", FLOPS] == 1800.0
    assert data.loc["0 steps", "difference_mean"] == pytest.approx(0.2 + 0.002 / 3)
    assert data.loc["0 steps", "half_width"] > 10.0 > 0.01 > data.loc["0 steps", "difference_half_width"]
    assert data.loc["eps 1e-4", "difference_each"] == (0.0, 0.0, 0.0)
    assert data.loc["PGDN", ["n", "difference_n"]].tolist() == [2, 2]


def test_the_table_has_flops_once_a_task_and_no_difference_of_what_is_learnt_or_not(asked) -> None:
    table = by_way(asked, columns=COLUMNS, tolerance=1e-4)
    assert table.header == (
        "trained with",
        "in context regression forward FLOPs per token",
        "in context regression squared error",
        "in context regression squared error, less eps 1e-4",
        "MQAR forward FLOPs per token",
        "MQAR NLL [nats/token]",
        "MQAR NLL [nats/token], less eps 1e-4",
        "MQAR accuracy",
    )
    assert table.short[:4] == (
        "trained with",
        "in context regression FLOPs/token",
        "in context regression sq. error",
        "less eps 1e-4",
    )
    rows = {row[0].text: row for row in table.rows}
    assert rows["5 steps"][1].text == "3,000" and rows["5 steps"][4].text == "1,500"
    assert rows["0 steps"][3].text.startswith("+0.2007 ±") and rows["eps 1e-4"][3].text == ""
    assert rows["0 steps"][3].runs and rows["0 steps"][1].runs == rows["0 steps"][2].runs


def test_every_comparison_has_its_sentence(asked) -> None:
    notes = by_way(asked, columns=COLUMNS, tolerance=1e-4).notes
    sentences = [note for note in notes if " against eps 1e-4, " in note]
    assert len(sentences) == 2 * len(SOLVERS)
    told = {note.partition(" against")[0]: note for note in sentences if ", MQAR, NLL" in note}
    assert (
        ": decided, worse by +0.2007 [" in told["0 steps"]
        and ": decided, worse by +0.1007 [" in told["1 step, query start, richardson"]
    )
    assert ": undecided, " in told["5 steps"] and "it would take about" in told["5 steps"]
    assert told["PGDN"].endswith("over 2 seeds.")


def test_the_figure_has_a_point_a_way_and_the_reference_as_a_line(asked) -> None:
    panels = by_flops(asked, columns=COLUMNS, tolerance=1e-4).figure.axes
    assert [axes.get_title() for axes in panels] == ["in context regression", "MQAR", "MQAR"]
    for axes, mean, scale in zip(panels, (11.0, 12.0, 0.9), (2, 1, 1), strict=True):
        assert axes.lines[0].get_ydata() == pytest.approx([mean, mean]) and axes.lines[0].get_linestyle() == "--"
        places = {container.get_label(): container[0].get_xydata()[0] for container in axes.containers}
        assert {way: x for way, (x, _) in places.items()} == {
            "PGDN": 900 * scale,
            **{way: (1000 + 100 * steps) * scale for way, steps in STEPS.items()},
        }
        assert places["eps 1e-4"][1] == pytest.approx(mean)


def test_an_interval_wider_than_the_comparison_runs_out_of_the_frame(asked) -> None:
    """Seeds of the same way differ by tens here, ways by tenths."""
    bottom, top = by_flops(asked, columns=(ERROR,), tolerance=1e-4).figure.axes[0].get_ylim()
    assert 5.0 < bottom < 6.5 and 11.2 < top < 12.0


def test_without_the_reference_there_is_nothing_to_compare_with(asked) -> None:
    with pytest.raises(NoData, match="trained with eps 1e-3"):
        by_way(asked, columns=COLUMNS, tolerance=1e-3)


def test_a_task_that_was_not_asked_for_is_left_out(asked) -> None:
    cells, results = (frame[frame["task"] == "mqar"] for frame in (asked.cells, asked.results))
    one = replace(asked, cells=cells, results=results)
    assert [axes.get_title() for axes in by_flops(one, columns=COLUMNS, tolerance=1e-4).figure.axes] == ["MQAR", "MQAR"]
    table = by_way(one, columns=COLUMNS, tolerance=1e-4)
    assert len(table.header) == 5 and f"{len(cells)} runs asked for" in " ".join(table.notes)


def test_what_was_not_measured_is_named(store) -> None:
    store.run("gla", "mqar", stages={"test": [store.row("nll", 1.0, "test")]})
    store.request()
    with pytest.raises(NoData, match="no run of MQAR has NLL .* and forward FLOPs per token"):
        by_flops(load_frames(store.root, "quick"), columns=(NLL,), tolerance=1e-4)
